package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dirVariable tells a role where the files are that it opens.
const dirVariable = "BENCH_DIR"

// descriptors measures dump and restore of a process with many descriptors, most of them regular files: beside a bare pidfd_getfd, fstat
// and read of the fdinfo of each, and a bare open of each.
func (b *bench) descriptors(n int) ([]figure, error) {
	dir := filepath.Join(b.work, "files")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	in := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Env = append(cmd.Env, dirVariable+"="+dir)
		return cmd
	}
	t, err := b.startTarget(in(self("descriptors", strconv.Itoa(n))))
	if err != nil {
		return nil, err
	}
	defer t.end()
	dump, err := b.beside(t, figure{what: fmt.Sprintf("dump %d descriptors", n), limit: "<= 0.50"}, self("getfd", strconv.Itoa(t.pid)))
	if err != nil {
		return nil, err
	}
	restore, err := b.again(t, "descriptors", in(self("open", strconv.Itoa(n))), figure{what: fmt.Sprintf("restore %d descriptors / open", n), limit: "<= 2.00"}, false)
	return append(dump, restore...), err
}

// openMany opens n descriptors: of six, five are regular files of their own; the others are pipes and eventfds. They need not be
// there yet.
func openMany(n int) error {
	dir := os.Getenv(dirVariable)
	for i := 0; i < n; i++ {
		var err error
		switch {
		case i%6 != 5:
			_, err = unix.Open(dir+"/"+strconv.Itoa(i), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		case i%24 == 5 && i+6 < n: // two descriptors, the second one in place of the next of these
			var ends [2]int
			err = unix.Pipe2(ends[:], unix.O_CLOEXEC)
		case i%24 != 11:
			_, err = unix.Eventfd(1, unix.EFD_CLOEXEC)
		}
		if err != nil {
			return fmt.Errorf("opening descriptor %d of %d: %w", i, n, err)
		}
	}
	return nil
}

// holdDescriptors is a target.
func holdDescriptors(n int) error {
	if err := openMany(n); err != nil {
		return err
	}
	fmt.Println("0")
	for {
		time.Sleep(time.Hour)
	}
}

// getDescriptors is what a dump of descriptors is measured by.
func getDescriptors(pid int) error {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	return report(func() error {
		for _, e := range entries {
			fd, err := strconv.Atoi(e.Name())
			if err != nil {
				return err
			}
			own, err := unix.PidfdGetfd(pidfd, fd, 0)
			if err != nil {
				return fmt.Errorf("getting descriptor %d: %w", fd, err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(own, &st); err != nil {
				return err
			}
			info, err := unix.Open(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd), unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			if n, err := unix.Read(info, buf); n <= 0 {
				return errors.Join(io.ErrUnexpectedEOF, err)
			}
			if err := errors.Join(unix.Close(info), unix.Close(own)); err != nil {
				return err
			}
		}
		return nil
	})
}
