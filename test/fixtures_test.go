package test

import (
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/test/harness"
)

// fixture is a program of testdata/prog and what is special about running it.
type fixture struct {
	args  []string
	pidns bool          // runs only as init of a pid namespace
	ticks bool          // its timers send signals while it is frozen: two dumps of it differ
	not   string        // flavours that by nature take away what the fixture is about, or cannot see it
	needs func() string // why it cannot run here, "" if it can; may be nil
}

// special are the fixtures that are not run plainly; every other .c file is.
var special = map[string]fixture{
	"orphans":     {pidns: true},
	"sleeps":      {args: []string{"4000"}},
	"rain":        {ticks: true},
	"history":     {args: []string{"0x16"}},
	"deaf":        {not: "sigstop"},    // has a stop signal pending: TestPendingStop
	"continued":   {not: "sigstop"},    // a SIGSTOP ends the notice that its children have been continued
	"vfork":       {not: "sigstop v1"}, // neither can stop the parent: TestUninterruptible
	"vforkthread": {not: "sigstop v1"},
	"uring":       {needs: needsIOURing},
	"uringwaits":  {needs: needsIOURing},
	"tcp":         {ticks: true}, // delayed acknowledgements and repetitions go on, and time stamps
	"tcpurgent":   {ticks: true}, // as tcp
	"waiting":     {ticks: true}, // as tcp
}

func needsIOURing() string {
	off, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled") // since Linux 6.6
	if err == nil && string(off) == "2\n" {
		return "needs io_uring: kernel.io_uring_disabled is 2"
	}
	if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); errno == unix.ENOSYS {
		return "needs io_uring: the kernel does not have it"
	}
	return ""
}

// skip skips the test of a fixture that cannot run here.
func (f *fixture) skip(t *testing.T) {
	t.Helper()
	if f.needs != nil {
		if why := f.needs(); why != "" {
			t.Skip(why)
		}
	}
}

// own are programs that have a test of their own instead of the flavours.
var own = map[string]bool{"ipcshared": true, "stdfds": true, "quiet": true, "refused": true, "refusedtask": true, "refusedsock": true, "storm": true, "crowd": true, "traced": true, "teller": true}

// later are programs whose state may be refused by name so far: it is either kept whole or the dump says no.
var later = map[string]bool{"procshared": true}

func fixtures(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(harness.Root(), "test", "testdata", "prog", "*.c"))
	if err != nil || len(files) == 0 {
		t.Fatalf("finding fixtures: %v", err)
	}
	var names []string
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".c"); !own[name] && !later[name] {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// TestFixtures runs every fixture in every flavour. One of them:
//
//	go test ./test -run 'TestFixtures/memory/kill-restore$'
func TestFixtures(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range fixtures(t) {
		t.Run(name, func(t *testing.T) { allFlavours(t, name, false) })
	}
}

func allFlavours(t *testing.T, name string, compat bool) {
	fx := special[name]
	fx.skip(t)
	for _, f := range harness.Flavours {
		if slices.Contains(strings.Fields(fx.not), f.Name) {
			continue
		}
		if compat && name != "compat" && !slices.Contains(flavours32, f.Name) {
			continue
		}
		if fx.pidns && !f.PidNS && f.Cgroup {
			continue // a cgroup of its own would hold unshare too
		}
		if fx.ticks && f.Name == "ticket-on" {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			harness.Through(t, name, f, harness.Options{Args: fx.args, PidNS: fx.pidns, Compat: compat})
		})
	}
}

// TestOverlay has fixtures with files of every kind, deleted and mapped ones among them, on overlayfs, as in containers.
func TestOverlay(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range []string{"files", "deleted", "removed", "deletedmap", "locks", "memory"} {
		t.Run(name, func(t *testing.T) {
			harness.Through(t, name, harness.Flavours[2], harness.Options{Overlay: true})
		})
	}
}

// TestKeptOrRefused: what is not yet kept is refused with status 3, and the tree goes on unharmed. Nothing is lost silently.
func TestKeptOrRefused(t *testing.T) {
	harness.NeedRoot(t)
	for name := range later {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, name, harness.Options{})
			before := j.Footprint()
			switch r := j.Sh("cr-dump $PID > image.cr"); r.Status {
			case 3:
				if !strings.Contains(r.Stderr, "("+name+")") {
					t.Errorf("the refusal does not name the program:\n%s", r.Stderr)
				}
				j.CheckUnharmed(before)
				t.Logf("refused: %s", strings.TrimSpace(r.Stderr))
			case 0:
				j.CheckUnharmed(before)
				j.PutThrough(harness.Flavours[2])
			default:
				t.Errorf("status %d: %s", r.Status, r.Stderr)
			}
			j.Finish()
		})
	}
}
