package test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// These tests walk all failpoints (engine/internal/failpoint): at each of them the command fails once with an error and once kills itself
// with SIGKILL when it comes there for the first time, and where that matters in the middle of many. Afterwards the program must go on as if
// nothing had happened, or, of a restore, nothing of it must be there; and no status may lie. A name that no command comes by fails the
// test. Where several walks come by the same name one of them stops there; with CRPIPE_FAILPOINTS=all (make stress) each does.

// namesOfFailpoints reads the table, which this package may not import.
func namesOfFailpoints(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(harness.Root(), "engine", "internal", "failpoint", "names.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^\t"([^"]+)",`).FindAllSubmatch(data, -1) {
		names = append(names, string(m[1]))
	}
	if len(names) < 50 {
		t.Fatalf("only %d failpoints in the table", len(names))
	}
	return names
}

// A walk is one way to come by failpoints.
type walk struct {
	name string
	t    *testing.T
	j    *harness.Job
	cmd  string
	args []string
	out  string // the file, in AUX, that is the command's output
	want func(name string) bool

	prepare func()                     // makes what the command needs
	verify  func(r attempt)            // looks at what it has left
	tasks   int                        // of the whole tree
	files   []string                   // in the program's directory
	before  harness.Footprint          // of the tree that runs
	met     map[string]int             // by the trace
	done    func(name string, met int) // tells what has been walked
}

// attempt is one run of a command that was told to fail.
type attempt struct {
	spec   string // what it was told
	name   string // of the failpoint
	status int    // -1: killed
	stderr string
}

func (r attempt) String() string {
	return fmt.Sprintf("%s: status %d, %s", r.spec, r.status, strings.TrimSpace(r.stderr))
}

// start runs the command with a failpoint, or with the trace.
func (w *walk) start(spec string) attempt {
	w.t.Helper()
	cmd := w.j.CommandIn(harness.FailingBinaries(w.t), w.cmd, w.args...)
	cmd.Env = append(cmd.Env, "CRPIPE_FAILPOINT="+spec)
	words, err := os.Create(w.j.Image("words"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer words.Close()
	cmd.Stderr = words
	if w.out != "" && !slices.Contains(w.args, "-o") {
		out, err := os.Create(w.j.Image(w.out))
		if err != nil {
			w.t.Fatal(err)
		}
		defer out.Close()
		cmd.Stdout = out
	}
	err = cmd.Run()
	r := attempt{spec: w.cmd + " " + strings.Join(w.args, " ") + " with " + spec}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		r.status = exit.ExitCode()
	default:
		w.t.Fatal(err)
	}
	if !w.j.CommandsGone(harness.Patience) {
		w.t.Fatalf("%v: processes are left: %v", r, w.j.Commands())
	}
	data, err := os.ReadFile(w.j.Image("words")) // its guard may have said something too
	if err != nil {
		w.t.Fatal(err)
	}
	r.stderr = string(data)
	return r
}

// trace finds out what there is on the way.
func (w *walk) trace() {
	w.t.Helper()
	w.prepare()
	r := w.start("trace")
	if r.status != 0 {
		w.t.Fatalf("%v%s", r, w.j.Evidence())
	}
	w.met = map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^failpoint (\S+)$`).FindAllStringSubmatch(r.stderr, -1) {
		w.met[m[1]]++
	}
	r.stderr = ""
	w.verify(r)
}

// all walks.
func (w *walk) all() {
	w.t.Helper()
	w.trace()
	all := os.Getenv("CRPIPE_FAILPOINTS") == "all"
	for _, name := range namesOfFailpoints(w.t) {
		n := w.met[name]
		if n == 0 || w.want != nil && !w.want(name) && !all {
			continue
		}
		specs := []string{name, name + ":kill"}
		if n > 1 && (all || among(name, "freeze.moved release.detached kill.sent restore.untied restore.detached")) {
			specs = append(specs, fmt.Sprintf("%s@%d:kill", name, (n+1)/2))
		}
		for i, spec := range specs {
			// How often it comes there may differ from one time to the next: what a thread is doing when it is frozen decides.
			hit := false
			for try := 0; !hit && try < 10 && (try == 0 || i < 2); try++ {
				w.prepare()
				r := w.start(spec)
				r.name = name
				hit = r.status != 0
				switch kill := strings.HasSuffix(spec, ":kill"); {
				case !hit:
				case kill && r.status != -1:
					w.t.Errorf("%v, and was to be killed", r)
				case !kill && (r.status != 1 || !strings.Contains(r.stderr, "failpoint "+name)):
					w.t.Errorf("%v: want status 1 and the failpoint named", r)
				}
				if w.verify(r); w.t.Failed() {
					w.t.Fatalf("%v%s", r, w.j.Evidence())
				}
			}
			if !hit && i < 2 {
				w.t.Errorf("%s %v does not come by %s", w.cmd, w.args, spec)
			}
			w.done(name, n)
		}
	}
}

// walked collects what all walks have come by.
type walked map[string]bool

func (m walked) new(t *testing.T, j *harness.Job, name, cmd string, args ...string) *walk {
	return &walk{name: name, t: t, j: j, cmd: cmd, args: args, prepare: func() {}, done: func(name string, _ int) { m[name] = true }}
}

// unharmed is a verify for a tree that runs on whatever happens.
func (w *walk) unharmed(r attempt) {
	w.t.Helper()
	w.j.CheckUnharmed(w.before)
	w.j.CheckCgroups()
	goesOn(w.t, w.j, 0)
}

// exists says whether a file is there, in AUX.
func (w *walk) exists(name string) bool {
	_, err := os.Stat(w.j.Image(name))
	return err == nil
}

// TestFailpoints walks all of them.
func TestFailpoints(t *testing.T) {
	harness.NeedRoot(t)
	data, err := os.ReadFile(filepath.Join(harness.Binaries(t), "cr-dump"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("CRPIPE_FAILPOINT")) {
		t.Error("there are failpoints in the ordinary cr-dump")
	}
	seen := walked{}
	for _, way := range []string{"v2", "v1", "sigstop"} {
		t.Run("freeze-"+way, func(t *testing.T) { walkFreeze(t, seen, way) })
	}
	t.Run("dump", func(t *testing.T) { walkDump(t, seen, harness.Options{}, "") })
	t.Run("dump-v1", func(t *testing.T) { walkDump(t, seen, promised("v1"), "hold. release.", "--freezer", "v1") })
	t.Run("dump-classical", func(t *testing.T) {
		walkDump(t, seen, harness.Options{User: ordinary}, "remote. visit. hold.", "--source", "classical")
	})
	t.Run("dump-large", func(t *testing.T) { walkLarge(t, seen) })
	t.Run("dump-container", func(t *testing.T) { walkContainer(t, seen) })
	t.Run("dump-flight", func(t *testing.T) { walkFlight(t, seen, false) })
	t.Run("dump-flight-ticket", func(t *testing.T) { walkFlight(t, seen, true) })
	t.Run("dump-kill-v2", func(t *testing.T) { walkDumpKill(t, seen, "v2") })
	t.Run("dump-kill-tcp", func(t *testing.T) { walkTCP(t, seen) })
	t.Run("ticket-tcp", func(t *testing.T) { walkTicketTCP(t, seen) })
	t.Run("storm", func(t *testing.T) { walkStorm(t, seen) })
	for _, way := range []string{"v2", "v1", "sigstop"} {
		t.Run("dump-ticket-"+way, func(t *testing.T) { walkTicket(t, seen, way) })
		if way != "v2" {
			t.Run("dump-kill-"+way, func(t *testing.T) { walkDumpKill(t, seen, way) })
		}
	}
	t.Run("thaw-kill", func(t *testing.T) { walkThawKill(t, seen) })
	t.Run("restore", func(t *testing.T) { walkRestore(t, seen, "busy", false) })
	t.Run("restore-frozen", func(t *testing.T) { walkRestore(t, seen, "busy", true) })
	for _, fixture := range []string{"tree", "cow", "stopped", "zombies", "fifogone", "sysvmsg", "vfork"} {
		t.Run("restore-"+fixture, func(t *testing.T) { walkRestore(t, seen, fixture, false) })
	}
	if t.Failed() {
		return // what was left out is no news
	}
	for _, name := range namesOfFailpoints(t) {
		if !seen[name] {
			t.Errorf("no command comes by the failpoint %s", name)
		}
	}
}

// promised are the program's options: with v1 and sigstop a call may return EINTR when the command is killed while it lets go (cr-freeze(1)).
func promised(way string) harness.Options {
	if way == "v2" {
		return harness.Options{}
	}
	return harness.Options{Args: []string{"eintr"}}
}

// walkFreeze: cr-freeze leaves a frozen tree only with a ticket; and cr-thaw of that.
func walkFreeze(t *testing.T, seen walked, way string) {
	j := harness.StartFixture(t, "busy", promised(way))
	goesOn(t, j, -1)
	w := seen.new(t, j, "freeze", "cr-freeze", "--freezer", way, "-o", j.Image("ticket"), strconv.Itoa(j.Pid))
	w.before = j.Footprint()
	w.prepare = func() { _ = os.Remove(j.Image("ticket")) }
	w.verify = func(r attempt) {
		t.Helper()
		switch r.status {
		case 0:
			j.MustSh("cr-thaw < ticket")
		case -1: // the guard has thawed, or was called off
			if w.exists("ticket") {
				j.Sh("cr-thaw < ticket")
			}
		}
		w.unharmed(r)
	}
	w.all()

	w = seen.new(t, j, "thaw", "cr-thaw", "-i", j.Image("ticket"))
	w.before = j.Footprint()
	w.prepare = func() { j.MustSh("cr-freeze --freezer " + way + " $PID > ticket") }
	w.verify = func(r attempt) {
		t.Helper()
		if r.status != 0 {
			j.Sh("cr-thaw < ticket") // it is frozen still, or not
		}
		w.unharmed(r)
	}
	w.all()
	j.Finish()
}

// among says whether a name begins with one of some words.
func among(name, prefixes string) bool {
	return slices.ContainsFunc(strings.Fields(prefixes), func(p string) bool { return strings.HasPrefix(name, p) })
}

// walkDump walks what has not been, and what is worth it anyway.
func walkDump(t *testing.T, seen walked, o harness.Options, again string, args ...string) {
	j := harness.StartFixture(t, "busy", o)
	goesOn(t, j, -1)
	w := seen.new(t, j, "dump", "cr-dump", append(args, "-o", j.Image("image"), strconv.Itoa(j.Pid))...)
	w.before = j.Footprint()
	w.prepare = func() { _ = os.Remove(j.Image("image")) }
	w.verify = func(r attempt) {
		t.Helper()
		if w.exists("image") {
			j.Check("image")
		}
		if w.exists("image") != (r.status == 0) {
			t.Errorf("%v, and whether there is an image: %v", r, w.exists("image"))
		}
		w.unharmed(r)
	}
	w.want = func(name string) bool { return !seen[name] || among(name, again) }
	w.all()
	j.Finish()
}

// walkContainer is of a look that only containers get.
func walkContainer(t *testing.T, seen walked) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	j := harness.StartFixture(t, "busy", harness.Options{PidNS: true, Stdout: null, Stderr: null})
	goesOn(t, j, -1)
	args := []string{"--container", "-o", j.Image("image"), strconv.Itoa(j.Pid)}
	w := seen.new(t, j, "dump", "cr-dump", args...)
	w.before = j.Footprint()
	w.prepare = func() { _ = os.Remove(j.Image("image")) }
	w.want = func(name string) bool { return !seen[name] }
	w.verify = w.unharmed
	w.all()
	j.Finish()
}

// walkFlight has a descriptor in flight behind others, at which a dump cannot look without a change to the socket; the fixture sees one that is left.
func walkFlight(t *testing.T, seen walked, ticket bool) {
	j := harness.StartFixture(t, "unixsocks", harness.Options{})
	args := []string{"-o", j.Image("image")}
	if ticket {
		args = append(args, "-i", j.Image("ticket"))
	} else {
		args = append(args, strconv.Itoa(j.Pid))
	}
	w := seen.new(t, j, "dump", "cr-dump", args...)
	w.before = j.Footprint()
	w.prepare = func() {
		_ = os.Remove(j.Image("image"))
		if ticket {
			j.MustSh("cr-freeze $PID > ticket")
		}
	}
	w.want = func(name string) bool { return name == "look.peek" }
	w.verify = func(r attempt) {
		t.Helper()
		if w.exists("image") != (r.status == 0) {
			t.Errorf("%v, and whether there is an image: %v", r, w.exists("image"))
		}
		if ticket {
			j.MustSh("cr-thaw < ticket")
		}
		j.CheckUnharmed(w.before)
		j.CheckCgroups()
	}
	w.all()
	j.Finish()
}

// walkLarge is of what is done only for large memory.
func walkLarge(t *testing.T, seen walked) {
	j := harness.StartFixture(t, "crowd", harness.Options{Args: []string{"20", "20"}})
	w := seen.new(t, j, "dump", "cr-dump", "-o", j.Image("image"), strconv.Itoa(j.Pid))
	w.before = j.Footprint()
	w.prepare = func() { _ = os.Remove(j.Image("image")) }
	w.want = func(name string) bool { return !seen[name] || among(name, "dump.kept dump.written release.") }
	w.verify = func(r attempt) {
		t.Helper()
		if w.exists("image") != (r.status == 0) {
			t.Errorf("%v, and whether there is an image: %v", r, w.exists("image"))
		}
		j.CheckUnharmed(w.before)
		j.CheckCgroups()
	}
	w.all()
	j.Finish()
}

// walkTicket: a tree that was frozen before stays so.
func walkTicket(t *testing.T, seen walked, way string) {
	j := harness.StartFixture(t, "busy", promised(way))
	goesOn(t, j, -1)
	w := seen.new(t, j, "ticket", "cr-dump", "-i", j.Image("ticket"), "-o", j.Image("image"))
	w.before = j.Footprint()
	w.prepare = func() { _ = os.Remove(j.Image("image")); j.MustSh("cr-freeze --freezer " + way + " $PID > ticket") }
	w.verify = func(r attempt) {
		t.Helper()
		if w.exists("image") != (r.status == 0) {
			t.Errorf("%v, and whether there is an image: %v", r, w.exists("image"))
		}
		j.MustSh("cr-thaw < ticket")
		w.unharmed(r)
	}
	w.want = func(name string) bool { return among(name, "hold. release. dump.pages") }
	w.all()
	j.Finish()
}

// brought makes sure that the tree is there and runs, after a command that may have ended it.
func (w *walk) brought(r attempt, image string) {
	t, j := w.t, w.j
	t.Helper()
	switch left := j.Settled(harness.Patience); left {
	case 0:
		j.WaitGone()
		j.Check(image) // or the tree would be lost
		w.lastBeats(image)
		j.RestoreSh("cr-restore --allow-changed '*/.beat.*' < " + image + " > restored")
		w.before = j.Footprint()
		goesOn(t, j, 0)
	case w.tasks:
		if r.status == 0 {
			t.Errorf("%v, and the tree is there", r)
		}
		w.unharmed(r)
	default:
		t.Fatalf("%v: %d of %d processes are there%s", r, left, w.tasks, j.Evidence())
	}
	j.CheckCgroups()
}

// lastBeats puts the file back that busy was writing at the dump. With v1 and sigstop a tree may run for a moment when the command that is about
// to end it is killed (cr-freeze(1)): busy then renames it.
func (w *walk) lastBeats(image string) {
	w.t.Helper()
	r := w.j.Sh(`cr-filter json < ` + image + ` | grep -o '/[^"]*/[.]beat[.][^"]*' | sort -u`)
	for _, name := range strings.Fields(r.Stdout) {
		if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
			if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// walkDumpKill: either there is an image and nothing else, or the tree and no image.
func walkDumpKill(t *testing.T, seen walked, way string) {
	j := harness.StartFixture(t, "busy", promised(way))
	goesOn(t, j, -1)
	w := seen.new(t, j, "kill", "cr-dump", "--kill", "--freezer", way, "-o", j.Image("image"), strconv.Itoa(j.Pid))
	w.tasks = len(j.Tasks())
	w.before = j.Footprint()
	w.prepare = func() { _ = os.Remove(j.Image("image")) }
	w.want = func(name string) bool { return among(name, "kill. dump.committed dump.written") }
	w.verify = func(r attempt) { t.Helper(); w.brought(r, "image") }
	w.all()
	j.Finish()
}

// walkTCP has a connection with the outside, which goes on whatever happens to the command.
func walkTCP(t *testing.T, seen walked) {
	j := harness.StartFixture(t, "teller", harness.Options{Args: []string{"127.0.0.1"}})
	port, err := os.ReadFile(filepath.Join(j.Dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp4", "127.0.0.1:"+strings.TrimSpace(string(port)))
	if err != nil {
		t.Fatal(err)
	}
	c := count(conn.(*net.TCPConn))
	w := seen.new(t, j, "kill", "cr-dump", "--kill", "-o", j.Image("image"), strconv.Itoa(j.Pid))
	w.tasks = len(j.Tasks())
	w.prepare = func() { _ = os.Remove(j.Image("image")) }
	w.want = func(name string) bool { return among(name, "look.network dump.committed dump.held kill.") }
	w.verify = func(r attempt) {
		t.Helper()
		if j.Settled(harness.Patience) == 0 {
			j.WaitGone()
			j.Check("image")
			j.RestoreSh("cr-restore < image > restored")
		} else if r.status == 0 {
			t.Errorf("%v, and the tree is there", r)
		}
		c.goesOn(t)
	}
	w.all()
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}

// walkTicketTCP has such a connection of a tree that is dumped by a ticket, thawed, and ended by it.
func walkTicketTCP(t *testing.T, seen walked) {
	j := harness.StartFixture(t, "teller", harness.Options{Args: []string{"127.0.0.1"}})
	port, err := os.ReadFile(filepath.Join(j.Dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp4", "127.0.0.1:"+strings.TrimSpace(string(port)))
	if err != nil {
		t.Fatal(err)
	}
	c := count(conn.(*net.TCPConn))
	w := seen.new(t, j, "ticket", "cr-dump", "-i", j.Image("ticket"), "-o", j.Image("image"))
	w.prepare = func() { _ = os.Remove(j.Image("image")); j.MustSh("cr-freeze $PID > ticket") }
	w.want = func(name string) bool { return among(name, "dump.left dump.written") }
	w.verify = func(attempt) {
		t.Helper()
		j.MustSh("cr-thaw < ticket")
		c.goesOn(t)
	}
	w.all()

	w = seen.new(t, j, "thaw", "cr-thaw", "-i", j.Image("ticket"))
	w.prepare = func() { j.MustSh("cr-freeze $PID > ticket; cr-dump < ticket > image") }
	w.want = func(name string) bool { return among(name, "hold.locked thaw.lifted release.thawed") }
	w.verify = func(r attempt) {
		t.Helper()
		if r.status != 0 {
			j.Sh("cr-thaw < ticket") // it is frozen still, or not
		}
		c.goesOn(t)
	}
	w.all()

	w = seen.new(t, j, "kill", "cr-thaw", "--kill", "-i", j.Image("ticket"))
	w.prepare = func() { j.MustSh("cr-freeze $PID > ticket; cr-dump < ticket > image") }
	w.want = func(name string) bool { return among(name, "thaw.kept kill.") }
	w.verify = func(r attempt) {
		t.Helper()
		if r.status != 0 {
			j.Sh("cr-thaw < ticket") // it is there still, or not
		}
		if j.Settled(harness.Patience) == 0 {
			j.WaitGone()
			j.RestoreSh("cr-restore < image > restored")
		}
		c.goesOn(t)
	}
	w.all()
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}

func walkThawKill(t *testing.T, seen walked) {
	j := harness.StartFixture(t, "busy", harness.Options{})
	goesOn(t, j, -1)
	w := seen.new(t, j, "kill", "cr-thaw", "--kill", "-i", j.Image("ticket"))
	w.tasks = len(j.Tasks())
	w.before = j.Footprint()
	w.prepare = func() { j.MustSh("cr-freeze $PID > ticket; cr-dump < ticket > image") }
	w.verify = func(r attempt) {
		t.Helper()
		if r.status != 0 {
			j.Sh("cr-thaw < ticket") // it is there still, or not
		}
		w.brought(r, "image")
	}
	w.all()
	j.Finish()
}

// walkStorm is of the freeze of a tree that forks as fast as it can.
func walkStorm(t *testing.T, seen walked) {
	j := startStorm(t)
	w := seen.new(t, j, "freeze", "cr-freeze", "-o", j.Image("ticket"), strconv.Itoa(j.Pid))
	w.want = func(name string) bool { return name == "freeze.caught" }
	w.prepare = func() { _ = os.Remove(j.Image("ticket")) }
	w.verify = func(r attempt) {
		t.Helper()
		if r.status == 0 {
			j.MustSh("cr-thaw < ticket")
		}
		stormGoesOn(t, j)
		j.CheckCgroups()
	}
	w.all()
	j.Finish()
}

// walkRestore: nothing is there, or, once the tree was let go, all of it.
func walkRestore(t *testing.T, seen walked, fixture string, frozen bool) {
	fx := special[fixture]
	j := harness.StartFixture(t, fixture, harness.Options{Args: fx.args, PidNS: fx.pidns})
	if fixture == "busy" {
		goesOn(t, j, -1)
	}
	args := []string{"-i", j.Image("image"), "-o", j.Image("ticket")}
	if frozen {
		args = append(args, "--frozen")
	}
	w := seen.new(t, j, "restore", "cr-restore", args...)
	w.want = func(name string) bool {
		return fixture == "busy" && !frozen || !seen[name] || frozen && strings.HasPrefix(name, "restore.")
	}
	for _, pid := range j.Tasks() {
		if harness.State(pid) != 'Z' {
			w.tasks++
		}
	}
	dumpAtRest(j)
	w.files = filesIn(t, j.Dir)
	ran := func() uint64 {
		if fixture != "busy" {
			return 0
		}
		return beat(t, j)
	}
	was := ran()
	w.prepare = func() { _ = os.Remove(j.Image("ticket")) }
	w.verify = func(r attempt) {
		t.Helper()
		j.Restore++
		left := j.Settled(harness.Patience)
		switch left {
		case 0:
			if r.status == 0 {
				t.Errorf("%v, and nothing is there", r)
			}
			// But for the moments in which threads are being let go one by one.
			moment := among(r.name, "restore.untied restore.detached restore.committed")
			if ran() != was && !moment {
				t.Errorf("%v: nothing is there, and yet it has run", r)
			}
			for _, name := range filesIn(t, j.Dir) {
				if moment && fixture != "busy" && !slices.Contains(w.files, name) { // what it has written in such a moment
					_ = os.Remove(filepath.Join(j.Dir, name))
				}
			}
			if r.name == "restore.named" { // cr-restore(1), CAVEATS
				names, _ := filepath.Glob(filepath.Join(j.Dir, ".cr-restore.*"))
				for _, name := range names {
					_ = os.Remove(name)
				}
			}
			if now := filesIn(t, j.Dir); !slices.Equal(now, w.files) && fixture != "busy" {
				t.Errorf("%v: files are left: %v, there were %v", r, now, w.files)
			}
		case w.tasks:
			if r.status > 0 {
				t.Errorf("%v, and the tree is there", r)
			}
			if frozen {
				j.MustSh("cr-thaw < ticket")
			}
			if fixture == "busy" {
				goesOn(t, j, 0)
			}
			dumpAtRest(j)
			was = ran()
		default:
			t.Fatalf("%v: %d of %d processes are there%s", r, left, w.tasks, j.Evidence())
		}
		j.WaitGone()
		j.CheckCgroups()
	}
	w.all()
	j.RestoreSh("cr-restore < image > ticket")
	j.Finish()
}

// dumpAtRest dumps and ends the tree when busy is not just writing one of the files that it renames: a tree that a failing restore lets
// run for a moment may do that, and could not be restored again.
func dumpAtRest(j *harness.Job) {
	j.T.Helper()
	for {
		j.DumpKill("cr-dump --kill $PID > image")
		if j.Sh("cr-filter json < image | grep -qF /.beat.").Status != 0 {
			return
		}
		j.RestoreSh("cr-restore < image > ticket")
		goesOn(j.T.(*testing.T), j, 0)
	}
}

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
