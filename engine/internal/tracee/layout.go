package tracee

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
)

// Buffers are aligned to this in a slot: no structure of the kernel's interface wants more, but xsave areas.
const bufAlign = 64

func alignUp(n, to int) int { return (n + to - 1) / to * to }

// A part is what of a batch runs in one round trip.
type part struct {
	calls []*Call
	used  int // bytes of the slot
}

// split cuts a batch into parts that fit a slot each. Within a part the calls' arguments refer to
// each other in the slot; across parts they go by the values that the restorer has collected.
func (b *Batch) split(slotSize int) ([]*part, error) {
	if b.err != nil {
		return nil, b.err
	}
	p := &part{used: arch.SlotEntries}
	parts := []*part{p}
	for i, c := range b.calls {
		if c.ran {
			return nil, fmt.Errorf("running a batch twice: %w", unix.EINVAL)
		}
		need := c.size(p)
		if p.used+need > slotSize && len(p.calls) > 0 {
			p = &part{used: arch.SlotEntries}
			parts = append(parts, p)
			need = c.size(p)
		}
		if p.used += need; p.used > slotSize {
			return nil, fmt.Errorf("call %d of a batch, %s: %d bytes do not fit a slot of %d: %w", i, b.arena.arch.SyscallName(c.nr), p.used, slotSize, unix.E2BIG)
		}
		p.calls = append(p.calls, c)
	}
	return parts, nil
}

// size is what a call adds to a part: its entry, and the buffers that are not in the part already.
func (c *Call) size(p *part) int {
	n := arch.EntrySize
	for _, a := range c.args {
		n += a.buf.size(p) + a.load.size(p)
	}
	return n
}

func (f *Buf) size(p *part) int {
	if f == nil || f.in == p {
		return 0
	}
	f.in = p
	n := alignUp(len(f.bytes), bufAlign) + bufAlign
	for _, to := range f.pointers {
		n += to.to.size(p)
	}
	return n
}

// filler places one part of a batch into a slot.
type filler struct {
	task *Task
	mem  []byte
	next int // first free byte
	bufs []*Buf
}

// fill writes a part's table and data and returns the buffers that were placed.
func (k *Task) fill(part []*Call) ([]*Buf, error) {
	f := &filler{task: k, mem: k.slotMem(), next: arch.SlotEntries + len(part)*arch.EntrySize}
	order := hostOrder
	order.PutUint64(f.mem[arch.SlotCount:], uint64(len(part)))
	order.PutUint64(f.mem[arch.SlotDone:], 0)
	order.PutUint64(f.mem[arch.SlotStatus:], arch.SlotRunning)
	for i, c := range part {
		c.offset = arch.SlotEntries + i*arch.EntrySize
	}
	for _, c := range part {
		if top := k.SlotAddr() + arch.Addr(len(f.mem)); c.flags&arch.FlagCompat != 0 && top > 1<<32 {
			return nil, fmt.Errorf("pid %d: a call of 32-bit code with an arena at %v: %w", k.Tid, k.Base, unix.EINVAL)
		}
		e := f.mem[c.offset : c.offset+arch.EntrySize]
		flags := c.flags
		order.PutUint64(e[arch.EntryNr:], uint64(c.nr))
		for i, a := range c.args {
			v, ref, err := f.value(a, c)
			if err != nil {
				return nil, err
			}
			if ref {
				flags |= 1 << i
			}
			order.PutUint64(e[arch.EntryArgs+8*i:], v)
		}
		order.PutUint64(e[arch.EntryFlags:], flags)
		order.PutUint64(e[arch.EntryExpect:], c.expect)
		order.PutUint64(e[arch.EntryResult:], 0)
	}
	return f.bufs, nil
}

// value is what an argument is in the table: a word, or (ref) the offset of the one to load.
func (f *filler) value(a arg, of *Call) (v uint64, ref bool, err error) {
	switch {
	case a.buf != nil:
		off, err := f.place(a.buf)
		return uint64(f.task.SlotAddr()) + uint64(off) + a.value, false, err
	case a.load != nil:
		off, err := f.place(a.load)
		return uint64(off) + a.value, true, err
	case a.from != nil && a.from.ran:
		return uint64(a.from.result), false, nil
	case a.from != nil:
		if a.from.offset == 0 || a.from.offset >= of.offset {
			return 0, false, fmt.Errorf("pid %d: %s uses the result of a call that is not before it in its batch: %w", f.task.Tid, f.task.arena.arch.SyscallName(of.nr), unix.EINVAL)
		}
		return uint64(a.from.offset + arch.EntryResult), true, nil
	}
	return a.value, false, nil
}

// place copies a buffer into the slot, once.
func (f *filler) place(b *Buf) (int, error) {
	if b.placed == f {
		return b.offset, nil
	}
	off := alignUp(f.next, bufAlign)
	if off+len(b.bytes) > len(f.mem) {
		return 0, fmt.Errorf("pid %d: a batch's data do not fit a slot of %d bytes: %w", f.task.Tid, len(f.mem), unix.E2BIG)
	}
	b.offset, b.placed = off, f
	f.bufs = append(f.bufs, b)
	f.next = off + len(b.bytes)
	copy(f.mem[off:], b.bytes)
	for _, p := range b.pointers {
		if p.at < 0 || p.at+8 > len(b.bytes) {
			return 0, fmt.Errorf("pid %d: a pointer at %d of a buffer of %d bytes: %w", f.task.Tid, p.at, len(b.bytes), unix.EINVAL)
		}
		if p.slot != nil {
			// The child's stack pointer becomes stack + stack_size.
			size := hostOrder.Uint64(b.bytes[p.at+8:])
			at := f.task.arena.slotAddr(f.task.Base, p.slot.slot)
			hostOrder.PutUint64(f.mem[off+p.at:], uint64(at)-size)
			continue
		}
		to, err := f.place(p.to)
		if err != nil {
			return 0, err
		}
		hostOrder.PutUint64(f.mem[off+p.at:], uint64(f.task.SlotAddr())+uint64(to))
	}
	return off, nil
}

// collect reads what a part has done: results of the calls up to and including the one that ended
// it, and the buffers. The error is that of the call that failed, if one did.
func (k *Task) collect(part []*Call, bufs []*Buf, first int) error {
	mem := k.slotMem()
	done := int(hostOrder.Uint64(mem[arch.SlotDone:]))
	if done > len(part) {
		return fmt.Errorf("pid %d: the batch of %d calls says that it has done %d: its slot was overwritten", k.Tid, len(part), done)
	}
	for i, c := range part {
		if i > done {
			break
		}
		c.ran = true
		c.result = int64(hostOrder.Uint64(mem[c.offset+arch.EntryResult:]))
	}
	for _, b := range bufs {
		if b.out {
			copy(b.bytes, mem[b.offset:])
		}
	}
	for i, c := range part {
		if !c.ran {
			break
		}
		if i == done || !c.tolerable() {
			return c.failure(k.Tid, first+i, k.arena.arch)
		}
	}
	return nil
}

// tolerable says whether a call that did not end its part is no failure either: with Allow the
// routine goes on in any case.
func (c *Call) tolerable() bool {
	if c.allow == nil || c.Errno() == 0 {
		return true
	}
	for _, e := range c.allow {
		if e == c.Errno() {
			return true
		}
	}
	return false
}
