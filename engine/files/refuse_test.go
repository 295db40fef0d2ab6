package files_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/files/filestest"
	"crpipe/engine/object"
)

// refused returns, by descriptor (-1: none), what was refused, and fails when something was not refused as unsupported.
func refused(t *testing.T, err error) map[int][]string {
	t.Helper()
	var all object.Refusals
	if !errors.As(err, &all) {
		t.Fatalf("nothing was refused, but %v", err)
	}
	out := map[int][]string{}
	for _, e := range all {
		var where *object.Error
		var what *object.Unsupported
		if !errors.As(e, &where) || !errors.As(e, &what) {
			t.Errorf("not a refusal by name: %v", e)
			continue
		}
		out[where.FD] = append(out[where.FD], e.Error())
	}
	if code := all.ExitCode(); code != object.ExitUnsupported {
		t.Errorf("exit status %d", code)
	}
	return out
}

func TestRefused(t *testing.T) {
	files.SetSearch(t, 0)
	view := filestest.View(t)
	dir := t.TempDir()
	c := filestest.Start(t, "held", "DIR="+dir)
	got := refused(t, filestest.Look(t, filestest.Dumper(t, view, c.PID)))
	for fd, want := range map[int]string{
		20: "lock or lease on it (LEASE BREAKING UNLCK)",
		21: "lock on it (FLOCK ADVISORY WRITE), which cannot be checkpointed for a file of this kind",
		23: "1 other names of it remain in places that the kernel does not tell, not among the 0 nearest",
		26: "about pid 1, which is not in the tree",
		27: "receiver of SIGIO (fcntl(2) F_SETOWN) is process 1, outside of the tree",
		29: "receiver of SIGIO",
		32: "a unix socket cannot be checkpointed",
		33: "character device 1:11 cannot be checkpointed",
	} {
		texts := strings.Join(got[fd], "\n")
		if !strings.Contains(texts, want) {
			t.Errorf("fd %d: refused with %q, want %q", fd, texts, want)
		}
		delete(got, fd)
	}
	for fd, texts := range got {
		t.Errorf("fd %d: refused without a reason: %q", fd, texts)
	}
}

// A file that was replaced by another of its name is a deleted one: its own contents go into the image.
func TestReplaced(t *testing.T) {
	view := filestest.View(t)
	c := filestest.Start(t, "held", "DIR="+t.TempDir())
	d := filestest.Dumper(t, view, c.PID)
	_ = filestest.Look(t, d) // refuses other files
	var out strings.Builder
	if err := d.Describe(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "/replaced") || !strings.Contains(out.String(), "inode") {
		t.Errorf("the replaced file was taken for the one that has its name now:\n%s", out.String())
	}
}

// What the test holds too is outside of the tree: external where a standard descriptor leads to it, else refused.
func TestOutside(t *testing.T) {
	view := filestest.View(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c := filestest.Start(t, "outside", "FIFO="+fifo)
	d := filestest.Dumper(t, view, c.PID)
	got := refused(t, filestest.Look(t, d))
	if len(got) != 1 || !strings.Contains(strings.Join(got[22], ""), "held outside of the tree") {
		t.Errorf("refused: %v, want only fd 22", got)
	}

	d = filestest.Dumper(t, view, c.PID)
	d.External = []string{fifo}
	image := filestest.Dump(t, d)
	text := filestest.Describe(t, image, nil)
	for _, want := range []string{
		`{fd=20 file=`, `{fd=21 file=#2}`, // 21 is stdout's own open file
		fmt.Sprintf("file.external {name=%q flags=32770 mode=4480}", fifo),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "file.external"); n != 4 {
		t.Errorf("%d external files, want 4: stdin, stdout, 20 and 22\n%s", n, text)
	}
	if n := strings.Count(text, `name="pipe:[`); n != 3 {
		t.Errorf("%d external pipes, want 3\n%s", n, text)
	}
}

// A /proc file about a process of the tree is opened by the task itself, when it is there.
func TestProcAboutItself(t *testing.T) {
	view := filestest.View(t)
	c := filestest.Start(t, "proc")
	image := filestest.Dump(t, filestest.Dumper(t, view, c.PID))
	r, err := filestest.Restore(t, image, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The stopped program stands in for the process that a real restore would have made with its number.
	pid := r.Task(t)
	for fd, want := range map[int]string{
		20: fmt.Sprintf("/proc/%d/status", c.PID), 21: fmt.Sprintf("/proc/%d/status", c.PID),
		23: fmt.Sprintf("/proc/%d/fd", c.PID), 24: fmt.Sprintf("/proc/%d/status", c.PID),
	} {
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		if err != nil || got != want {
			t.Errorf("fd %d leads to %q, %v, want %q", fd, got, err, want)
		}
	}
	tables, err := view.Files([]int{pid})
	if err != nil {
		t.Fatal(err)
	}
	byFD := map[int]int{}
	for i, fd := range tables[0].FDs {
		byFD[fd.FD] = i
	}
	at := func(n int) int { return byFD[n] }
	fds := tables[0].FDs
	if fds[at(20)].File.ID != fds[at(21)].File.ID {
		t.Error("20 and 21 are two open files, they were one")
	}
	if pos := fds[at(20)].File.Pos; pos.V != 10 || !fds[at(21)].CloseOnExec || fds[at(20)].CloseOnExec {
		t.Errorf("position %v, close-on-exec %v and %v", pos, fds[at(20)].CloseOnExec, fds[at(21)].CloseOnExec)
	}
}

// A process in another mount namespace: its paths are looked at there.
func TestOtherMountNamespace(t *testing.T) {
	view := filestest.View(t)
	dir := t.TempDir()
	c := filestest.Start(t, "mounted", "DIR="+dir, filestest.OwnMounts)
	text := filestest.Describe(t, filestest.Dump(t, filestest.Dumper(t, view, c.PID)), nil)
	for _, want := range []string{
		fmt.Sprintf(`file.regular {path="%s/inside" flags=32769 mode=33188 size=4 pos=4 mtime=`, dir),
		fmt.Sprintf(`inode {dir="%s"`, dir),
		`"hidden" (6 bytes)`,
		fmt.Sprintf(`cwd="%s"`, dir),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

// A thread's own table and directory are records of their own, and the thread knows them.
func TestThreadWithOwnTable(t *testing.T) {
	view := filestest.View(t)
	c := filestest.Start(t, "threads")
	d := filestest.Dumper(t, view, c.PID)
	text := filestest.Describe(t, filestest.Dump(t, d), nil)
	for _, what := range []string{"fdtable {", "fs {"} {
		if n := strings.Count(text, what); n != 2 {
			t.Errorf("%d records %s, want 2, in\n%s", n, what, text)
		}
	}
	own := 0
	for _, th := range d.Processes[0].Threads {
		if !th.Files.IsZero() && !th.FS.IsZero() && th.Files != d.Processes[0].Files && th.FS != d.Processes[0].FS {
			own++
		}
	}
	if own == 0 { // threads that the Go runtime has made from that one share them
		t.Error("no thread with a table and directories of its own")
	}
}
