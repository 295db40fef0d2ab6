package kernelview

import "crpipe/arch"

// Area is one mapping of an address space: a line of /proc/PID/maps, and what
// only smaps and numa_maps say, for which the kernel walks all page tables.
type Area struct {
	Start, End arch.Addr // End is exclusive
	// Flags are the two-letter codes of the VmFlags line of /proc/PID/smaps in its
	// order, with a blank between them. Unknown when the kernel has set a bit for
	// the mapping whose code, if it has one, has not been found.
	Flags  Maybe[string]
	Offset uint64 // in the file, bytes; without a file the kernel's own business
	File   ID     // the open file, as File.ID; 0: none

	Policy Maybe[bool] // a NUMA policy of its own (mbind(2)), or of the shared memory that it shows
	// Mempolicy is the policy of its own, where Policy says that it has one and not the shared memory.
	Mempolicy Maybe[Mempolicy]
	Named     Maybe[bool] // has a name from PR_SET_VMA
	Userfault Maybe[bool] // registered with userfaultfd(2)
	// Locked says that a lock or lease belongs to the open file that the mapping
	// holds: it lives as long as the mapping does, whatever is closed.
	Locked Maybe[bool]
	// Flock is LOCK_SH or LOCK_EX (flock(2)) where such a lock is the only one of them; else 0.
	Flock uint8

	word uint64 // vm_flags
}
