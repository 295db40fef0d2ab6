package harness

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// Flavour is one way through the pipeline.
type Flavour struct {
	Name string
	What string
	Run  func(j *Job)
	// Leaves says that the tree was never ended: nothing of it may have changed.
	Leaves bool
	// PidNS: the job must be init of its own pid namespace.
	PidNS bool
	// Cgroup: the job must be alone in cgroups of its own.
	Cgroup bool
}

// Flavours are all ways; every fixture goes through every one.
var Flavours = []Flavour{
	{Name: "untouched", What: "no command at all: shows that the fixture itself is right", Leaves: true, Run: func(*Job) {}},
	{Name: "go-on", What: "cr-dump PID, and the tree goes on", Leaves: true, Run: goOn},
	{Name: "kill-restore", What: "cr-dump --kill, cr-restore", Run: killRestore},
	{Name: "twice", What: "dumped and restored, and again", Run: func(j *Job) { killRestore(j); killRestore(j) }},
	{Name: "lz4", What: "through cr-filter lz4, and back through unlz4", Run: throughLZ4},
	{Name: "json", What: "through cr-filter json and unjson", Run: throughJSON},
	{Name: "ticket", What: "cr-freeze | cr-dump, cr-thaw --kill, cr-restore --frozen | cr-thaw", Run: byTicket},
	{Name: "ticket-on", What: "cr-freeze | cr-dump twice, byte for byte the same, and cr-thaw", Leaves: true, Run: ticketOn},
	{Name: "own-cgroup", What: "alone in cgroups of its own, which the freezer uses", Cgroup: true, Run: killRestore},
	{Name: "v1", What: "frozen by the cgroup v1 freezer: dumped and let go on, then dumped, killed and restored", Run: byFreezer("v1")},
	{Name: "sigstop", What: "the same, stopped by SIGSTOP", Run: byFreezer("sigstop")},
	{Name: "pidns", What: "init of a pid namespace", PidNS: true, Run: killRestore},
	{Name: "refused-then-on", What: "a freeze and thaw without a dump", Leaves: true, Run: func(j *Job) {
		j.MustSh("cr-freeze $PID > t.ticket; cr-filter check < t.ticket > /dev/null; cr-thaw < t.ticket")
	}},
}

func goOn(j *Job) {
	j.T.Helper()
	j.MustSh("cr-dump $PID > go-on.cr")
	j.Check("go-on.cr")
}

func killRestore(j *Job) {
	j.T.Helper()
	name := fmt.Sprintf("image%d.cr", j.Restore)
	j.DumpKill("cr-dump --kill $PID > " + name)
	j.Check(name)
	j.RestoreSh("cr-restore < " + name + " > restored.ticket")
	j.Check("restored.ticket")
}

// byFreezer uses another freezer than the one that cr-dump would choose.
func byFreezer(way string) func(*Job) {
	return func(j *Job) {
		j.T.Helper()
		j.MustSh("cr-dump --freezer " + way + " $PID > go-on.cr")
		j.Check("go-on.cr")
		j.DumpKill("cr-dump --freezer " + way + " --kill $PID > image.cr")
		j.RestoreSh("cr-restore < image.cr > restored.ticket")
	}
}

func throughLZ4(j *Job) {
	j.T.Helper()
	j.DumpKill("cr-dump --kill $PID | tee plain.cr | cr-filter lz4 > small.cr")
	j.Check("small.cr")
	j.MustSh("cr-filter unlz4 < small.cr | cmp - plain.cr")
	j.RestoreSh("cr-restore < small.cr > restored.ticket")
}

func throughJSON(j *Job) {
	j.T.Helper()
	j.DumpKill("cr-dump --kill $PID | tee plain.cr | cr-filter json | cr-filter unjson > back.cr")
	j.MustSh("cmp plain.cr back.cr")
	j.Check("back.cr")
	j.RestoreSh("cr-filter json < plain.cr | cr-filter unjson | cr-restore > restored.ticket")
}

func byTicket(j *Job) {
	j.T.Helper()
	j.DumpKill("cr-freeze $PID | tee job.ticket | cr-dump > image.cr; cr-thaw --kill < job.ticket")
	j.Check("job.ticket")
	j.Check("image.cr")
	j.RestoreSh("cr-restore --frozen < image.cr > frozen.ticket")
	j.Check("frozen.ticket")
	j.MustSh("cr-thaw < frozen.ticket")
	j.Thawed()
}

func ticketOn(j *Job) {
	j.T.Helper()
	j.MustSh("cr-freeze $PID > job.ticket; cr-dump < job.ticket > one.cr; cr-dump < job.ticket > two.cr; cr-thaw < job.ticket")
	one, err := os.ReadFile(j.Image("one.cr"))
	if err != nil {
		j.T.Fatal(err)
	}
	two, err := os.ReadFile(j.Image("two.cr"))
	if err != nil {
		j.T.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		// Being stopped by a dump costs a task CPU time of its own, so what is left of timers of CPU time (clocks -2 and -6, ITIMER_VIRTUAL and ITIMER_PROF), and with it
		// the sum of the end record, is the one thing that may differ: cr-stream(5).
		const mask = `sed -E 's/("clock":-[26],[^}]*"left":)[0-9]+/\1-/g; s/("itimers":\[\{[^}]*\},)[^]]*/\1-/; /^\{"type":"end"/d'`
		r := j.Sh("diff <(cr-filter json < one.cr | " + mask + ") <(cr-filter json < two.cr | " + mask + ") | cut -c1-400 | head -20")
		if r.Status == 0 {
			return
		}
		j.T.Errorf("%s: two dumps of one frozen tree differ (%d and %d bytes):\n%s", j.Name, len(one), len(two), r.Stdout)
	}
	j.Check("one.cr")
}

// Through runs a fixture through one flavour, from its start to its own verdict.
func Through(t testing.TB, fixture string, f Flavour, o Options) {
	t.Helper()
	o.PidNS = o.PidNS || f.PidNS
	o.Cgroup = o.Cgroup || f.Cgroup
	j := StartFixture(t, fixture, o)
	j.PutThrough(f)
	j.Finish()
}

// PutThrough runs the flavour on a job and looks whether a tree that was left alone is as it was.
func (j *Job) PutThrough(f Flavour) {
	j.T.Helper()
	if !f.Leaves {
		f.Run(j)
		return
	}
	before := j.Footprint()
	begin := Monotonic()
	f.Run(j)
	j.StoodStill(begin)
	j.CheckUnharmed(before)
}
