package test

import (
	"math/rand"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"crpipe/test/harness"
)

// These tests kill a random process of a command, the command itself or what is beside it, with SIGKILL at a random moment, many times
// (CRPIPE_KILLS; make stress does 300 of each), while a program with threads that check themselves runs. Afterwards the program must be
// right, untraced, running, in its cgroups, with no mapping or descriptor more or less.

// kills is how many.
func kills(t *testing.T) int { return number(t, "CRPIPE_KILLS", 40) }

// fullKills are those of make stress.
const fullKills = 300

// killer kills.
type killer struct {
	t     *testing.T
	j     *harness.Job
	rnd   *rand.Rand
	whole time.Duration // how long the command takes at the least: later moments would mostly meet nobody
	met   map[string]int
	round int
	slow  bool // a round takes about a second: half as many will do in a short run
}

// newKiller measures the command that run makes and starts.
func newKiller(t *testing.T, j *harness.Job, run func() *exec.Cmd) *killer {
	t.Helper()
	k := &killer{t: t, j: j, rnd: seeded(t), whole: time.Minute, met: map[string]int{}}
	for range 3 {
		cmd := run()
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v%s", cmd.Args, err, j.Evidence())
		}
		k.whole = min(k.whole, time.Since(begin))
	}
	return k
}

// more reports whether there is another round to come.
func (k *killer) more() bool {
	k.round++
	want, rounds := kills(k.t), 10
	if want < fullKills {
		rounds = 3
		if k.slow {
			want /= 2
		}
	}
	return k.met["command"]+k.met["guard"] < want && k.round <= rounds*want && !k.t.Failed()
}

// strike starts the command, kills one of its processes, and waits for the end of all. The error is the command's. A command whose guard
// dies must not mind.
func (k *killer) strike(cmd *exec.Cmd) (who string, err error) {
	t := k.t
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Duration(k.rnd.Int63n(int64(k.whole) + 1)))
	type target struct {
		pid int
		who string
	}
	var targets []target
	for _, pid := range k.j.Commands() {
		switch {
		case pid == cmd.Process.Pid:
			targets = append(targets, target{pid, "command"})
		case harness.Comm(pid) == "crpipe-guard":
			targets = append(targets, target{pid, "guard"})
		}
	}
	who = "nobody"
	if len(targets) > 0 {
		victim := targets[k.rnd.Intn(len(targets))]
		who = victim.who
		if err := harness.Kill(victim.pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH { //nolint:errorlint // a bare errno
			t.Fatal(err)
		}
	}
	k.met[who]++
	err = cmd.Wait()
	if !k.j.CommandsGone(harness.Patience) {
		t.Fatalf("round %d (%s killed): processes of %v left: %v", k.round, who, cmd.Args, k.j.Commands())
	}
	if err != nil && who != "command" {
		t.Errorf("round %d: without its %s the command says %v", k.round, who, err)
	}
	return who, err
}

// unharmed checks the program after a round.
func (k *killer) unharmed(before harness.Footprint, who string) {
	k.t.Helper()
	k.j.CheckUnharmed(before)
	k.j.CheckCgroups()
	goesOn(k.t, k.j, k.round)
	if k.t.Failed() {
		k.t.Fatalf("harmed in round %d, by the death of the %s%s", k.round, who, k.j.Evidence())
	}
}

func (k *killer) report(must ...string) {
	k.t.Helper()
	k.t.Logf("killed: %v; the whole command takes %v", k.met, k.whole)
	if kills(k.t) < fullKills {
		return // whom so few meet is chance: how long the guard is there beside a quick command
	}
	for _, who := range must {
		if k.met[who] == 0 {
			k.t.Errorf("the %s was never met", who)
		}
	}
}

func TestKilledDumpHarmsNothing(t *testing.T) { killedDump(t, harness.Options{}) }

// TestKilledClassicalDumpHarmsNothing: this way every thread is made to execute system calls, from which it finds home by itself. The
// program is an ordinary user's, who cannot be using other users' semaphores, which there may be on this machine.
func TestKilledClassicalDumpHarmsNothing(t *testing.T) {
	killedDump(t, harness.Options{User: ordinary}, "--source", "classical")
}

