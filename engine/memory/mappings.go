package memory

import (
	"errors"
	"fmt"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// What smaps says of mappings costs 10 ms for 256 MiB that are there, since the kernel walks all page tables for counters that
// nobody here wants; numa_maps costs as much. So the mappings are taken from maps and, where the kernel view knows all of
// them, from the kernel's own memory; from smaps and numa_maps where it does not.

// mappings returns all mappings as far as this package needs what smaps says of them: the line of maps, Flags, and whether
// AnonHuge, KernelPageSize and ProtectionKey are what they usually are. It checks for NUMA policies. huge is nil if it is not known.
func (m *mmDump) mappings(maps []procfs.VMA, huge *[]Range) ([]procfs.SmapsVMA, error) {
	list, policies, err := m.known(maps)
	if err != nil {
		return nil, err
	}
	if list != nil && huge == nil && !plainHuge(list, m.tid) {
		list = nil
	}
	if list != nil {
		if huge != nil {
			markHuge(list, *huge)
		}
		if policies {
			if err := checkPolicies(m.tid, m.policies); err != nil {
				return list, m.refuse("", err)
			}
		}
		return list, nil
	}
	// Both walk the page tables, so they are read at the same time.
	policy := make(chan error, 1)
	go func() { policy <- checkPolicies(m.tid, m.policies) }()
	list, err = procfs.ReadSmaps(m.tid)
	if bad := <-policy; err == nil && bad != nil {
		err = m.refuse("", bad)
	}
	return list, err
}

// known is what maps and the kernel view say together; nil when they leave anything open. The kernel page size of what is
// not hugetlbfs, which has a flag, and not a device is the page size; a protection key makes the flags unknown. policies
// says that numa_maps is to be looked at: the policy of the task itself is that of the thread and refused with it.
func (m *mmDump) known(maps []procfs.VMA) (list []procfs.SmapsVMA, policies bool, err error) {
	answer, err := m.d.View.Areas(m.tid)
	if err != nil {
		return nil, false, fmt.Errorf("looking at the mappings: %w", err)
	}
	areas, ok := answer.Get()
	if !ok {
		m.d.LocksUnknown = true
		return nil, false, nil
	}
	m.files = make(map[arch.Addr]kernelview.ID, len(areas))
	for i := range areas {
		locked, ok := areas[i].Locked.Get()
		m.d.LocksUnknown = m.d.LocksUnknown || !ok
		if locked {
			lock := object.MappedLock{Process: m.p, Start: areas[i].Start, End: areas[i].End, File: areas[i].File, Flock: areas[i].Flock}
			lock.Keep = func() bool { return m.keepFlock(&lock) }
			m.d.MappedLocks = append(m.d.MappedLocks, lock)
		}
		m.files[areas[i].Start] = areas[i].File
	}
	list = make([]procfs.SmapsVMA, len(maps))
	of := map[int]kernelview.Mempolicy{}
	for i := range maps {
		v := &maps[i]
		list[i].VMA = *v
		if specialOf(m.arch, v) == outside {
			continue
		}
		if len(areas) == 0 || areas[0].Start != v.Start || areas[0].End != v.End {
			return nil, false, nil
		}
		a := &areas[0]
		areas = areas[1:]
		flags, ok := a.Flags.Get()
		if !ok || a.Userfault.V || hasObject(v) != (a.File != 0) {
			return nil, false, nil
		}
		list[i].Flags = procfs.VMFlags(flags)
		if own, ok := a.Mempolicy.Get(); ok && a.Policy == kernelview.Is(true) {
			of[i] = own
		} else {
			policies = policies || !a.Policy.Known || a.Policy.V
		}
	}
	if len(areas) != 0 {
		return nil, false, nil
	}
	for i := range maps {
		if p, ok := of[i]; ok {
			m.addPolicy(&maps[i], &p)
		}
	}
	return list, policies, nil
}

// plainHuge sets AnonHuge of mappings from smaps: without PAGEMAP_SCAN nothing else tells it. False: it shows others.
func plainHuge(list []procfs.SmapsVMA, tid int) bool {
	seen, err := procfs.ReadSmaps(tid)
	if err != nil || len(seen) != len(list) {
		return false
	}
	for i := range list {
		if seen[i].VMA != list[i].VMA {
			return false
		}
		list[i].AnonHuge = seen[i].AnonHuge
	}
	return true
}

// markHuge sets AnonHuge of the mappings in which there are huge pages.
func markHuge(list []procfs.SmapsVMA, huge []Range) {
	for i := range list {
		v := &list[i]
		for len(huge) > 0 && huge[0].End <= uint64(v.Start) {
			huge = huge[1:]
		}
		for _, r := range huge {
			if r.Start >= uint64(v.End) {
				break
			}
			v.AnonHuge += (min(r.End, uint64(v.End)) - max(r.Start, uint64(v.Start))) >> 10
		}
	}
}

// guardsAndHuge returns the guard regions and what is mapped by huge pages of anonymous memory (AnonHugePages of smaps),
// both below end and ascending. huge is not known, and nil, where the kernel has no PAGEMAP_SCAN.
func guardsAndHuge(tid int, end arch.Addr) (guards []Range, huge *[]Range, err error) {
	pagemap, err := openPageMap(tid)
	if err != nil {
		return nil, nil, err
	}
	defer pagemap.Close()
	both := sys.PagemapScanArgs{End: end, AnyOf: sys.PageGuard | sys.PageHuge, Return: sys.PageGuard | sys.PageHuge}
	var large []Range
	if err := eachRegion(pagemap, both, func(r sys.PageRegion) {
		if r.Categories&sys.PageGuard != 0 {
			guards = join(guards, r)
		} else {
			large = join(large, r)
		}
	}); err != nil {
		return nil, nil, fmt.Errorf("looking for guard regions and huge pages: %w", err)
	}
	if pagemap.plain {
		return guards, nil, nil
	}
	huge = &[]Range{}
	// Whose pages they are is asked only here: the kernel has to look at each page for it.
	for _, r := range large {
		const not = sys.PageFile | sys.PagePFNZero
		args := sys.PagemapScanArgs{
			Start: arch.Addr(r.Start), End: arch.Addr(r.End),
			Inverted: not, Mask: not | sys.PageHuge | sys.PagePresent, Return: sys.PageHuge,
		}
		if err := eachRegion(pagemap, args, func(r sys.PageRegion) { *huge = join(*huge, r) }); err != nil {
			return nil, nil, fmt.Errorf("looking for huge pages: %w", err)
		}
	}
	return guards, huge, nil
}

// eachRegion calls f for each region that args describe.
func eachRegion(pagemap *pageMap, args sys.PagemapScanArgs, f func(sys.PageRegion)) error {
	var regions [64]sys.PageRegion
	for args.Start < args.End {
		n, walked, err := pagemap.scan(&args, regions[:])
		if err != nil {
			return err
		}
		for _, r := range regions[:n] {
			f(r)
		}
		if walked <= args.Start {
			return errors.New("the kernel makes no progress")
		}
		args.Start = walked
	}
	return nil
}

// join appends a region to ascending ranges.
func join(out []Range, r sys.PageRegion) []Range {
	if k := len(out); k > 0 && out[k-1].End == uint64(r.Start) {
		out[k-1].End = uint64(r.End)
		return out
	}
	return append(out, Range{uint64(r.Start), uint64(r.End)})
}
