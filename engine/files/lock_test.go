package files_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/files/filestest"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// locksProgram holds locks of all kinds.
func locksProgram() error {
	a := &at{dir: os.Getenv("DIR")}
	a.fail(os.WriteFile(a.path("ranges"), make([]byte, 100), 0o644))
	a.fail(os.WriteFile(a.path("whole"), nil, 0o644))
	set := func(fd, cmd int, typ int16, start, length int64) {
		a.fail(unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: typ, Start: start, Len: length}))
	}
	a.open(20, a.path("ranges"), unix.O_RDWR)
	a.dup(20, 21, 0)
	a.open(22, a.path("ranges"), unix.O_RDONLY)
	a.open(23, a.path("ranges"), unix.O_RDWR)
	set(23, unix.F_OFD_SETLK, unix.F_WRLCK, 20, 5)
	set(23, unix.F_OFD_SETLK, unix.F_RDLCK, 1<<40, 1<<40)
	a.fail(unix.Flock(23, unix.LOCK_SH))
	a.open(24, a.path("whole"), unix.O_RDONLY)
	a.fail(unix.Flock(24, unix.LOCK_EX))
	a.open(25, a.path("whole"), unix.O_RDWR) // not locked through this one
	a.pipe(26, 27, 0)
	a.fail(unix.Flock(26, unix.LOCK_EX))
	// Last, since a close of the file, of any descriptor of it, would give them up.
	set(20, unix.F_SETLK, unix.F_WRLCK, 5, 10)
	set(20, unix.F_SETLK, unix.F_RDLCK, 50, 0)
	set(22, unix.F_SETLK, unix.F_RDLCK, 30, 1)
	return a.err
}

// locksOf returns what fdinfo says of the locks of pid, with the numbers that are not the same in another process or
// for another pipe left out.
func locksOf(t *testing.T, pid int) map[int][]string {
	t.Helper()
	out := map[int][]string{}
	for fd := 20; fd <= 27; fd++ {
		info, err := procfs.ReadFdinfo(pid, fd)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range info.Locks {
			if l.Kind != "OFDLCK" && l.PID != pid {
				t.Errorf("fd %d: the lock is said to be of pid %d, not %d", fd, l.PID, pid)
			}
			out[fd] = append(out[fd], fmt.Sprintf("%s %s %d-%d %v", l.Kind, l.Type, l.Start, l.End, l.ToEOF))
		}
	}
	return out
}

