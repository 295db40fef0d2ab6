package kernelview

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"crpipe/arch"
)

// The structures of fs/aio.c, and of a BPF array of which every processor has
// its own (include/linux/bpf.h).
var (
	fAIOUser      = want("kioctx.user_id")
	fAIOCPU       = want("kioctx.cpu")
	fAIOMax       = want("kioctx.max_reqs")
	fAIOSlots     = want("kioctx.nr_events")
	fAIOBase      = want("kioctx.mmap_base")
	fAIOSize      = want("kioctx.mmap_size")
	fAIOFree      = want("kioctx.reqs_available")
	fAIOActive    = want("kioctx.active_reqs")
	fAIOTail      = want("kioctx.tail")
	fAIOCompleted = want("kioctx.completed_events")
	fAIOID        = want("kioctx.id")
	fAIOCPUFree   = want("kioctx_cpu.reqs_available")
	fArrayPercpu  = want("bpf_array.pptrs")
)

// aioContexts tells of the contexts of io_setup(2), by their index, and counts
// them.
func (v *bpfView) aioContexts(b []byte) (all Maybe[[]AIOContext], count Maybe[int], err error) {
	l := v.l
	addr, ok := l.uint(b, fMIoctx)
	if !ok || !l.has(fIoctxNr) || !l.has(fIoctxTable) {
		return all, count, nil
	}
	if addr == 0 {
		return Is([]AIOContext(nil)), Is(0), nil
	}
	head, err := v.mem.peek(addr, l.span["kioctx_table"])
	if err != nil {
		return all, count, err
	}
	n, _ := l.uint(head, fIoctxNr)
	const most = 1 << 20 // far above what fs.aio-max-nr allows
	if n > most {
		return all, count, errFault
	}
	table, err := v.mem.peek(addr+l.off(fIoctxTable), int(n)*8)
	if err != nil {
		return all, count, err
	}
	known := true
	var list []AIOContext
	for _, p := range words(table) {
		if p == 0 {
			continue
		}
		count.V++
		c, ok, err := v.aioContext(p)
		if err != nil {
			return all, Maybe[int]{}, err
		}
		known = known && ok
		list = append(list, c)
	}
	count.Known = true
	if known {
		all = Is(list)
	}
	return all, count, nil
}

// aioContext reads one context. Every slot of its ring is free (counted for all
// processors together and for each of them), taken by a request that is in
// flight, or by an event that was not counted back since it was read.
func (v *bpfView) aioContext(addr uint64) (AIOContext, bool, error) {
	l := v.l
	b, err := v.mem.peek(addr, l.span["kioctx"])
	if err != nil {
		return AIOContext{}, false, err
	}
	for _, f := range []field{fAIOUser, fAIOMax, fAIOSlots, fAIOBase, fAIOSize, fAIOActive, fAIOTail, fAIOID} {
		if !l.has(f) {
			return AIOContext{}, false, nil
		}
	}
	get := func(f field) uint64 { n, _ := l.uint(b, f); return n }
	active, _ := l.bytes(b, fAIOActive)
	c := AIOContext{
		Ring: arch.Addr(get(fAIOBase)), Size: get(fAIOSize), Index: uint32(get(fAIOID)), MaxReq: uint32(get(fAIOMax)),
		Slots: uint32(get(fAIOSlots)), Tail: uint32(get(fAIOTail)),
		Polls: binary.NativeEndian.Uint64(active) != addr+l.off(fAIOActive),
	}
	if get(fAIOUser) != uint64(c.Ring) {
		return c, false, nil // it is being made, or its mapping was half unmapped
	}
	free, ok := l.bytes(b, fAIOFree) // an atomic_t
	if !ok || len(free) != 4 || !l.has(fAIOCompleted) || !l.has(fAIOCPU) || !l.has(fAIOCPUFree) {
		return c, true, nil
	}
	taken := int(c.Slots) - 1 - int(int32(binary.NativeEndian.Uint32(free))) - int(get(fAIOCompleted))
	places, err := v.perCPU()
	if err != nil || places == nil {
		return c, true, err
	}
	for _, place := range places {
		own, err := v.mem.peek(get(fAIOCPU)+place, l.span["kioctx_cpu"])
		if err != nil {
			return c, true, err
		}
		n, _ := l.uint(own, fAIOCPUFree)
		taken -= int(n)
	}
	if taken >= 0 {
		c.InFlight = Is(taken)
	}
	return c, true, nil
}

// perCPU returns, for every possible processor, how far what is its own lies
// from where pointers to such memory lead. Without symbols of data that takes a
// map with an element for each of them: the kernel has one pointer to it, and
// tells a program where the element of one processor is. nil: this kernel does
// not tell.
func (v *bpfView) perCPU() ([]uint64, error) {
	if v.places != nil || !v.l.has(fArrayPercpu) {
		return v.places, nil
	}
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting processors: %w", err)
	}
	own, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, missingBPF("making a BPF map", err)
	}
	defer own.Close()
	// The processor, the address of its element, that of the map.
	told, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1})
	if err != nil {
		return nil, missingBPF("making a BPF map", err)
	}
	defer told.Close()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.Syscall, License: "GPL", Flags: unix.BPF_F_SLEEPABLE, Instructions: asm.Instructions{
		asm.LoadMapValue(asm.R6, told.FD(), 0),
		asm.LoadMem(asm.R3, asm.R6, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, own.FD()),
		asm.StoreMem(asm.R6, 16, asm.R1, asm.DWord),
		asm.StoreImm(asm.R10, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupPercpuElem.Call(),
		asm.StoreMem(asm.R6, 8, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}})
	if err != nil {
		return nil, nil // a kernel without that helper (Linux 5.19): what it would tell is unknown
	}
	defer prog.Close()
	places := make([]uint64, n)
	for i := range places {
		value := make([]byte, 24)
		binary.NativeEndian.PutUint32(value, uint32(i))
		if err := told.Put(uint32(0), value); err != nil {
			return nil, fmt.Errorf("asking where processor %d keeps what is its own: %w", i, err)
		}
		if err := runProgram(prog.FD()); err != nil {
			return nil, fmt.Errorf("running a BPF program: %w", err)
		}
		if err := told.Lookup(uint32(0), &value); err != nil {
			return nil, fmt.Errorf("asking where processor %d keeps what is its own: %w", i, err)
		}
		element, array := binary.NativeEndian.Uint64(value[8:]), binary.NativeEndian.Uint64(value[16:])
		b, err := v.mem.peek(array+v.l.off(fArrayPercpu), 8)
		if err != nil || element == 0 {
			return nil, errors.Join(err, errFault)
		}
		places[i] = element - binary.NativeEndian.Uint64(b)
	}
	v.places = places
	return places, nil
}
