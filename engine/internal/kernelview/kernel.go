package kernelview

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// The gather program copies many pieces of kernel memory in one call. Its
// array map, which is mapped here, holds:
//
//	0          number of requests (in), 8 bytes
//	8          task_struct of the caller (out), 8 bytes
//	16         requests {address or result 8, offset 4, length 4} x maxRequests
//	dataStart  data area, dataSize bytes and maxRead more, so that an offset
//	           and a length that are each bounded cannot lead out of the map
const (
	maxRequests = 1024
	requestSize = 16
	dataStart   = 16 + maxRequests*requestSize
	dataSize    = 256 << 10
	maxRead     = 32<<10 - 1 // bytes in one request
	mapSize     = dataStart + dataSize + 32<<10
)

// errFault says that the kernel memory at an address could not be read: the
// structure it was found in has changed meanwhile, or is not what it seemed.
var errFault = errors.New("reading kernel memory: a structure changed while it was being read")

// memory reads the kernel's memory. The slices it hands to callbacks are valid
// only until the callback returns.
type memory struct {
	mapped []byte
	array  *sys.FD
	prog   *sys.FD
}

// kernelAddress tells whether a can be an address of the kernel at all, so
// that an integer where a pointer was expected is never followed.
func kernelAddress(a uint64) bool {
	if runtime.GOARCH == "s390x" { // separate address spaces: every value but 0 can be
		return a != 0
	}
	return int64(a) < 0
}

