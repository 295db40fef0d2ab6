package kernelview

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Threads are found the way the kernel itself does it (find_task_by_vpid in
// kernel/pid.c): the xarray of the caller's pid namespace leads from a number
// to a struct pid, and that to its task. This reads three small nodes for
// thousands of threads, where an iterator would visit every task there is, and
// it speaks the caller's numbers in whatever namespace the caller is.

// xarray entries: the two low bits 10 mark what is not a plain pointer, and
// among these the ones above 4096 are nodes (include/linux/xarray.h).
func isNode(entry uint64) bool { return entry&3 == 2 && int64(entry) < 0 }

// maxDepth bounds the walk: 64-bit keys, at least four bits a level.
const maxDepth = 16

// pidTypePid and pidTypeTgid are the first two of enum pid_type.
const (
	pidTypePid  = 0
	pidTypeTgid = 1
)

// findOwnNamespace learns the caller's pid namespace from its own task.
func (v *bpfView) findOwnNamespace() error {
	self, err := v.mem.current()
	if err != nil {
		return err
	}
	b, err := v.mem.peek(self, v.l.span["task_struct"])
	if err != nil {
		return err
	}
	pid, _ := v.l.uint(b, fTThreadPid)
	p, err := v.mem.peek(pid, v.l.span["pid"])
	if err != nil {
		return err
	}
	level, _ := v.l.uint(p, fPidLevel)
	if level > 32 { // MAX_PID_NS_LEVEL
		return errFault
	}
	size := int(v.l.fields[fUpidSize].size)
	n, err := v.mem.peek(pid+v.l.off(fPidNumbers)+level*uint64(size), size)
	if err != nil {
		return err
	}
	v.pidLevel = level
	v.pidNS, _ = v.l.uint(n, fUpidNS)
	nr, _ := v.l.uint(n, fUpidNr)
	if !kernelAddress(v.pidNS) || int(int32(nr)) <= 0 {
		return errFault
	}
	return nil
}

// number reads the number of a struct pid (with its numbers up to our level)
// in the caller's namespace; 0 when it has none there.
func (v *bpfView) number(pid []byte) int {
	size := uint64(v.l.fields[fUpidSize].size)
	at := v.l.off(fPidNumbers) + v.pidLevel*size
	if uint64(len(pid)) < at+size {
		return 0
	}
	if level, ok := v.l.uint(pid, fPidLevel); !ok || level < v.pidLevel {
		return 0
	}
	upid := pid[at : at+size]
	if ns, _ := v.l.uint(upid, fUpidNS); ns != v.pidNS {
		return 0
	}
	nr, _ := v.l.uint(upid, fUpidNr)
	return int(int32(nr))
}

// pidSize is how much of a struct pid number needs.
func (v *bpfView) pidSize() int {
	return int(v.l.off(fPidNumbers) + (v.pidLevel+1)*uint64(v.l.fields[fUpidSize].size))
}

// taskOf is the task that a struct pid stands for as a thread, 0: none.
func (v *bpfView) taskOf(pid []byte) uint64 {
	at := v.l.off(fPidTasks) + pidTypePid*8
	if uint64(len(pid)) < at+8 {
		return 0
	}
	first := binary.NativeEndian.Uint64(pid[at:])
	if !kernelAddress(first) {
		return 0
	}
	return first - v.l.off(fTPidLinks) - pidTypePid*uint64(v.l.fields[fTPidLinks].element)
}

// pidsOf finds the struct pid of every number; 0 where there is none.
func (v *bpfView) pidsOf(tids []int) ([]uint64, error) {
	ns, err := v.mem.peek(v.pidNS, v.l.span["pid_namespace"])
	if err != nil {
		return nil, err
	}
	head, _ := v.l.uint(ns, fNSHead)
	base, _ := v.l.uint(ns, fNSBase) // missing: 0, as before it existed
	entries := make([]uint64, len(tids))
	for i := range entries {
		entries[i] = head
	}
	slots := v.l.fields[fNodeSlots]
	nodes := make(map[uint64][]byte)
	for range maxDepth {
		var missing []uint64
		for _, e := range entries {
			if !isNode(e) {
				continue
			}
			if _, ok := nodes[e]; !ok {
				nodes[e] = nil
				missing = append(missing, e-2)
			}
		}
		if len(missing) == 0 && len(nodes) == 0 {
			break
		}
		got, err := v.gatherMap(missing, v.l.span["xa_node"])
		if err != nil {
			return nil, err
		}
		for a, b := range got {
			nodes[a+2] = b
		}
		done := true
		for i, e := range entries {
			if !isNode(e) {
				continue
			}
			entries[i] = 0
			node := nodes[e]
			shift, ok := v.l.uint(node, fNodeShift)
			index := uint64(tids[i]) - base
			if !ok || shift > 60 || tids[i] <= 0 {
				continue
			}
			if e == head && index>>shift >= uint64(slots.count) {
				continue // above all numbers in use
			}
			slot := slots.offset + uint32(index>>shift)%slots.count*8
			entries[i] = binary.NativeEndian.Uint64(node[slot:])
			if isNode(entries[i]) {
				done = false
			}
		}
		if done {
			break
		}
	}
	for i, e := range entries {
		if !kernelAddress(e) || e&3 != 0 {
			entries[i] = 0
		}
	}
	return entries, nil
}

// eachTask reads the task_struct of every thread and calls fn for each, in no
// particular order and possibly twice, with what it has read: valid until fn
// returns, and fn must not read more.
func (v *bpfView) eachTask(tids []int, fn func(i int, b []byte)) error {
	return v.eachTaskAt(tids, func(i int, _ uint64, b []byte) { fn(i, b) })
}

// eachTaskAt is eachTask with the address of the task_struct.
func (v *bpfView) eachTaskAt(tids []int, fn func(i int, addr uint64, b []byte)) error {
	return v.eachTaskIn(tids, []window{{0, v.l.span["task_struct"]}}, fn)
}

// eachTaskIn is eachTaskAt that reads parts of the task_struct alone, one of which has fTThreadPid: b has no more.
func (v *bpfView) eachTaskIn(tids []int, parts []window, fn func(i int, addr uint64, b []byte)) error {
	missing, err := v.findTasks(tids, parts, fn)
	if err == nil && len(missing) > 0 {
		// The tree may have been rebuilt under the walk by somebody else's fork. What
		// is missing a second time is not there.
		missing, err = v.findTasks(tids, parts, fn)
	}
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("finding thread %d in the kernel: %w", missing[0], unix.ESRCH)
	}
	return nil
}

