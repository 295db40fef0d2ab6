//go:build amd64

package kernelview

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// A lock that only a mapping keeps is told with the mapping; one of another open file of the same inode is not.
func TestLockedAreas(t *testing.T) {
	v := view(t)
	dir := t.TempDir()
	c := newChild(t)
	me := c.must(unix.SYS_PIDFD_OPEN, uint64(os.Getpid()), 0)
	lock := func(fd int, kind string) {
		t.Helper()
		var err error
		switch kind {
		case "flock":
			err = unix.Flock(fd, unix.LOCK_SH)
		case "exclusive":
			err = unix.Flock(fd, unix.LOCK_EX)
		case "both":
			err = errors.Join(unix.Flock(fd, unix.LOCK_EX), unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Len: 1}))
		case "ofd":
			err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Len: 1})
		case "posix": // belongs to this process, not to the file
			err = unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Len: 1})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []string{"flock", "ofd", "posix", "exclusive", "both", "none"} {
		path := dir + "/" + kind
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		var at [2]uint64
		for i := range at { // the second time without a lock of its own
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				lock(fd, kind)
			}
			theirs := c.must(unix.SYS_PIDFD_GETFD, uint64(me), uint64(fd), 0)
			at[i] = uint64(c.must(unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE, uint64(theirs), 0))
			c.must(unix.SYS_CLOSE, uint64(theirs))
			if kind != "posix" { // any close would give it up
				if err := unix.Close(fd); err != nil {
					t.Fatal(err)
				}
			}
		}
		want := kind != "posix" && kind != "none"
		how := map[string]uint8{"flock": unix.LOCK_SH, "exclusive": unix.LOCK_EX}[kind]
		if got := areaAt(t, v, c.pid(), at[0]); got.Locked != Is(want) || got.Flock != how {
			t.Errorf("%s: %v by %d, want %v by %d", kind, got.Locked, got.Flock, want, how)
		}
		if got := areaAt(t, v, c.pid(), at[1]).Locked; got != Is(false) {
			t.Errorf("%s of another open file: %v", kind, got)
		}
	}
}

// What is to be known of inodes beside stat(2).
func TestInodeState(t *testing.T) {
	v := view(t)
	dir := "/dev/shm"
	for _, one := range []struct {
		name     string
		flags    int
		hint     uint64
		linkable bool
	}{
		{"made to be linked", unix.O_TMPFILE, 2, true},
		{"never to be linked", unix.O_TMPFILE | unix.O_EXCL, 5, false},
		{"without a hint", unix.O_TMPFILE | unix.O_EXCL, 0, false},
	} {
		fd, err := unix.Open(dir, one.flags|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if one.hint != 0 {
			if err := sys.SetWriteHint(fd, one.hint); err != nil {
				t.Fatal(err)
			}
		}
		tables, err := v.Files([]int{os.Getpid()})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, d := range tables[0].FDs {
			if d.FD == fd {
				found = true
				if d.File.Linkable != Is(one.linkable) || d.File.WriteHint != Is(uint8(one.hint)) {
					t.Errorf("%s: linkable %v, hint %v", one.name, d.File.Linkable, d.File.WriteHint)
				}
			}
		}
		if !found {
			t.Errorf("%s: descriptor %d is not in the table", one.name, fd)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
}
