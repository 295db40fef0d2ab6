package sys

import "encoding/binary"

// The structures below are written into the memory of a target as bytes, in
// the byte order and the layout of the target's machine; all their members
// are fixed-width, so that a 32-bit target reads the same bytes.

// CloneArgs is struct clone_args of clone3(2). Pointer members are addresses
// in the caller's (the target's) memory.
type CloneArgs struct {
	Flags      uint64 // CLONE_* without the exit signal
	Pidfd      uint64 // where the new pidfd goes
	ChildTID   uint64
	ParentTID  uint64
	ExitSignal uint64 // must be 0 with CLONE_THREAD or CLONE_PARENT
	Stack      uint64 // lowest byte of the child's stack
	StackSize  uint64
	TLS        uint64
	SetTID     uint64 // address of an array of pid_t, the innermost namespace first
	SetTIDSize uint64 // its elements
	Cgroup     uint64 // descriptor of a v2 cgroup, with CLONE_INTO_CGROUP
}

// SizeofCloneArgs is CLONE_ARGS_SIZE_VER2, Linux 5.7.
const SizeofCloneArgs = 88

// Append appends the structure's SizeofCloneArgs bytes to b.
func (a *CloneArgs) Append(b []byte, order binary.AppendByteOrder) []byte {
	for _, v := range [...]uint64{
		a.Flags, a.Pidfd, a.ChildTID, a.ParentTID, a.ExitSignal,
		a.Stack, a.StackSize, a.TLS, a.SetTID, a.SetTIDSize, a.Cgroup,
	} {
		b = order.AppendUint64(b, v)
	}
	return b
}

// PrctlMMMap is struct prctl_mm_map of prctl(2) PR_SET_MM_MAP (members in
// PR_SET_MM(2const)). Auxv is the address of the new vector in the caller's
// memory, AuxvSize its bytes (0: unchanged); ExeFD is a descriptor, or
// NoExeFD to leave /proc/PID/exe alone.
type PrctlMMMap struct {
	StartCode, EndCode uint64
	StartData, EndData uint64
	StartBrk, Brk      uint64
	StartStack         uint64
	ArgStart, ArgEnd   uint64
	EnvStart, EnvEnd   uint64
	Auxv               uint64
	AuxvSize           uint32
	ExeFD              uint32
}

// SizeofPrctlMMMap is what PR_SET_MM_MAP_SIZE reports.
const SizeofPrctlMMMap = 104

// NoExeFD is the value of PrctlMMMap.ExeFD that changes nothing.
const NoExeFD = ^uint32(0)

// Append appends the structure's SizeofPrctlMMMap bytes to b.
func (m *PrctlMMMap) Append(b []byte, order binary.AppendByteOrder) []byte {
	for _, v := range [...]uint64{
		m.StartCode, m.EndCode, m.StartData, m.EndData, m.StartBrk, m.Brk,
		m.StartStack, m.ArgStart, m.ArgEnd, m.EnvStart, m.EnvEnd, m.Auxv,
	} {
		b = order.AppendUint64(b, v)
	}
	b = order.AppendUint32(b, m.AuxvSize)
	return order.AppendUint32(b, m.ExeFD)
}
