package kernelview

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// progRun is the part of union bpf_attr that BPF_PROG_RUN uses (linux/bpf.h).
type progRun struct {
	progFD      uint32
	retval      uint32
	dataSizeIn  uint32
	dataSizeOut uint32
	dataIn      uint64
	dataOut     uint64
	repeat      uint32
	duration    uint32
	ctxSizeIn   uint32
	ctxSizeOut  uint32
	ctxIn       uint64
	ctxOut      uint64
	flags       uint32
	cpu         uint32
	batchSize   uint32
	_           uint32
}

// runProgram runs a program of type SYSCALL once, without the library's way
// round it, which costs three times the call itself.
func runProgram(fd int) error {
	attr := progRun{progFD: uint32(fd)}
	_, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&attr)
	if e != 0 {
		return e
	}
	return nil
}

// addressOf is where memory begins that does not move.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