func TestLocks(t *testing.T) {
	view := filestest.View(t)
	dir := t.TempDir()
	c := filestest.Start(t, "locks", "DIR="+dir)
	want := locksOf(t, c.PID)
	if len(want) != 6 || len(want[20]) != 2 || len(want[23]) != 3 {
		t.Fatalf("locks of the program: %v", want)
	}
	image := filestest.Dump(t, filestest.Dumper(t, view, c.PID))
	killAndReap(t, c.PID)
	inherit := pipes(t)
	restore := func() *filestest.Restored {
		r, err := filestest.Restore(t, image, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Inherit = inherit
		return r
	}

	// What somebody else holds meanwhile is an error that says who.
	own, err := os.OpenFile(filepath.Join(dir, "whole"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(own.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	taken(t, restore().TryTask(t), own.Name(), "an exclusive lock", "(pid "+strconv.Itoa(os.Getpid())+")")
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}

	pid := restore().Task(t)
	if diff := cmp.Diff(want, locksOf(t, pid)); diff != "" {
		t.Errorf("locks differ (-dumped +restored):\n%s", diff)
	}

	// And while the restored process holds them, nobody else gets them, the restore of the same image included.
	_, err = filestest.Restore(t, image, nil)
	taken(t, err, filepath.Join(dir, "ranges"), "an exclusive lock on bytes 5 to 14", "(pid "+strconv.Itoa(pid)+")")
}

// leasesProgram holds leases.
func leasesProgram() error {
	a := &at{dir: os.Getenv("DIR")}
	for i, name := range []string{"read", "write"} {
		a.fail(os.WriteFile(a.path(name), []byte("text"), 0o644))
		a.open(20+i, a.path(name), []int{unix.O_RDONLY, unix.O_RDWR}[i])
	}
	a.dup(20, 19, 0)
	_, err := unix.FcntlInt(20, unix.F_SETLEASE, unix.F_RDLCK)
	a.fail(err)
	_, err = unix.FcntlInt(20, unix.F_SETSIG, 40)
	a.fail(err)
	_, err = unix.FcntlInt(21, unix.F_SETLEASE, unix.F_WRLCK)
	a.fail(err)
	return a.err
}

func TestLeases(t *testing.T) {
	view := filestest.View(t)
	if view.Source() != kernelview.SourceBPF {
		t.Skip("leases need the kernel view by BPF")
	}
	dir := t.TempDir()
	c := filestest.Start(t, "leases", "DIR="+dir)
	image := filestest.Dump(t, filestest.Dumper(t, view, c.PID))
	text := filestest.Describe(t, image, nil)
	for _, want := range []string{"{fd=20 kind=\"lease\"}", "{fd=21 kind=\"lease\" write=true}", "fd=19 kind=\"process\""} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	killAndReap(t, c.PID)
	inherit := pipes(t)
	restore := func() *filestest.Restored {
		r, err := filestest.Restore(t, image, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Inherit = inherit
		return r
	}
	own, err := os.OpenFile(filepath.Join(dir, "read"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	taken(t, restore().TryTask(t), own.Name(), "a read lease", "somebody else")
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	pid := restore().Task(t)
	for fd, want := range map[int]string{19: "READ", 20: "READ", 21: "WRITE"} {
		info, err := procfs.ReadFdinfo(pid, fd)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Locks) != 1 || info.Locks[0].Kind != "LEASE" || info.Locks[0].Mode != "ACTIVE" || info.Locks[0].Type != want {
			t.Errorf("fd %d: %+v, want an active lease for %s", fd, info.Locks, want)
		}
	}
}

func taken(t *testing.T, err error, path, what, holder string) {
	t.Helper()
	var e *files.LockTakenError
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want that a lock is taken", err)
	}
	if e.Path != path || e.What != what || !strings.Contains(e.Holder, holder) {
		t.Errorf("%v: want %s, %s, %s", err, path, what, holder)
	}
}

// mapLockedProgram keeps a lock through a private mapping alone.
func mapLockedProgram() error {
	a := &at{dir: os.Getenv("DIR")}
	a.fail(os.WriteFile(a.path("mapped"), []byte("text"), 0o644))
	a.open(20, a.path("mapped"), unix.O_RDWR)
	if os.Getenv("KIND") == "flock" {
		a.fail(unix.Flock(20, unix.LOCK_EX))
	} else {
		a.fail(unix.FcntlFlock(20, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Len: 1}))
	}
	if a.err == nil {
		_, a.err = unix.Mmap(20, 0, 4, unix.PROT_READ, unix.MAP_PRIVATE)
	}
	a.open(21, a.path("mapped"), unix.O_RDONLY)
	a.fail(unix.Close(20))
	return a.err
}

func TestLockOfMapping(t *testing.T) {
	view := filestest.View(t)
	for _, kind := range []string{"flock", "ofd", "none"} {
		for _, unknown := range []bool{false, true} {
			dir := t.TempDir()
			program := "maplocked"
			if kind == "none" {
				program = "locks" // all of them have descriptors
			}
			c := filestest.Start(t, program, "DIR="+dir, "KIND="+kind)
			d := filestest.Dumper(t, view, c.PID)
			if err := filestest.Look(t, d); err != nil {
				t.Fatal(err)
			}
			// As memory.Dump would find.
			d.LocksUnknown = unknown
			areas, err := view.Areas(c.PID)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range areas.V {
				if a.Locked.V && !unknown {
					d.MappedLocks = append(d.MappedLocks, object.MappedLock{Process: d.Root, Start: a.Start, End: a.End, File: a.File})
				}
			}
			if err := files.CheckLocks(d); err != nil {
				t.Fatal(err)
			}
			err = d.Refusals()
			if kind == "none" {
				if err != nil {
					t.Errorf("locks of descriptors: %v", err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), "mapping of "+filepath.Join(dir, "mapped")+": ") || len(refused(t, err)[-1]) != 1 {
				t.Errorf("%s (mappings asked: %v): %v", kind, !unknown, err)
			}
		}
	}
}
