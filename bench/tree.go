package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tree measures the dump of a tree of many processes beside a bare loop that reads stat, status, maps and fdinfo of each.
func (b *bench) tree(n int) ([]figure, error) {
	t, err := b.start("tree", int64(n))
	if err != nil {
		return nil, err
	}
	defer func() {
		group := t.pid
		t.end()
		if group > 1 {
			_ = syscall.Kill(-group, syscall.SIGKILL) // its children: it leads a session
			for {
				if pid, err := unix.Wait4(-group, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) || pid == 0 {
					break
				}
			}
			for range 100 { // a task that is just dying still counts
				if err := os.Remove(groupFor(group)); err == nil || errors.Is(err, os.ErrNotExist) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}()
	return b.beside(t, figure{what: fmt.Sprintf("dump tree of %d", n), limit: "<= 2.00"}, self("walk", strconv.Itoa(t.pid)))
}

// groupFor is the directory of a cgroup for one target; empty: there is no version 2.
func groupFor(pid int) string {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err == nil {
			if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
				return fmt.Sprintf("%s/crpipe-bench-%d", root, pid)
			}
		}
	}
	return ""
}

// holdTree is a target: a process and its children, in a cgroup of their own as a service has one.
func holdTree(n int) error {
	if dir := groupFor(os.Getpid()); dir != "" && os.Mkdir(dir, 0o755) == nil {
		if err := os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0); err != nil {
			return err
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for range n - 1 {
		if _, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000000"}, &os.ProcAttr{Files: []*os.File{null, null, null}}); err != nil {
			return err
		}
	}
	time.Sleep(200 * time.Millisecond) // they have come to their sleep
	fmt.Println("0")
	for {
		time.Sleep(time.Hour)
	}
}

// walk is the bare loop.
func walk(root int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", root, root))
	if err != nil {
		return err
	}
	all := append([]string{strconv.Itoa(root)}, strings.Fields(string(b))...)
	buf := make([]byte, 1<<20)
	slurp := func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		for {
			if _, err := f.Read(buf); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return report(func() error {
		for _, pid := range all {
			for _, name := range []string{"stat", "status", "maps"} {
				if err := slurp("/proc/" + pid + "/" + name); err != nil {
					return err
				}
			}
			entries, err := os.ReadDir("/proc/" + pid + "/fdinfo")
			if err != nil {
				return err
			}
			for _, e := range entries {
				if err := slurp("/proc/" + pid + "/fdinfo/" + e.Name()); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
