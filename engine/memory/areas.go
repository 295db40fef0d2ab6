package memory

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// The kernel shows of a mapping: /proc/PID/maps (range, permissions, offset, file) and the VmFlags line of smaps
// (proc_pid_smaps(5), fs/proc/task_mmu.c; mappings.go has it from elsewhere where it can). Not shown, and checked for
// elsewhere: its NUMA policy (numa_maps) and guard regions (PAGEMAP_SCAN). Lost: nothing else that a program can ask for; whether MADV_FREE was called on a page is not kept, the
// page is.

// unkept are the flags of mappings that cannot be rebuilt, in the order of looking.
var unkept = [...]struct{ code, what string }{
	{"io", "device memory cannot be checkpointed"},
	{"pf", "device memory cannot be checkpointed"},
	{"mm", "device memory cannot be checkpointed"},
	{"de", "memory that belongs to a driver cannot be checkpointed"},
	{"ss", "a shadow stack cannot be checkpointed"},
	{"um", "memory registered with userfaultfd cannot be checkpointed"},
	{"uw", "memory registered with userfaultfd cannot be checkpointed"},
	{"ui", "memory registered with userfaultfd cannot be checkpointed"},
	{"sf", "a synchronous mapping of persistent memory (MAP_SYNC) cannot be checkpointed"},
	{"mt", "memory with tags (MTE) cannot be checkpointed"},
	{"bt", "memory with branch protection (BTI) cannot be checkpointed"},
	{"ar", "memory with architecture-specific attributes cannot be checkpointed"},
}

// natural are the flags that follow from permissions, file and kernel by themselves: "sh" and "mw" of what is shared from
// how the file is opened, "sd" is the tracking of the dumps of others, "gu" only says that guard regions may exist.
var natural = [...]string{"rd", "wr", "ex", "sh", "mr", "mw", "me", "ms", "sd", "gu"}

// special says what kind of thing a name in brackets is.
type special int

const (
	ordinary special = iota
	vdsoPart
	outside // not part of the address space: the kernel's own page that every process sees
	foreign // made by the kernel, and not known here
)

func specialOf(a *arch.Arch, v *procfs.VMA) special {
	name := v.Path
	switch {
	case !strings.HasPrefix(name, "["), v.Inode != 0 || v.Major != 0 || v.Minor != 0:
		return ordinary
	case name == "[heap]", strings.HasPrefix(name, "[stack"), strings.HasPrefix(name, "[anon:"):
		return ordinary
	case a.VDSO.IsPart(name):
		return vdsoPart
	case name == "[vsyscall]":
		return outside
	}
	return foreign
}

// areaOf turns a line of smaps into an Area without its object. The error says why it cannot be kept.
func areaOf(a *arch.Arch, v *procfs.SmapsVMA) (Area, error) {
	area := Area{Start: uint64(v.Start), End: uint64(v.End), Perms: v.Prot.String()}
	kind := specialOf(a, &v.VMA)
	if kind == foreign {
		return area, object.Unsupportedf("memory that the kernel made for itself cannot be checkpointed")
	}
	if v.End > a.TaskSize {
		return area, object.Unsupportedf("an address beyond %v cannot be checkpointed", a.TaskSize)
	}
	if kind == vdsoPart {
		area.Name = v.Path
		return area, nil
	}
	huge := v.Flags.Has("ht")
	if huge && strings.HasPrefix(v.Path, sysvPrefix) {
		return area, object.Unsupportedf("System V shared memory of huge pages (SHM_HUGETLB) cannot be checkpointed")
	}
	if huge && !isAnonHuge(&v.VMA) {
		return area, object.Unsupportedf("memory of hugetlbfs pages that is shared or of a file cannot be checkpointed")
	}
	if v.ProtectionKey != 0 {
		return area, object.Unsupportedf("memory with protection key %d cannot be checkpointed", v.ProtectionKey)
	}
	var err error
	if area.Flags, err = keptFlags(v, huge); err != nil {
		return area, err
	}
	if huge {
		area.PageSize = v.KernelPageSize << 10
	}
	if strings.HasPrefix(v.Path, "[anon:") || strings.HasPrefix(v.Path, "[anon_shmem:") {
		area.Name = v.Path
	}
	if hasObject(&v.VMA) && !huge {
		area.Offset = v.Offset
	}
	return area, nil
}

