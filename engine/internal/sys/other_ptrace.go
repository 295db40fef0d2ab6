//go:build !amd64

package sys

import (
	"golang.org/x/sys/unix"

	"crpipe/arch"
)

// PtraceGetRegs reads the general registers of a task, NT_PRSTATUS.
func PtraceGetRegs(tid int, buf []byte) (int, error) {
	return PtraceGetRegset(tid, arch.NTPRStatus, buf)
}

// PtraceSetRegs writes what PtraceGetRegs reads.
func PtraceSetRegs(tid int, buf []byte) error { return PtraceSetRegset(tid, arch.NTPRStatus, buf) }

// PtraceSetThreadArea is for x86 only.
func PtraceSetThreadArea(int, UserDesc) error { return unix.EIO }
