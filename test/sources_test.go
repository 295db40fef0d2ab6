package test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// differ is the list of what the two sources of cr-dump may say differently (SOURCES in cr-dump(1)), each with the
// records that it is in. What a pattern matches is left out of the comparison.
var differ = []struct {
	record, what string
	re           *regexp.Regexp
}{
	// How long an interrupted call still waits: the classical way makes it anew, which also shows in the registers.
	{"thread", "time left of an interrupted call", regexp.MustCompile(`"restart":\{[^}]*\}`)},
	{"process", "times left and absolute times of timers", regexp.MustCompile(`"(left|expires|fired)":\d+,?`)},
	{"file.timerfd", "times left and absolute times of timers", regexp.MustCompile(`"(left|until|ticks)":\d+,?`)},
	{"inotify", "the number of the next watch, when that with the highest one was removed", regexp.MustCompile(`"next":\d+,?`)},
	{"process", "that a parent has not been told of a stop or a continuation", regexp.MustCompile(`,"(unwaited|continued)":true`)},
	{"process", "a visit costs CPU time, by which timers fire", regexp.MustCompile(`"(pending|itimers)":\[[^]]*\],?`)},
	{"end", "the sum over all records", regexp.MustCompile(`"sum":\d+`)},
}

// TestSources dumps every fixture through both sources while it is frozen, compares the records, and has it go on.
func TestSources(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range fixtures(t) {
		fx := special[name]
		if fx.ticks {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fx.skip(t)
			j := harness.StartFixture(t, name, harness.Options{Args: fx.args, PidNS: fx.pidns})
			before := j.Footprint()
			compareSources(t, j)
			j.CheckUnharmed(before)
			j.Finish()
		})
	}
}

// TestSourcesOfRealPrograms is the same for the real programs, at a random moment of their work, which goes on to its right end.
func TestSourcesOfRealPrograms(t *testing.T) {
	harness.NeedRoot(t)
	for _, p := range programs() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			rnd := seeded(t)
			j := p.start(t)
			time.Sleep(time.Duration(rnd.Int63n(int64(p.takes))))
			if !j.Ended() {
				compareSources(t, j)
			}
			j.Verdict(120 * time.Second)
		})
	}
}

// compareSources freezes a job and dumps it both ways, the classical one last, since it has the job execute something.
func compareSources(t *testing.T, j *harness.Job) {
	t.Helper()
	begin := harness.Monotonic()
	if r := j.Sh("cr-freeze $PID > job.ticket"); r.Status != 0 {
		if !j.Ended() {
			t.Fatalf("cr-freeze: status %d: %s", r.Status, r.Stderr)
		}
		return
	}
	if r := j.Sh("cr-dump --source bpf < job.ticket > bpf.cr"); r.Status == 3 {
		j.MustSh("cr-thaw < job.ticket")
		t.Logf("refused by both: %s", r.Stderr)
		return
	} else if r.Status != 0 {
		t.Fatalf("status %d: %s", r.Status, r.Stderr)
	}
	r := j.Sh("cr-dump --source classical < job.ticket > classical.cr")
	j.MustSh("cr-thaw < job.ticket")
	j.StoodStill(begin)
	switch r.Status {
	case 0:
	case 3, 5:
		t.Logf("refused: %s", r.Stderr)
		if strings.Contains(r.Stderr, "SEM_UNDO") {
			return // somebody on this machine uses semaphores at the moment
		}
		if !refusedClassically[j.Name] {
			t.Errorf("the classical source refuses what it should know")
		}
		return
	default:
		t.Fatalf("status %d: %s", r.Status, r.Stderr)
	}
	j.Check("classical.cr")
	bpf, classical := records(t, j, "bpf.cr"), records(t, j, "classical.cr")
	for i := range max(len(bpf), len(classical)) {
		if i >= len(bpf) || i >= len(classical) {
			t.Errorf("%d records by bpf, %d the classical way", len(bpf), len(classical))
			break
		}
		if bpf[i] != classical[i] {
			t.Errorf("record %d:\nbpf:       %s\nclassical: %s", i, clip(bpf[i], classical[i]), clip(classical[i], bpf[i]))
			break
		}
	}
}