func (v *bpfView) findTasks(tids []int, parts []window, fn func(i int, addr uint64, b []byte)) (missing []int, err error) {
	pids, err := v.pidsOf(tids)
	if err != nil {
		return nil, err
	}
	addrs := make([]uint64, len(tids))
	err = v.mem.gather(pids, v.pidSize(), func(i int, b []byte) {
		if b != nil && v.number(b) == tids[i] {
			addrs[i] = v.taskOf(b)
		}
	})
	if err != nil {
		return nil, err
	}
	each := func(i int, b []byte) {
		if own, ok := v.l.uint(b, fTThreadPid); !ok || own != pids[i] {
			missing = append(missing, tids[i])
			return
		}
		fn(i, addrs[i], b)
	}
	if len(parts) == 1 && parts[0].from == 0 {
		err = v.mem.gather(addrs, parts[0].size, each)
	} else {
		err = v.gatherWindows(addrs, parts, each)
	}
	return missing, err
}

// A task is one thread's task_struct, as far as it is needed.
type task struct {
	tid int
	b   []byte
}

// tasks reads the task_struct of every thread and keeps them.
func (v *bpfView) tasks(tids []int) ([]task, error) {
	found := make([]task, len(tids))
	err := v.eachTask(tids, func(i int, b []byte) {
		found[i] = task{tid: tids[i], b: slices.Clone(b)}
	})
	return found, err
}

// numbers reads the numbers that struct pids have in the caller's namespace,
// by address; those that cannot be read are missing.
func (v *bpfView) numbers(pids []uint64) (map[uint64]int, error) {
	blocks, err := v.pidBlocks(pids)
	if err != nil {
		return nil, err
	}
	n := make(map[uint64]int, len(blocks))
	for a, b := range blocks {
		n[a] = v.number(b)
	}
	return n, nil
}

// pidBlocks reads struct pids as far as number needs them. One of a namespace
// above ours is shorter, so what does not fit is read without the numbers.
func (v *bpfView) pidBlocks(pids []uint64) (map[uint64][]byte, error) {
	if v.pidLevel == 0 {
		return v.gatherMap(pids, v.pidSize())
	}
	heads, err := v.gatherMap(pids, v.l.span["pid"])
	if err != nil {
		return nil, err
	}
	var deep []uint64
	for a, b := range heads {
		if level, ok := v.l.uint(b, fPidLevel); ok && level >= v.pidLevel {
			deep = append(deep, a)
		}
	}
	whole, err := v.gatherMap(deep, v.pidSize())
	if err != nil {
		return nil, err
	}
	for a, b := range whole {
		heads[a] = b
	}
	return heads, nil
}
