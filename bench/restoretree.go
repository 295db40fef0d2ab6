package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// restoreTree measures the restore of a tree of many processes beside a bare clone3 of each and a memcpy of their pages. The bare one is made
// from a program in Go, of whose page tables each child gets a copy.
func (b *bench) restoreTree(n int) ([]figure, error) {
	return b.restoreMany("plain-tree", "clone-tree", n, figure{what: fmt.Sprintf("restore tree of %d / (clone3 + memcpy)", n), limit: "<= 3.00"}, true)
}

func cloneProcesses(n int) error {
	return cloneMany(n, cloneArgs{exitSignal: uint64(unix.SIGCHLD)})
}

// plainTree is a target: a process and its children.
func plainTree(n int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for range n - 1 {
		if _, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000000"}, &os.ProcAttr{Files: []*os.File{null, null, null}}); err != nil {
			return err
		}
	}
	time.Sleep(500 * time.Millisecond) // they have come to their sleep
	fmt.Println("0")
	for {
		time.Sleep(time.Hour)
	}
}