// refusedClassically are the fixtures that hold something of which the classical source does not know enough.
var refusedClassically = map[string]bool{
	"fanotify":     true, // what waits in it, and how it was made
	"unheard":      true, // the same
	"vfork":        true, // a parent that waits cannot be stopped, nor asked
	"vforkthread":  true,
	"threadtimers": true, // of which thread a timer counts the time

	"unixsocks":   true, // what waits in sockets cannot be seen without taking it
	"unixsenders": true, // the same
	"unixoob":     true, // the same
	"tcpurgent":   true, // what is in sockets
	"udp":         true, // what is in sockets
	"rawsock":     true,
	"sockopts":    true,
	"netlinks":    true,
	"sysvsem":     true, // adjustments of semaphores
	"mqueues":     true, // what is in POSIX message queues
	"sigio":       true, // O_ASYNC of pipes, and who set a receiver of signals
	"leases":      true, // by which number one was taken, and who set its receiver of signals
	"watchgone":   true, // which open file is the inode that is watched
	"uring":       true, // how far the kernel has come in its rings
	"uringwaits":  true, // the same
	"aio":         true, // what of it is in flight
	"inodes":      true, // whether a file of O_TMPFILE may be linked
	"attributes":  true, // the default timer slack of a real-time thread
	"seccomp":     true, // cannot be asked
	"taskstate":   true, // cannot be asked
	"ptys":        true, // what is in a terminal
	"sessions":    true, // the same
	"terminal":    true, // the same
	"prctls":      true, // the Landlock domain of a thread with PR_SET_NO_NEW_PRIVS, which could have made one
	"mapflock":    true, // through which open file a lock was taken that no descriptor shows
	"sigiosocket": true, // who set a receiver of signals
	"java":        true, // it has a unix socket
	"numa":        true, // the policy of a mapping is only text in numa_maps
	"creds":       true, // the session keyring and the Landlock domain of a thread without the rights that it had
}

// clip shows a long line around where it differs from another.
func clip(s, other string) string {
	at := 0
	for at < len(s) && at < len(other) && s[at] == other[at] {
		at++
	}
	const before, after = 300, 300
	return fmt.Sprintf("%.40s ... %s", s, s[max(at-before, 0):min(at+after, len(s))])
}

// records returns the records of an image as lines of JSON without what may differ.
func records(t *testing.T, j *harness.Job, image string) []string {
	t.Helper()
	j.MustSh("cr-filter json < " + image + " > " + image + ".json")
	b, err := os.ReadFile(j.Image(image + ".json"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	// A visit writes to pages that were shared since a fork: then other ones are.
	unshared := strings.Contains(string(b), `{"type":"cow",`)
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		var head struct {
			Type string          `json:"type"`
			Meta json.RawMessage `json:"meta"`
		}
		if err := json.Unmarshal([]byte(line), &head); err != nil {
			t.Fatalf("%s: %v", image, err)
		}
		if unshared && (head.Type == "pages" || head.Type == "cow" || head.Type == "cow.ranges") {
			continue
		}
		switch head.Type {
		case "end":
			line = regexp.MustCompile(`"count":\d+,?`).ReplaceAllString(line, "") // counted above
		case "thread":
			line = withoutRestart(t, line)
		case "pages":
			line = withoutRseq(line)
		}
		for _, d := range differ {
			if d.record == head.Type {
				line = d.re.ReplaceAllString(line, "")
			}
		}
		out = append(out, line)
	}
	return out
}

// withoutRestart leaves out the registers that say how an interrupted call goes on: the result, the number, the program
// counter.
func withoutRestart(t *testing.T, line string) string {
	t.Helper()
	var record map[string]any
	if err := json.Unmarshal([]byte(line), &record); err != nil {
		t.Fatal(err)
	}
	meta, _ := record["meta"].(map[string]any)
	for _, r := range list(meta["regs"]) {
		set, _ := r.(map[string]any)
		if set["note"] != float64(1) {
			continue
		}
		data, _ := set["data"].(map[string]any)
		text, _ := data["$bytes"].(string)
		regs, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		const rax, origRAX, rip = 10, 15, 16 // struct user_regs_struct of x86-64
		for _, i := range []int{rax, origRAX, rip} {
			copy(regs[8*i:], make([]byte, 8))
		}
		data["$bytes"] = base64.StdEncoding.EncodeToString(regs)
	}
	b, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// withoutRseq leaves out what the kernel writes into memory whenever a thread has run on another processor: the
// registered areas of rseq(2). They are small numbers in otherwise equal pages, so of pages only the places are compared; that
// reading memory needs no source is shown by the fixtures themselves.
func withoutRseq(line string) string {
	before, _, _ := strings.Cut(line, `,"payload":`)
	return before
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}
