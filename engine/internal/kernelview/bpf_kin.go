package kernelview

import (
	"cmp"
	"encoding/binary"
	"slices"
)

var (
	fTChildren = want("task_struct.children")
	fTSibling  = want("task_struct.sibling")
)

// A KinView is a View that also tells who descends from whom, of tasks that may run: what changes under the look is an error.
type KinView interface {
	// Kin tells of each given thread, in the order asked for.
	Kin(tids []int) ([]Kin, error)
}

// Kin is what the kernel links a thread to.
type Kin struct {
	Threads  int   // of its process, dead ones that nobody has waited for among them
	Traced   bool  // a tracer is attached
	Children []int // processes, in the order of their forks; each is the child of one thread
}

// A window is a part of a structure.
type window struct{ from, size int }

// windows are the parts of a structure that have these fields, neighbours together.
func (v *bpfView) windows(fields ...field) []window {
	const near = 128 // bytes that cost less than another request
	all := make([]window, len(fields))
	for i, f := range fields {
		all[i] = window{int(v.l.fields[f].offset), int(v.l.fields[f].size)}
	}
	slices.SortFunc(all, func(a, b window) int { return cmp.Compare(a.from, b.from) })
	out := all[:1]
	for _, w := range all[1:] {
		last := &out[len(out)-1]
		if w.from <= last.from+last.size+near {
			last.size = max(last.size, w.from+w.size-last.from)
		} else {
			out = append(out, w)
		}
	}
	return out
}

// gatherWindows reads parts of the structures at addresses and calls fn for each, in order, with a block in which these parts are
// where they are in the structure; with nil where one cannot be read. fn must neither keep b nor read more.
func (v *bpfView) gatherWindows(addrs []uint64, parts []window, fn func(i int, b []byte)) error {
	last := parts[len(parts)-1]
	block := make([]byte, last.from+last.size)
	whole := true
	return v.mem.gatherEach(len(addrs)*len(parts), func(i int) (uint64, int) {
		addr, part := addrs[i/len(parts)], parts[i%len(parts)]
		if addr == 0 {
			return 0, part.size
		}
		return addr + uint64(part.from), part.size
	}, func(i int, b []byte) {
		part := i % len(parts)
		copy(block[parts[part].from:], b)
		whole = (whole || part == 0) && b != nil
		if part < len(parts)-1 {
			return
		}
		if whole {
			fn(i/len(parts), block)
		} else {
			fn(i/len(parts), nil)
		}
	})
}

// A brood is the list of the children of a thread, as far as it has been followed.
type brood struct {
	of, head, at uint64
	pids         []uint64 // struct pid of each
}

// Kin is documented with KinView.
func (v *bpfView) Kin(tids []int) ([]Kin, error) {
	l := v.l
	for _, f := range []field{fTChildren, fTSibling, fTRealParent, fTSignal, fTPtrace, fSNThreads} {
		if !l.has(f) {
			return nil, &MissingError{What: "a kernel whose structures are known (" + fieldPaths[f] + " is not in its BTF)"}
		}
	}
	out := make([]Kin, len(tids))
	broods := make([]brood, len(tids))
	signals := make([]uint64, len(tids))
	own := v.windows(fTThreadPid, fTChildren, fTSignal, fTPtrace)
	if err := v.eachTaskIn(tids, own, func(i int, addr uint64, b []byte) {
		traced, _ := l.uint(b, fTPtrace)
		out[i].Traced = traced != 0
		signals[i], _ = l.uint(b, fTSignal)
		list, _ := l.bytes(b, fTChildren)
		broods[i] = brood{of: addr, head: addr + l.off(fTChildren), at: binary.NativeEndian.Uint64(list)}
	}); err != nil {
		return nil, err
	}
	counts, err := v.gatherMap(signals, l.span["signal_struct"])
	if err != nil {
		return nil, err
	}
	for i, s := range signals {
		n, ok := l.uint(counts[s], fSNThreads)
		if !ok {
			return nil, errFault
		}
		out[i].Threads = int(n)
	}
	if err := v.followBroods(broods); err != nil {
		return nil, err
	}
	var pids []uint64
	for i := range broods {
		pids = append(pids, broods[i].pids...)
	}
	numbers, err := v.numbers(pids)
	if err != nil {
		return nil, err
	}
	for i := range broods {
		for _, pid := range broods[i].pids {
			n := numbers[pid]
			if n <= 0 {
				return nil, errFault // it has been waited for
			}
			out[i].Children = append(out[i].Children, n)
		}
	}
	return out, nil
}

// maxChildren bounds the walk along a list: PID_MAX_LIMIT.
const maxChildren = 1 << 22

// followBroods follows all lists, one step of each at a time.
func (v *bpfView) followBroods(all []brood) error {
	l := v.l
	parts := v.windows(fTThreadPid, fTSibling, fTRealParent)
	going := make([]*brood, 0, len(all))
	for i := range all {
		going = append(going, &all[i])
	}
	for range maxChildren {
		going = slices.DeleteFunc(going, func(b *brood) bool { return b.at == b.head })
		if len(going) == 0 {
			return nil
		}
		addrs := make([]uint64, len(going))
		for i, b := range going {
			if !kernelAddress(b.at) {
				return errFault
			}
			addrs[i] = b.at - l.off(fTSibling)
		}
		fault := false
		if err := v.gatherWindows(addrs, parts, func(i int, b []byte) {
			// One that has been taken off the list is no way to the next.
			parent, ok := l.uint(b, fTRealParent)
			next, ok2 := l.bytes(b, fTSibling)
			if !ok || !ok2 || parent != going[i].of {
				fault = true
				return
			}
			pid, _ := l.uint(b, fTThreadPid)
			to := binary.NativeEndian.Uint64(next)
			fault = fault || to == going[i].at
			going[i].pids, going[i].at = append(going[i].pids, pid), to
		}); err != nil {
			return err
		}
		if fault {
			return errFault
		}
	}
	return errFault
}