// flagsKey is what keptFlags looks at.
type flagsKey struct {
	codes                procfs.VMFlags
	huge, shared, asHuge bool
	ring                 bool // of an io_uring instance
}

type flagsAnswer struct {
	flags string
	err   error
}

// flagsMet are answers of keptFlags: thousands of mappings have a handful of sets of flags.
var flagsMet = struct {
	sync.Mutex
	all map[flagsKey]flagsAnswer
}{all: map[flagsKey]flagsAnswer{}}

// keptFlags are the flags of a mapping as the image has them. The error says why it cannot be kept.
func keptFlags(v *procfs.SmapsVMA, huge bool) (string, error) {
	const most = 1024 // answers that are worth keeping
	key := flagsKey{v.Flags, huge, v.Prot&procfs.ProtShared != 0, v.AnonHuge != 0, isRing(&v.VMA)}
	if v.Flags.Has(noCode) { // rare, and not a matter of the flags alone
		return key.look()
	}
	flagsMet.Lock()
	defer flagsMet.Unlock()
	a, ok := flagsMet.all[key]
	if !ok {
		a.flags, a.err = key.look()
		if len(flagsMet.all) < most {
			flagsMet.all[key] = a
		}
	}
	return a.flags, a.err
}

// natural says whether a flag is natural because the mapping shows an io_uring instance.
func (k *flagsKey) natural(code string) bool { return k.ring && slices.Contains(ringCodes, code) }

func (k *flagsKey) look() (string, error) {
	for _, u := range unkept {
		if k.codes.Has(u.code) && !(k.huge && u.code == "de") && !k.natural(u.code) { // which all memory of hugetlbfs has
			return "", object.Unsupportedf("%s", u.what)
		}
	}
	var f flag
	for _, code := range k.codes.Codes() {
		i := slices.Index(flagCodes[:], code)
		switch {
		case code == "mw" && !k.shared: // every private mapping has it
		case code == "de" && k.huge, k.natural(code):
		case i >= 0:
			f |= 1 << i
		case code == noCode && f&flagLocked != 0 && f&flagLockOnFault == 0 && onFaultHasNoCode():
			f |= flagLockOnFault
		case !slices.Contains(natural[:], code):
			return "", object.Unsupportedf("memory with the flag %q, which this build does not know, cannot be checkpointed", code)
		}
	}
	if k.asHuge {
		f |= flagTHP
	}
	return f.String(), nil
}

// isAnonHuge says whether a mapping of hugetlbfs is memory of nobody else: a file that the kernel has made for it alone (hugetlb_file_setup).
func isAnonHuge(v *procfs.VMA) bool {
	return v.Prot&procfs.ProtShared == 0 && v.Path == "/anon_hugepage (deleted)"
}

// hasObject says whether a mapping has a file behind it, be it an internal one of the kernel.
func hasObject(v *procfs.VMA) bool { return v.Inode != 0 || v.Major != 0 || v.Minor != 0 }

// nameOf says in a message what a mapping is.
func nameOf(v *procfs.VMA) string {
	s := "mapping " + span(v.Start, v.End)
	if v.Path != "" {
		s += " of " + v.Path
	}
	return s
}

// checkVDSO says whether the parts of the vdso lie as the kernel lays them: each once, in order, one right behind the other.
func checkVDSO(a *arch.Arch, areas []Area) error {
	last, next := -1, uint64(0)
	code := false
	for i := range areas {
		part := slices.Index(a.VDSO.Parts, areas[i].Name)
		if areas[i].Name == "" || part < 0 {
			continue
		}
		if part <= last || last >= 0 && areas[i].Start != next {
			return fmt.Errorf("%s lies where the kernel does not put it", areas[i].Name)
		}
		last, next = part, areas[i].End
		code = code || areas[i].Name == a.VDSO.Code
	}
	if last >= 0 && !code {
		return fmt.Errorf("%s is missing", a.VDSO.Code)
	}
	return nil
}
