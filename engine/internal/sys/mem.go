package sys

import (
	"fmt"
	"math"

	"crpipe/arch"

	"golang.org/x/sys/unix"
)

// RemoteRange is a piece of another process's memory.
type RemoteRange struct {
	Addr arch.Addr
	Len  int // bytes
}

// MaxIovec is IOV_MAX, the most pieces one call takes on either side.
const MaxIovec = 1024

// ProcessVMReadv is process_vm_readv(2): it copies the remote pieces of
// process pid (any of its live thread ids) one after the other into the local
// ones. It may copy less than asked: it stops at the first remote page that
// cannot be read, and an error (EFAULT) comes only when that is the first.
func ProcessVMReadv(pid int, local [][]byte, remote []RemoteRange) (int, error) {
	return processVM(pid, local, remote, unix.ProcessVMReadv)
}

// ProcessVMWritev is process_vm_writev(2), the other direction. Unlike
// /proc/PID/mem it cannot write where the mapping forbids it.
func ProcessVMWritev(pid int, local [][]byte, remote []RemoteRange) (int, error) {
	return processVM(pid, local, remote, unix.ProcessVMWritev)
}

func processVM(pid int, local [][]byte, remote []RemoteRange, call func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error)) (int, error) {
	if err := checkPID(pid); err != nil {
		return 0, err
	}
	if len(local) > MaxIovec || len(remote) > MaxIovec {
		return 0, fmt.Errorf("moving %d local and %d remote pieces: %w", len(local), len(remote), unix.EINVAL)
	}
	var lbuf [8]unix.Iovec
	var rbuf [8]unix.RemoteIovec
	liov, riov := lbuf[:0], rbuf[:0]
	for _, b := range local {
		if len(b) == 0 {
			continue
		}
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		liov = append(liov, v)
	}
	for _, r := range remote {
		if uint64(r.Addr) > math.MaxUint || r.Len < 0 {
			return 0, unix.EFAULT // a 64-bit address on a 32-bit build
		}
		if r.Len == 0 {
			continue
		}
		riov = append(riov, unix.RemoteIovec{Base: uintptr(r.Addr), Len: r.Len})
	}
	if len(liov) == 0 || len(riov) == 0 {
		return 0, nil
	}
	return call(pid, liov, riov, 0)
}

// Read fills buf from address addr of process pid; anything less than all of
// it is an error.
func Read(pid int, addr arch.Addr, buf []byte) error {
	return moveAll(pid, addr, buf, ProcessVMReadv, "reading")
}

// Write writes buf to address addr of process pid; anything less than all of
// it is an error.
func Write(pid int, addr arch.Addr, buf []byte) error {
	return moveAll(pid, addr, buf, ProcessVMWritev, "writing")
}

func moveAll(pid int, addr arch.Addr, buf []byte, move func(int, [][]byte, []RemoteRange) (int, error), what string) error {
	for len(buf) > 0 {
		n, err := move(pid, [][]byte{buf}, []RemoteRange{{addr, len(buf)}})
		if err == nil && n == 0 {
			err = unix.EFAULT
		}
		if err != nil {
			return fmt.Errorf("%s %d bytes at %#x of pid %d: %w", what, len(buf), uint64(addr), pid, err)
		}
		buf = buf[n:]
		addr += arch.Addr(n)
	}
	return nil
}