func killedDump(t *testing.T, o harness.Options, args ...string) {
	t.Helper()
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "busy", o)
	goesOn(t, j, -1)
	args = append(args, strconv.Itoa(j.Pid))
	k := newKiller(t, j, func() *exec.Cmd { return j.Command("cr-dump", args...) })
	before := j.Footprint()
	for k.more() {
		cmd := j.Command("cr-dump", append([]string{"-v"}, args...)...)
		if k.round%2 == 0 {
			cmd = j.Command("cr-dump", args...)
		}
		out, err := os.Create(j.Image("killed.cr"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = out
		who, err := k.strike(cmd)
		_ = out.Close()
		if err == nil { // what became of those beside it does not touch the image
			if r := j.Sh("cr-filter check < killed.cr"); r.Status != 0 {
				t.Errorf("round %d: the %s was killed and cr-dump says 0, but: %s", k.round, who, r.Stderr)
			}
		}
		k.unharmed(before, who)
	}
	k.report("command", "guard")
	j.Finish()
}

// TestKilledFreezeHarmsNothing: the tree is frozen only if there is a ticket.
func TestKilledFreezeHarmsNothing(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "busy", harness.Options{})
	goesOn(t, j, -1)
	freeze := func() *exec.Cmd { return j.Command("cr-freeze", "-o", j.Image("ticket"), strconv.Itoa(j.Pid)) }
	k := newKiller(t, j, func() *exec.Cmd {
		j.MustSh("if test -e ticket; then cr-thaw < ticket; fi")
		return freeze()
	})
	j.MustSh("cr-thaw < ticket; rm ticket")
	before := j.Footprint()
	frozen := 0
	for k.more() {
		who, err := k.strike(freeze())
		switch _, none := os.Stat(j.Image("ticket")); {
		case err == nil:
			j.MustSh("cr-thaw < ticket; rm ticket")
			frozen++
		case none == nil:
			// It was killed when the ticket was there: either it had called the guard off, or that has thawed.
			r := j.Sh("cr-thaw < ticket")
			if r.Status == 0 {
				frozen++
			}
			j.MustSh("rm ticket")
		}
		k.unharmed(before, who)
	}
	t.Logf("frozen: %d", frozen)
	k.report("command", "guard")
	j.Finish()
}

// TestKilledThawHarmsNothing: the tree runs, or is frozen as before and can be thawed.
func TestKilledThawHarmsNothing(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "busy", harness.Options{})
	goesOn(t, j, -1)
	before := j.Footprint()
	thaw := func() *exec.Cmd { return j.Command("cr-thaw", "-i", j.Image("ticket")) }
	k := newKiller(t, j, func() *exec.Cmd {
		j.MustSh("cr-freeze $PID > ticket")
		return thaw()
	})
	k.slow = true
	frozen := 0
	for k.more() {
		j.MustSh("cr-freeze $PID > ticket")
		who, err := k.strike(thaw())
		if err != nil {
			if r := j.Sh("cr-thaw < ticket"); r.Status == 0 {
				frozen++
			}
		}
		k.unharmed(before, who)
	}
	t.Logf("frozen still: %d", frozen)
	k.report("command", "guard")
	j.Finish()
}

// TestKilledRestoreLeavesNothing: either no task of the tree is there, or, when cr-restore had let them go already, all of them.
func TestKilledRestoreLeavesNothing(t *testing.T) {
	harness.NeedRoot(t)
	for name, frozen := range map[string]bool{"running": false, "frozen": true} {
		t.Run(name, func(t *testing.T) { testKilledRestore(t, frozen) })
	}
}

func testKilledRestore(t *testing.T, frozen bool) {
	j := harness.StartFixture(t, "busy", harness.Options{})
	goesOn(t, j, -1)
	tasks := len(j.Tasks())
	j.DumpKill("cr-dump --kill $PID > image.cr")
	restore := func() *exec.Cmd {
		args := []string{"-i", j.Image("image.cr"), "-o", j.Image("ticket")}
		if frozen {
			args = append(args, "--frozen")
		}
		return j.Command("cr-restore", args...)
	}
	again := func(round int) {
		if frozen {
			j.MustSh("cr-thaw < ticket")
		}
		goesOn(t, j, round)
		j.DumpKill("cr-dump --kill $PID > image.cr; rm -f ticket")
	}
	begin := time.Now()
	j.RestoreSh("cr-restore < image.cr > ticket")
	k := &killer{t: t, j: j, rnd: seeded(t), whole: time.Since(begin), met: map[string]int{}, slow: true}
	goesOn(t, j, -2)
	j.DumpKill("cr-dump --kill $PID > image.cr; rm -f ticket")
	outcome := map[string]int{}
	for k.more() {
		who, err := k.strike(restore())
		j.Restore++
		left := j.Settled(harness.Patience)
		switch {
		case left == 0:
			outcome["none"]++
			_ = os.Remove(j.Image("ticket")) // killed between the ticket and the end: its guard was not called off
		case left == tasks:
			outcome["all"]++
			again(k.round)
		default:
			t.Fatalf("round %d: %d of %d tasks are there after the death of the %s (%v)%s", k.round, left, tasks, who, err, j.Evidence())
		}
		if err == nil && left == 0 {
			t.Fatalf("round %d: cr-restore says 0 and nothing is there", k.round)
		}
		j.WaitGone()
		j.CheckCgroups()
	}
	t.Logf("left: %v", outcome)
	k.report("command")
	j.RestoreSh("cr-restore < image.cr > ticket")
	goesOn(t, j, -3)
	j.Finish()
}
