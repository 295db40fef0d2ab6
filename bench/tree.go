package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// tree measures the dump of a tree of many processes beside a bare loop that reads stat, status, maps and fdinfo of each.
func (b *bench) tree(n int) ([]figure, error) {
	t, err := b.start("tree", int64(n))
	if err != nil {
		return nil, err
	}
	defer t.end()
	return b.beside(t, figure{what: fmt.Sprintf("dump tree of %d", n), limit: "<= 2.00"}, "walk")
}

// holdTree is a target: a process and its children.
func holdTree(n int) error {
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
