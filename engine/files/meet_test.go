package files

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
)

// TestMeeter: a file that still has its name is met by that, with the same result as the long way; one that has not, or whose name
// leads to another file by now, is met the long way.
func TestMeeter(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if _, err := f.WriteString(name); err != nil {
			t.Fatal(err)
		}
		return f
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	plain, renamed, removed, replaced, linked := open("plain"), open("renamed"), open("removed"), open("replaced"), open("linked")
	do(os.Rename(filepath.Join(dir, "renamed"), filepath.Join(dir, "now")))
	do(os.Remove(filepath.Join(dir, "removed")))
	do(os.Link(filepath.Join(dir, "linked"), filepath.Join(dir, "other")))
	do(os.Remove(filepath.Join(dir, "linked")))
	do(os.Remove(filepath.Join(dir, "replaced")))
	open("replaced")
	open("removed (deleted)")

	p := &object.Process{PID: os.Getpid(), Threads: []*object.Thread{{TID: os.Getpid()}}}
	p.Threads[0].Process = p
	m := newMeeter(p)
	defer m.close()
	var fs unix.Statfs_t
	do(unix.Statfs(dir, &fs))
	for _, tt := range []struct {
		file  *os.File
		named bool
	}{{plain, true}, {renamed, true}, {removed, false}, {replaced, false}, {linked, false}} {
		fd := int(tt.file.Fd())
		var st unix.Stat_t
		do(unix.Fstat(fd, &st))
		view := &kernelview.File{Mode: kernelview.Is(uint16(st.Mode)), Dev: kernelview.Is(uint64(st.Dev)), Ino: kernelview.Is(st.Ino), FSType: kernelview.Is(uint64(fs.Type))}
		if !numbered(view) {
			t.Skipf("file system %#x of the tests' directory is none whose files are met by name", fs.Type)
		}
		got, err := m.meet(fd, view)
		do(err)
		want, err := object.Meet(p, fd, view)
		do(err)
		if got.Named != tt.named {
			t.Errorf("%s: met by its name: %v", got.Link, got.Named)
		}
		if got.Link != want.Link || got.Path != want.Path || got.FD != want.FD || got.Stat != want.Stat {
			t.Errorf("%s: met as %+v, want %+v", got.Link, got, want)
		}
		path, err := pathOf(got)
		if tt.named && (err != nil || path != got.Link) {
			t.Errorf("%s: path %q, %v", got.Link, path, err)
		}
	}
	// Ahead of many, on several threads, the same is seen.
	var fds []kernelview.FD
	for len(fds) < manyFiles/4 {
		for i, file := range []*os.File{plain, renamed, removed, replaced, linked} {
			fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			do(err)
			t.Cleanup(func() { _ = unix.Close(fd) })
			var st unix.Stat_t
			do(unix.Fstat(fd, &st))
			view := &kernelview.File{ID: kernelview.ID(i + 1), Mode: kernelview.Is(uint16(st.Mode)), Dev: kernelview.Is(uint64(st.Dev)), Ino: kernelview.Is(st.Ino), FSType: kernelview.Is(uint64(fs.Type))}
			fds = append(fds, kernelview.FD{FD: fd, File: view})
		}
	}
	do(m.lookAhead(fds, func(f *kernelview.File) bool { return f.ID != 1 }))
	if want := len(fds) / 5 * 4; len(m.seen) != want && runtime.GOMAXPROCS(0) > 1 {
		t.Errorf("%d descriptors were looked at ahead, not %d", len(m.seen), want)
	}
	for _, fd := range fds {
		got, err := m.meet(fd.FD, fd.File)
		do(err)
		want, err := object.Meet(p, fd.FD, fd.File)
		do(err)
		if got.Link != want.Link || got.Path != want.Path || got.FD != want.FD || got.Stat != want.Stat || got.Named != (fd.File.ID <= 2) {
			t.Errorf("%s: met ahead as %+v, want %+v", got.Link, got, want)
		}
	}
	// What the kernel view does not know, or what may have other numbers than stat(2) shows, is not met by its name.
	for _, view := range []*kernelview.File{
		{},
		{Mode: kernelview.Is(uint16(unix.S_IFREG)), Dev: kernelview.Is(uint64(1)), Ino: kernelview.Is(uint64(1)), FSType: kernelview.Is(uint64(unix.OVERLAYFS_SUPER_MAGIC))},
		{Mode: kernelview.Is(uint16(unix.S_IFIFO)), Dev: kernelview.Is(uint64(1)), Ino: kernelview.Is(uint64(1)), FSType: kernelview.Is(uint64(unix.EXT4_SUPER_MAGIC))},
	} {
		if numbered(view) {
			t.Errorf("%+v is met by its name", view)
		}
	}
}
