package kernelview

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// The library's own way to load asks the kernel a dozen times what it can, by maps, types and programs that it throws away, which is
// half of what opening a view costs. What is loaded here needs Linux 5.17 anyway, and says so by failing.

// mapCreate, btfLoad and progLoad are the parts of union bpf_attr that are used (linux/bpf.h).
type mapCreate struct {
	mapType, keySize, valueSize, maxEntries, mapFlags uint32
}

type btfLoad struct {
	btf, log             uint64
	size, logSize, level uint32
}

type progLoad struct {
	progType, insnCount                  uint32
	insns, license                       uint64
	logLevel, logSize                    uint32
	log                                  uint64
	kernelVersion, flags                 uint32
	name                                 [16]byte
	ifindex, attachType                  uint32
	btfFD, funcInfoSize                  uint32
	funcInfo                             uint64
	funcInfoCount, lineInfoSize          uint32
	lineInfo                             uint64
	lineInfoCount, attachBTF, attachProg uint32
}

// bpf is the system call, for commands that return a descriptor, which is close-on-exec.
func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (*sys.FD, error) {
	for {
		fd, _, e := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
		switch e {
		case 0:
			return sys.NewFD(int(fd)), nil
		case unix.EAGAIN, unix.EINTR: // the verifier gives way to a signal
		default:
			return nil, e
		}
	}
}

// newArray makes an array map of one element that can be mapped.
func newArray(size int) (*sys.FD, error) {
	attr := mapCreate{mapType: unix.BPF_MAP_TYPE_ARRAY, keySize: 4, valueSize: uint32(size), maxEntries: 1, mapFlags: unix.BPF_F_MMAPABLE}
	return bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// newProgram loads a program of type SYSCALL, and the types of its functions, which the instructions name.
func newProgram(insns asm.Instructions) (*sys.FD, error) {
	var order binary.ByteOrder = binary.LittleEndian
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		order = binary.BigEndian
	}
	var types btf.Builder
	functions, _, err := btf.MarshalExtInfos(insns, &types)
	if err != nil {
		return nil, fmt.Errorf("encoding a BPF program: %w", err)
	}
	blob, err := types.Marshal(nil, &btf.MarshalOptions{Order: order})
	if err != nil {
		return nil, fmt.Errorf("encoding a BPF program: %w", err)
	}
	var code bytes.Buffer
	if err := insns.Marshal(&code, order); err != nil {
		return nil, fmt.Errorf("encoding a BPF program: %w", err)
	}
	described := btfLoad{btf: addressOf(blob), size: uint32(len(blob))}
	known, err := bpf(unix.BPF_BTF_LOAD, unsafe.Pointer(&described), unsafe.Sizeof(described))
	runtime.KeepAlive(blob)
	if err != nil {
		return nil, err
	}
	defer known.Close() // the program keeps it
	license := []byte("GPL\x00")
	attr := progLoad{
		progType: unix.BPF_PROG_TYPE_SYSCALL, flags: unix.BPF_F_SLEEPABLE,
		insns: addressOf(code.Bytes()), insnCount: uint32(code.Len() / asm.InstructionSize), license: addressOf(license),
		btfFD: uint32(known.Int()), funcInfo: addressOf(functions), funcInfoSize: btf.FuncInfoSize, funcInfoCount: uint32(len(functions)) / btf.FuncInfoSize,
	}
	prog, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(code.Bytes())
	runtime.KeepAlive(license)
	runtime.KeepAlive(functions)
	return prog, err
}
