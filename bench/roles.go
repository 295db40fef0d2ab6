package main

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// roleFlag is the first argument of a child of ours.
const roleFlag = "--role"

func role(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no role")
	}
	if args[0] == "beat" && len(args) == 2 {
		return beat(args[1])
	}
	nums := make([]int64, 0, 3)
	for i, a := range args[1:] {
		base := 10
		if args[0] == "readv" && i == 1 {
			base = 16
		}
		n, err := strconv.ParseInt(a, base, 64)
		if err != nil {
			return err
		}
		nums = append(nums, n)
	}
	want := map[string]int{"random": 1, "zeros": 1, "readv": 3, "memcpy": 1, "seize": 1, "exec": 0, "threads": 1, "tree": 1, "walk": 1,
		"plain-tree": 1, "clone-threads": 1, "clone-tree": 1, "descriptors": 1, "getfd": 1, "open": 1, "hold-unix": 1, "hold-tcp": 1, "make-unix": 1,
		"make-tcp": 1}
	if n, ok := want[args[0]]; !ok || n != len(nums) {
		return fmt.Errorf("role %q with %d numbers", args[0], len(nums))
	}
	switch args[0] {
	case "random", "zeros":
		return hold(nums[0], args[0] == "random")
	case "readv":
		return report(func() error { return readv(int(nums[0]), nums[1], nums[2]) })
	case "memcpy":
		return memcpy(nums[0])
	case "threads":
		return holdThreads(int(nums[0]))
	case "tree":
		return holdTree(int(nums[0]))
	case "walk":
		return walk(int(nums[0]))
	case "plain-tree":
		return plainTree(int(nums[0]))
	case "clone-threads":
		return cloneThreads(int(nums[0]))
	case "clone-tree":
		return cloneProcesses(int(nums[0]))
	case "descriptors":
		return holdDescriptors(int(nums[0]))
	case "getfd":
		return getDescriptors(int(nums[0]))
	case "open":
		return report(func() error { return openMany(int(nums[0])) })
	case "hold-unix":
		return holdSockets(makeUnix, int(nums[0]))
	case "hold-tcp":
		return holdSockets(makeTCP, int(nums[0]))
	case "make-unix":
		return report(func() error { return makeUnix(int(nums[0])) })
	case "make-tcp":
		return report(func() error { return makeTCP(int(nums[0])) })
	case "seize":
		return seize(int(nums[0]))
	default:
		return execTiny()
	}
}

// report writes the nanoseconds that f took on descriptor 3.
func report(f func() error) error {
	begin := time.Now()
	if err := f(); err != nil {
		return err
	}
	return say(time.Since(begin))
}

func say(took time.Duration) error {
	out := os.NewFile(3, "times")
	_, err := fmt.Fprintf(out, "%d\n", took.Nanoseconds())
	return err
}

func fresh(size int64) ([]byte, error) {
	return unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

// hold is a target: touched memory, its address on standard output, and nothing more.
func hold(size int64, random bool) error {
	mem, err := fresh(size)
	if err != nil {
		return err
	}
	if random {
		src := rand.New(rand.NewSource(1))
		for i := 0; i < len(mem); i += 8 {
			binary.LittleEndian.PutUint64(mem[i:], src.Uint64())
		}
	} else {
		for i := 0; i < len(mem); i += 4096 {
			mem[i] = 0
		}
	}
	fmt.Printf("%x\n", address(mem))
	for {
		time.Sleep(time.Hour)
	}
}

// readv is the bare loop that a dump is measured by: process_vm_readv into one buffer, write it to the pipe.
func readv(pid int, addr, size int64) error {
	buf := make([]byte, 256<<10)
	for off := int64(0); off < size; {
		n := min(int64(len(buf)), size-off)
		local := []unix.Iovec{{Base: &buf[0]}}
		local[0].SetLen(int(n))
		got, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr + off), Len: int(n)}}, 0)
		if err != nil {
			return fmt.Errorf("reading the target: %w", err)
		}
		for put := 0; put < got; {
			k, err := unix.Write(1, buf[put:got])
			if err != nil {
				return err
			}
			put += k
		}
		off += int64(got)
	}
	return nil
}

// memcpy is what a restore is measured by: a warm buffer copied into pages that were never touched.
func memcpy(size int64) error {
	buf := make([]byte, 256<<10)
	for i := range buf {
		buf[i] = byte(i)
	}
	mem, err := fresh(size)
	if err != nil {
		return err
	}
	return report(func() error {
		for off := int64(0); off < size; off += int64(len(buf)) {
			copy(mem[off:], buf)
		}
		return nil
	})
}

// seize is PTRACE_SEIZE, INTERRUPT and wait of every thread, then detach.
func seize(pid int) error {
	runtime.LockOSThread()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	var tids []int
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		tids = append(tids, tid)
	}
	begin := time.Now()
	for _, tid := range tids {
		if err := unix.PtraceSeize(tid); err != nil {
			return fmt.Errorf("seizing %d: %w", tid, err)
		}
		if err := unix.PtraceInterrupt(tid); err != nil {
			return err
		}
		if _, err := unix.Wait4(tid, nil, unix.WALL, nil); err != nil {
			return err
		}
	}
	took := time.Since(begin)
	for _, tid := range tids {
		if err := unix.PtraceDetach(tid); err != nil {
			return err
		}
	}
	return say(took)
}

// execTiny starts /bin/true and waits for it, as cheaply as Go can.
func execTiny() error {
	return report(func() error {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err != nil {
			return err
		}
		_, err = p.Wait()
		return err
	})
}
