package object

import (
	"encoding/binary"
	"errors"

	"crpipe/arch"
)

// MaxNodeWords is how long a mask of NUMA nodes may be: MAX_NUMNODES is at most 1024 (include/linux/nodemask.h).
const MaxNodeWords = 1024 / 64

// CheckMempolicy says whether set_mempolicy(2) could ever take a policy: its mode, MPOL_DEFAULT aside, the flags, and the mask of nodes.
func CheckMempolicy(mode, flags uint16, nodes []uint64) error {
	const maxMode, allFlags = 6, 0xe000 // MPOL_WEIGHTED_INTERLEAVE; MPOL_MODE_FLAGS of uapi/linux/mempolicy.h
	if mode == 0 || mode > maxMode || flags&^allFlags != 0 || len(nodes) > MaxNodeWords {
		return errors.New("a NUMA policy that does not exist")
	}
	return nil
}

// NodeMask returns a mask of nodes as set_mempolicy(2) and mbind(2) take it, and its size in bits plus one (get_nodes in mm/mempolicy.c).
func NodeMask(nodes []uint64, a *arch.Arch) (mask any, bits int) {
	if len(nodes) == 0 {
		return 0, 0
	}
	var b []byte
	for _, n := range nodes {
		if a.WordSize == 4 {
			b = binary.NativeEndian.AppendUint32(b, uint32(n))
			b = binary.NativeEndian.AppendUint32(b, uint32(n>>32))
			continue
		}
		b = binary.NativeEndian.AppendUint64(b, n)
	}
	return b, len(nodes)*64 + 1
}
