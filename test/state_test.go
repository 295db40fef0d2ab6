package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// TestStateKept reads everything that /proc shows of a frozen tree, dumps, kills and restores it, and reads everything again: no difference but
// those in harness/ignored.go. The fixture then says what it has found itself.
func TestStateKept(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range fixtures(t) {
		fx := special[name]
		if fx.pidns {
			continue // its pids differ from outside by nature
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, name, harness.Options{Args: fx.args})
			compareState(t, j)
			j.Finish()
		})
	}
}

// TestStateOfRealPrograms is the same for the real programs, at a random moment of their work.
func TestStateOfRealPrograms(t *testing.T) {
	harness.NeedRoot(t)
	for _, p := range programs() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			rnd := seeded(t)
			j := p.start(t)
			time.Sleep(time.Duration(rnd.Int63n(int64(p.takes))))
			if !j.Ended() {
				told := j.AskTasks()
				compareState(t, j)
				compareTold(t, j, told)
			}
			j.Verdict(120 * time.Second)
		})
	}
}

// compareTold asks the tasks that are still there again what prctl(2) tells them. Those that have ended or run another program since have
// no equal among them.
func compareTold(t *testing.T, j *harness.Job, before map[string]string) {
	t.Helper()
	after := j.AskTasks()
	same := 0
	for k, v := range before {
		switch now, ok := after[k]; {
		case ok && now != v && strings.Contains(k, " PR_FUTEX_HASH_GET_SLOTS"): // the kernel makes it larger when a thread is born
			same++
		case ok && now != v:
			t.Errorf("%s says %s, it was %s", k, now, v)
		case ok:
			same++
		}
	}
	if len(before) == 0 || same == 0 && len(after) > 0 {
		t.Errorf("%d values before and %d after, none of them comparable", len(before), len(after))
	}
}

// TestGettersAreAll: what fixtures and the comparison ask for is everything that the kernel can be asked, by the names in its headers.
func TestGettersAreAll(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatalf("finding golang.org/x/sys: %v", err)
	}
	// x/sys is generated from the headers of a newer kernel than the one that a distribution's linux-libc-dev has.
	headers := []string{
		filepath.Join(strings.TrimSpace(string(out)), "unix", "zerrors_linux.go"), filepath.Join(strings.TrimSpace(string(out)), "unix", "zerrors_linux_amd64.go"),
		"/usr/include/linux/prctl.h", "/usr/include/linux/fcntl.h", "/usr/include/asm-generic/fcntl.h",
	}
	prctls, err := harness.PrctlGetters()
	if err != nil {
		t.Fatal(err)
	}
	fcntls := harness.FcntlGetters()
	name := regexp.MustCompile(`(?m)^(?:#\s*define)?\s+((?:PR|F)_[A-Z0-9_]*)`)
	getter := regexp.MustCompile(`_(GET|READ$|IS_SET$)|^F_.*_QUERY$`)
	found := map[string]bool{}
	for i, h := range headers {
		text, err := os.ReadFile(h)
		if err != nil && i > 1 && os.IsNotExist(err) {
			continue // no C headers here
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			if getter.MatchString(m[1]) {
				found[m[1]] = true
			}
		}
	}
	if len(found) < 45 {
		t.Errorf("only %d getters in %v", len(found), headers)
	}
	for n := range found {
		if !prctls[n] && !fcntls[n] {
			t.Errorf("%s is compared nowhere: test/testdata/prog/getters.h and test/harness/getters.go have the lists", n)
		}
	}
	for n := range prctls {
		if strings.HasPrefix(n, "PR_") && !found[n] {
			t.Errorf("%s is in no header", n)
		}
	}
}

// TestMountsKept: a tree in a mount namespace of its own has the same mounts afterwards, on each other as they were.
func TestMountsKept(t *testing.T) {
	harness.NeedRoot(t)
	prog := harness.Prog(t, "counter")
	j := harness.Start(t, prog, harness.Options{Name: "counter", PidNS: true,
		Shell: "mount -t proc -o hidepid=invisible,nosuid,noatime other /proc && exec " + prog + ` "$1"`})
	j.WaitFile("ready", 30*time.Second)
	mounts := func() harness.Snapshot {
		s := harness.Snapshot{}
		for k, v := range j.TakeSnapshot() {
			if _, what, ok := strings.Cut(k, " mountinfo "); ok {
				s[what] = v
			}
		}
		return s
	}
	before := mounts()
	j.DumpKill("cr-dump --kill $PID > image.cr")
	j.RestoreSh("cr-restore < image.cr > restored.ticket")
	if !strings.Contains(before["/proc 3"], "rw,nosuid,noatime - proc other rw,hidepid=invisible") {
		t.Errorf("/proc is not mounted as it should be: %v", before)
	}
	if diff := before.Diff(mounts()); len(diff) > 0 {
		t.Errorf("mounts differ after the restore:\n%s", strings.Join(diff, "\n"))
	}
	j.Finish()
}

// compareState freezes, dumps, kills and restores the job, and compares what is seen before and after.
func compareState(t *testing.T, j *harness.Job) {
	t.Helper()
	j.Freezes()
	if r := j.Sh("cr-freeze $PID > job.ticket"); r.Status != 0 {
		if !j.Ended() {
			t.Fatalf("cr-freeze: status %d: %s", r.Status, r.Stderr)
		}
		return
	}
	before := j.TakeSnapshot()
	if !j.DumpKill("cr-dump < job.ticket > image.cr && cr-thaw --kill < job.ticket || { s=$?; cr-thaw < job.ticket; exit $s; }") {
		return
	}
	j.RestoreSh("cr-restore --frozen < image.cr > frozen.ticket")
	after := j.TakeSnapshot()
	j.MustSh("cr-thaw < frozen.ticket")
	j.Thawed()
	if diff := before.Diff(after); len(diff) > 0 {
		more := ""
		if n := len(diff); n > 60 {
			diff, more = diff[:60], fmt.Sprintf("\n... and %d more", n-60)
		}
		t.Errorf("state differs after the restore:\n%s%s", strings.Join(diff, "\n"), more)
	}
}

// What the comparison lets pass is what crpipe(7) says, to the name.
func TestIgnoredIsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(harness.Root(), "man", "crpipe.7"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n.Ss What /proc shows afterwards\n")
	section, _, _ = strings.Cut(section, "\n.S")
	var said []string
	for _, line := range strings.Split(section, "\n") {
		if names, ok := strings.CutPrefix(line, ".It Va "); ok {
			for _, name := range strings.Split(names, " , ") {
				said = append(said, strings.TrimSpace(name))
			}
		}
	}
	slices.Sort(said)
	if want := harness.IgnoredNames(); !slices.Equal(said, want) {
		t.Errorf("crpipe(7) names\n%q, the comparison lets pass\n%q", said, want)
	}
}

// TestSnapshotSeesDifferences proves that the comparison can fail: two looks at a running program that counts, maps and opens.
func TestSnapshotSeesDifferences(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "busy", harness.Options{})
	before := j.TakeSnapshot()
	other := harness.StartFixture(t, "busy", harness.Options{})
	after := other.TakeSnapshot()
	if len(before) < 500 {
		t.Errorf("a snapshot of two processes with 16 threads has %d values only", len(before))
	}
	if diff := before.Diff(after); len(diff) < 500 {
		t.Errorf("two different trees differ in %d values only", len(diff))
	}
	if diff := before.Diff(before); len(diff) != 0 {
		t.Errorf("a snapshot differs from itself: %v", diff)
	}
	j.Finish()
	other.Finish()
}
