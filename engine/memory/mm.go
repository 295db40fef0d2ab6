package memory

import (
	"crpipe/arch"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Record types.
const (
	TypeMM    stream.Type = "mm"       // an address space without its mappings
	TypeAreas stream.Type = "mm.areas" // mappings of an address space, some of them
	TypeVDSO  stream.Type = "vdso"     // the kernel's code in a process
	TypeFile  stream.Type = "mapfile"  // a file that is mapped or executed
	TypeShm   stream.Type = "shm"      // anonymous memory that is mapped shared
)

const (
	// MaxAreas is how many mappings one address space of an image may have: far beyond vm.max_map_count's usual 65530, near the
	// kernel's own limit for it that containers use.
	MaxAreas = 1 << 20
	// areasPerRecord keeps a record's metadata well under stream.MaxMeta whatever the names are.
	areasPerRecord = 2048
	// maxPages is the most contents that one pages record carries, in bytes.
	maxPages = 256 << 10
)

// MM is the record of an address space: everything but its mappings, which follow in Areas records.
type MM struct {
	// Compat: of a program of the 32-bit companion of the image's architecture.
	Compat bool `msgpack:"compat,omitempty"`

	VDSO stream.Ref `msgpack:"vdso,omitempty"` // zero: the vdso is not mapped
	Exe  stream.Ref `msgpack:"exe,omitempty"`  // a mapfile; what /proc/PID/exe shows

	// What PR_SET_MM_MAP sets, PR_SET_MM(2const).
	StartCode  uint64   `msgpack:"start_code"`
	EndCode    uint64   `msgpack:"end_code"`
	StartData  uint64   `msgpack:"start_data"`
	EndData    uint64   `msgpack:"end_data"`
	StartBrk   uint64   `msgpack:"start_brk"`
	Brk        uint64   `msgpack:"brk"`
	StartStack uint64   `msgpack:"start_stack"`
	ArgStart   uint64   `msgpack:"arg_start"`
	ArgEnd     uint64   `msgpack:"arg_end"`
	EnvStart   uint64   `msgpack:"env_start"`
	EnvEnd     uint64   `msgpack:"env_end"`
	Auxv       []uint64 `msgpack:"auxv"` // words, with the AT_NULL pair

	Dumpable    uint8  `msgpack:"dumpable"`                // PR_GET_DUMPABLE; 2 is what fs.suid_dumpable makes of it
	CoreFilter  uint32 `msgpack:"coredump_filter"`         // /proc/PID/coredump_filter
	THPDisable  bool   `msgpack:"thp_disable,omitempty"`   // PR_SET_THP_DISABLE
	THPAdvised  bool   `msgpack:"thp_advised,omitempty"`   // the same but for what madvise(2) names
	FutexHash   bool   `msgpack:"futex_hash,omitempty"`    // PR_FUTEX_HASH_SET_SLOTS has set
	FutexSlots  uint32 `msgpack:"futex_slots,omitempty"`   // these; 0: the hash of all processes
	KSMMerge    bool   `msgpack:"ksm_merge,omitempty"`     // PR_SET_MEMORY_MERGE
	MDWE        uint8  `msgpack:"mdwe,omitempty"`          // bits of PR_SET_MDWE
	LockFuture  bool   `msgpack:"lock_future,omitempty"`   // mlockall(MCL_FUTURE)
	LockOnFault bool   `msgpack:"lock_on_fault,omitempty"` // mlockall(MCL_FUTURE|MCL_ONFAULT)
	Membarrier  uint32 `msgpack:"membarrier,omitempty"`    // MEMBARRIER_CMD_GET_REGISTRATIONS

	LDT []byte `msgpack:"ldt,omitempty"` // entries of modify_ldt(2), 8 bytes each

	Guards []Range `msgpack:"guards,omitempty"` // MADV_GUARD_INSTALL, ascending
	// Huge is where huge pages are in use in mappings that do not ask for them (MADV_COLLAPSE), ascending.
	Huge []Range `msgpack:"huge,omitempty"`
	AIO  []AIO   `msgpack:"aio,omitempty"` // contexts of io_setup(2), by their index
	// Policies are the NUMA policies of mappings, ascending.
	Policies []Policy `msgpack:"policies,omitempty"`
}

// Range is [Start, End) in bytes.
type Range struct {
	Start uint64 `msgpack:"start"`
	End   uint64 `msgpack:"end"`
}

// Areas is the record of up to areasPerRecord mappings of MM, in ascending order; records of one address space follow
// each other in ascending order too.
type Areas struct {
	MM    stream.Ref `msgpack:"mm"`
	Areas []Area     `msgpack:"areas"`
}

// Area is one mapping.
type Area struct {
	Start uint64 `msgpack:"start"`
	End   uint64 `msgpack:"end"`
	// Perms is the second column of /proc/PID/maps: "rwxp", "r--s".
	Perms string `msgpack:"perms"`
	// Flags are codes of the VmFlags line of /proc/PID/smaps, those that a new mapping does not have by itself, separated by
	// blanks in the order of the table below, and "thp" where huge pages were in use.
	Flags string `msgpack:"flags,omitempty"`
	// Of is the mapped object: a mapfile, an shm or an ipc.shm, zero for private anonymous memory and parts of the vdso.
	Of     stream.Ref `msgpack:"of,omitempty"`
	Offset uint64     `msgpack:"offset,omitempty"` // in Of, bytes
	// PageSize is the size of the pages in bytes of memory that has pages of its own kind (MAP_HUGETLB).
	PageSize uint64 `msgpack:"page_size,omitempty"`
	// Name is "[vdso]" and its like for a part of the vdso, "[anon:NAME]" or "[anon_shmem:NAME]" for memory that the program
	// has given a name (PR_SET_VMA), else empty.
	Name string `msgpack:"name,omitempty"`
}

// VDSO is the record of a kernel's code in a process.
type VDSO struct {
	Image []byte `msgpack:"image"` // the whole part with the code
}

// Pages is the metadata of a pages record; its payload is the contents.
type Pages struct {
	Of   stream.Ref `msgpack:"of"`   // an mm, an shm or an ipc.shm
	Addr uint64     `msgpack:"addr"` // of the first byte: an address, or an offset in the others
}

// Kinds are this package's kinds, for the table of kinds.
func Kinds() []object.Kind {
	return []object.Kind{
		object.NewKind(TypeFile, restoreFile),
		object.NewKind(TypeShm, restoreShm),
		object.NewKind[Segment](TypeSegment, nil),
		object.NewKind[VDSO](TypeVDSO, nil),
		object.NewKind(TypeMM, restoreMM),
		object.NewKind[Areas](TypeAreas, nil),
		object.NewKind[Cow](TypeCow, nil),
		object.NewKind[CowRanges](TypeCowRanges, nil),
	}
}

// flag is a set of what a mapping is beside its permissions.
type flag uint32

const (
	flagMayWrite    flag = 1 << iota // a shared file mapping whose file is open for writing
	flagGrowsDown                    // MAP_GROWSDOWN
	flagAccount                      // counts as committed memory: was writable once
	flagNoReserve                    // MAP_NORESERVE
	flagDroppable                    // MAP_DROPPABLE
	flagLocked                       // mlock(2)
	flagLockOnFault                  // mlock2(2) MLOCK_ONFAULT
	flagDontFork                     // MADV_DONTFORK
	flagDontDump                     // MADV_DONTDUMP
	flagWipeOnFork                   // MADV_WIPEONFORK
	flagMergeable                    // MADV_MERGEABLE
	flagHugePage                     // MADV_HUGEPAGE
	flagNoHugePage                   // MADV_NOHUGEPAGE
	flagSequential                   // MADV_SEQUENTIAL
	flagRandom                       // MADV_RANDOM
	flagSealed                       // mseal(2)
	flagHugeTLB                      // MAP_HUGETLB
	flagTHP                          // huge pages were in use
)

// flagCodes is in the order of the bits. The codes but the last are those of fs/proc/task_mmu.c, show_smap_vma_flags.
var flagCodes = [...]string{"mw", "gd", "ac", "nr", "dp", "lo", "lf", "dc", "dd", "wf", "mg", "hg", "nh", "sr", "rr", "sl", "ht", "thp"}

func (f flag) String() string {
	var b []byte
	for i, code := range flagCodes {
		if f&(1<<i) != 0 {
			if len(b) > 0 {
				b = append(b, ' ')
			}
			b = append(b, code...)
		}
	}
	return string(b)
}

// parseFlags is the inverse of String, and as strict: an unknown code, a repeated one or one out of order is an error.
func parseFlags(s string) (flag, bool) {
	var f flag
	i := 0
	for s != "" {
		word := s
		for j := range len(s) {
			if s[j] == ' ' {
				word = s[:j]
				break
			}
		}
		for i < len(flagCodes) && flagCodes[i] != word {
			i++
		}
		if i == len(flagCodes) {
			return 0, false
		}
		f |= 1 << i
		i++
		s = s[len(word):]
		if s != "" {
			if s = s[1:]; s == "" {
				return 0, false // a blank at the end
			}
		}
	}
	return f, true
}

// layoutFields returns the fields of m that are addresses inside the address space.
func (m *MM) layoutFields() [11]uint64 {
	return [...]uint64{m.StartCode, m.EndCode, m.StartData, m.EndData, m.StartBrk, m.Brk, m.StartStack, m.ArgStart, m.ArgEnd, m.EnvStart, m.EnvEnd}
}

func pageAligned(v uint64, pageSize int) bool { return v&uint64(pageSize-1) == 0 }

// span says in a message where a mapping is.
func span(start, end arch.Addr) string { return start.String()[2:] + "-" + end.String()[2:] }