// openMemory loads the gather program. The verifier looks once at the loop's
// body because it is a callback of bpf_loop (Linux 5.17), not an unrolled loop.
func openMemory() (*memory, error) {
	array, err := newArray(mapSize)
	if err != nil {
		return nil, missingBPF("making a BPF map", err)
	}
	m := &memory{array: array}
	page := unix.Getpagesize()
	m.mapped, err = unix.Mmap(array.Int(), 0, (mapSize+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = m.Close() // the mapping's failure is what matters
		return nil, fmt.Errorf("mapping a BPF map: %w", err)
	}
	// The licence of the program, GPL, is the kernel's condition for its helper
	// probe_read_kernel; it covers these instructions only.
	m.prog, err = newProgram(gatherProgram(array.Int()))
	if err != nil {
		_ = m.Close()
		return nil, missingBPF("loading a BPF program", err)
	}
	return m, nil
}

func gatherProgram(mapFD int) asm.Instructions {
	main := asm.Instructions{
		asm.LoadMapValue(asm.R6, mapFD, 0),
		asm.FnGetCurrentTask.Call(),
		asm.StoreMem(asm.R6, 8, asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.Word),
		asm.Instruction{
			OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc, Constant: -1,
		}.WithReference("one"),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnLoop.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}
	one := asm.Instructions{
		asm.LoadMapValue(asm.R6, mapFD, 0),
		asm.And.Imm(asm.R1, maxRequests-1),
		asm.LSh.Imm(asm.R1, 4),
		asm.Mov.Reg(asm.R7, asm.R6),
		asm.Add.Reg(asm.R7, asm.R1),
		asm.LoadMem(asm.R3, asm.R7, 16, asm.DWord),
		asm.LoadMem(asm.R8, asm.R7, 24, asm.Word),
		asm.LoadMem(asm.R2, asm.R7, 28, asm.Word),
		asm.And.Imm(asm.R8, dataSize-1),
		asm.And.Imm(asm.R2, maxRead),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Add.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, dataStart),
		asm.FnProbeReadKernel.Call(),
		asm.StoreMem(asm.R7, 16, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}
	integer := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	word := &btf.Int{Name: "long", Size: 8, Encoding: btf.Signed}
	main[0] = btf.WithFuncMetadata(main[0].WithSymbol("gather"), &btf.Func{
		Name: "gather", Linkage: btf.GlobalFunc,
		Type: &btf.FuncProto{Return: integer, Params: []btf.FuncParam{{Name: "ctx", Type: &btf.Pointer{Target: &btf.Void{}}}}},
	})
	one[0] = btf.WithFuncMetadata(one[0].WithSymbol("one"), &btf.Func{
		Name: "one", Linkage: btf.StaticFunc,
		Type: &btf.FuncProto{Return: word, Params: []btf.FuncParam{
			{Name: "i", Type: integer}, {Name: "ctx", Type: &btf.Pointer{Target: &btf.Void{}}}}},
	})
	return append(main, one...)
}

// Close unloads the program.
func (m *memory) Close() error {
	var errs []error
	if m.prog != nil {
		errs = append(errs, m.prog.Close())
	}
	if m.mapped != nil {
		errs = append(errs, unix.Munmap(m.mapped))
		m.mapped = nil
	}
	if m.array != nil {
		errs = append(errs, m.array.Close())
	}
	return errors.Join(errs...)
}

// current returns the task_struct of the calling thread.
func (m *memory) current() (uint64, error) {
	if err := m.run(0); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(m.mapped[8:]), nil
}

func (m *memory) run(n int) error {
	binary.NativeEndian.PutUint64(m.mapped, uint64(n))
	if err := runProgram(m.prog.Int()); err != nil {
		return fmt.Errorf("running a BPF program: %w", err)
	}
	return nil
}

// gather reads size bytes at every address and calls fn for each with what it
// has read, in order; with nil where the address is 0 or cannot be read. fn
// must neither keep b nor read more.
func (m *memory) gather(addrs []uint64, size int, fn func(i int, b []byte)) error {
	return m.gatherEach(len(addrs), func(i int) (uint64, int) { return addrs[i], size }, fn)
}

// gatherEach is gather with an own size for every request. A size above
// maxRead is the caller's bug.
func (m *memory) gatherEach(n int, req func(i int) (addr uint64, size int), fn func(i int, b []byte)) error {
	type slot struct{ index, off, size int }
	slots := make([]slot, 0, min(n, maxRequests))
	off := 0
	flush := func() error {
		if len(slots) > 0 {
			if err := m.run(len(slots)); err != nil {
				return err
			}
		}
		for k, s := range slots {
			if s.size < 0 || binary.NativeEndian.Uint64(m.mapped[16+k*requestSize:]) != 0 {
				fn(s.index, nil)
				continue
			}
			fn(s.index, m.mapped[dataStart+s.off:dataStart+s.off+s.size:dataStart+s.off+s.size])
		}
		slots, off = slots[:0], 0
		return nil
	}
	for i := range n {
		addr, size := req(i)
		if size > maxRead {
			panic("kernelview: internal error: a read of kernel memory above the limit")
		}
		if len(slots) == maxRequests || off+size > dataSize {
			if err := flush(); err != nil {
				return err
			}
		}
		r := m.mapped[16+len(slots)*requestSize:]
		s := slot{i, off, size}
		if size <= 0 || !kernelAddress(addr) || addr+uint64(size) < addr {
			s.size, addr, size = -1, 0, 0
		}
		binary.NativeEndian.PutUint64(r, addr)
		binary.NativeEndian.PutUint32(r[8:], uint32(off))
		binary.NativeEndian.PutUint32(r[12:], uint32(size))
		slots = append(slots, s)
		off += (size + 7) &^ 7
	}
	return flush()
}

// peek reads any number of bytes at one address.
func (m *memory) peek(addr uint64, size int) ([]byte, error) {
	buf := make([]byte, 0, size)
	fault := false
	const step = maxRead &^ 4095
	err := m.gatherEach((size+step-1)/step,
		func(i int) (uint64, int) { return addr + uint64(i*step), min(step, size-i*step) },
		func(_ int, b []byte) {
			if b == nil {
				fault = true
			}
			buf = append(buf, b...)
		})
	if err != nil {
		return nil, err
	}
	if fault {
		return nil, errFault
	}
	return buf, nil
}
