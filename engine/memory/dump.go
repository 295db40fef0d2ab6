package memory

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// mmKey is the identity of an address space in a dump, vdsoKey that of a vdso: its contents.
type (
	mmKey   struct{ id kernelview.ID }
	vdsoKey string
)

// mmDump is the dump of one address space.
type mmDump struct {
	d       *object.Dumper
	p       *object.Process
	tid     int
	arch    *arch.Arch           // of the program that the address space was made for: the machine's, or its 32-bit companion
	objects map[objectKey]mapped // by what maps says
	current *procfs.SmapsVMA     // the mapping that is being looked at
	memory  *sys.FD              // /proc/PID/mem, opened when first wanted
	image   []byte               // of the vdso, once it has been read

	policies []Policy                    // of the mappings
	files    map[arch.Addr]kernelview.ID // the open files of mappings, by where they begin; nil without the kernel view
}

// objectKey is what /proc/PID/maps says of a mapped object.
type objectKey struct {
	major, minor uint32
	inode        uint64
	path         string
	write        bool // shared, and open for writing
}

// Dump adds the address space of p and whatever it refers to, and sets p.MM. Everything in it that cannot be kept is
// refused (Dumper.Refuse); the error is about the dump itself. A zombie has none.
func Dump(d *object.Dumper, p *object.Process) error {
	if p.Zombie {
		return nil
	}
	m := &mmDump{d: d, p: p, tid: p.Leader().TID, objects: map[objectKey]mapped{}}
	defer func() { _ = m.memory.Close() }() // only read from
	as, ok := p.View.MM.Get()
	if !ok {
		return m.unknown("the address space")
	}
	if as.ID == 0 {
		return p.Error("", errors.New("it has no address space"))
	}
	ref, err := d.Once(mmKey{as.ID}, func() (stream.Ref, error) { return m.dump(&as) })
	if err != nil {
		var named *object.Error
		if !errors.As(err, &named) {
			err = p.Error("", err)
		}
		return err
	}
	p.MM = ref
	return nil
}

// mem returns a descriptor of /proc/PID/mem, by which reading changes nothing (shared.go).
func (m *mmDump) mem() (*sys.FD, error) {
	if m.memory == nil {
		fd, err := sys.Open(procfs.Path(m.tid, "mem"), unix.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		m.memory = fd
	}
	return m.memory, nil
}

func (m *mmDump) unknown(what string) error {
	return m.p.Error("", &object.Lacking{What: "this kernel does not let " + what + " be known"})
}

func (m *mmDump) dump(as *kernelview.AddressSpace) (stream.Ref, error) {
	var err error
	if m.arch, err = m.programOf(as); err != nil {
		return stream.Ref{}, err
	}
	mm, err := m.state(as)
	if err != nil {
		return stream.Ref{}, err
	}
	seen := m.lookOf()
	if seen.err != nil {
		return stream.Ref{}, seen.err
	}
	huge := seen.huge
	mm.Guards = seen.guards
	list, err := m.mappings(seen.maps, huge)
	if err != nil {
		return stream.Ref{}, err
	}
	if mm.Policies = m.policies; len(mm.Policies) > maxPolicies {
		m.d.Refuse(m.p.Error("", object.Unsupportedf("more than %d ranges of memory with NUMA policies cannot be checkpointed", maxPolicies)))
	}
	areas, parts, err := m.areas(mm, list)
	if err != nil {
		return stream.Ref{}, err
	}
	if huge != nil {
		mm.Huge = unasked(areas, *huge)
	}
	if err := checkVDSO(m.arch, areas); err != nil {
		m.d.Refuse(m.p.Error("", object.Unsupportedf("the vdso cannot be checkpointed: %v", err)))
	} else if mm.VDSO, err = m.vdso(areas); err != nil {
		return stream.Ref{}, err
	}
	exe, met := m.mappedExe(as, list)
	if !met {
		exe, err = m.file(procfs.Path(m.tid, "exe"), nil)
	}
	if err != nil {
		if err = m.refuse("executable", err); err != nil {
			return stream.Ref{}, err
		}
	}
	mm.Exe = exe.ref
	ref := m.d.Add(TypeMM, mm)
	for len(areas) > 0 {
		n := min(len(areas), areasPerRecord)
		m.d.AddPlain(TypeAreas, &Areas{MM: ref, Areas: areas[:n]})
		areas = areas[n:]
	}
	c := &contents{tid: m.tid, pageSize: m.d.Arch.PageSize, parts: parts}
	m.p.Memory = c
	m.d.AddBulk(ref, func(w *stream.Writer) error {
		if err := c.write(w, ref); err != nil {
			return m.p.Error("", err)
		}
		return nil
	})
	return ref, nil
}

// mappedExe returns the executable where a mapping has shown it: the open file through which the kernel has mapped the program is
// the executable's own.
func (m *mmDump) mappedExe(as *kernelview.AddressSpace, list []procfs.SmapsVMA) (mapped, bool) {
	exe, ok := as.ExeFile.Get()
	if !ok || exe == 0 {
		return mapped{}, false
	}
	for i := range list {
		if m.files[list[i].Start] == exe {
			of, ok := m.objects[keyOf(&list[i])]
			return of, ok && of == mapped{ref: of.ref} // an ordinary file
		}
	}
	return mapped{}, false
}

// programOf returns the architecture of the program that an address space was made for.
func (m *mmDump) programOf(as *kernelview.AddressSpace) (*arch.Arch, error) {
	native := m.d.Arch
	if native.Compat == nil {
		return native, nil
	}
	if end, ok := as.TaskSize.Get(); ok {
		if end <= native.Compat.TaskSize {
			return native.Compat, nil
		}
		return native, nil
	}
	// The kernel maps each the vdso of its own.
	maps, err := procfs.ReadMaps(m.tid)
	if err != nil {
		return nil, err
	}
	for i := range maps {
		if maps[i].Path != native.VDSO.Code {
			continue
		}
		mem, err := m.mem()
		if err != nil {
			return nil, err
		}
		head := make([]byte, 16)
		if n, err := readAt(mem, head, uint64(maps[i].Start)); err != nil || n < len(head) {
			return nil, fmt.Errorf("reading the vdso: %d bytes of %d: %w", n, len(head), errors.Join(err, unix.EFAULT))
		}
		if arch.VDSOWordSize(head) == native.Compat.WordSize {
			return native.Compat, nil
		}
		return native, nil
	}
	return nil, m.unknown("whether a 32-bit program made its address space")
}

// refuse remembers a refusal about something of the process; any other error is returned.
func (m *mmDump) refuse(what string, err error) error {
	var u *object.Unsupported
	err = m.p.Error(what, err)
	if errors.As(err, &u) {
		m.d.Refuse(err)
		return nil
	}
	return err
}

// areas looks at all mappings. parts are those whose pages are kept.
func (m *mmDump) areas(mm *MM, list []procfs.SmapsVMA) (areas []Area, parts []part, err error) {
	if len(list) == 0 {
		return nil, nil, errors.New("it has no mappings")
	}
	a := m.arch
	areas = make([]Area, 0, len(list))
	for i := range list {
		v := &list[i]
		m.current = v
		if specialOf(a, &v.VMA) == outside {
			continue
		}
		ring, err := m.isAIO(mm, v)
		if ring {
			if err != nil {
				err = m.refuse(nameOf(&v.VMA), err)
			}
			if err != nil {
				return nil, nil, err
			}
			continue
		}
		area, err := areaOf(a, v)
		huge := area.PageSize != 0
		if err == nil && !huge && v.KernelPageSize != 0 && v.KernelPageSize<<10 != uint64(a.PageSize) {
			err = object.Unsupportedf("memory of pages of %d KiB cannot be checkpointed", v.KernelPageSize)
		}
		var of mapped
		if err == nil && hasObject(&v.VMA) && !huge {
			if of, err = m.object(v); err == nil {
				err = fits(v, of)
			}
		}
		if err != nil {
			if err = m.refuse(nameOf(&v.VMA), err); err != nil {
				return nil, nil, err
			}
			continue
		}
		area.Of = of.ref
		if of.shm {
			area.Flags = strings.TrimPrefix(strings.TrimPrefix(area.Flags, "mw"), " ") // always open for writing
		}
		if of.segment != nil {
			of.segment.mappings++
		}
		areas = append(areas, area)
		m.mapsFile(v, of)
		if v.Prot&procfs.ProtShared != 0 || area.Name != "" && area.Name != a.VDSO.Code && a.VDSO.IsPart(area.Name) {
			continue
		}
		if area.Name == a.VDSO.Code && m.untouched(&v.VMA) {
			continue
		}
		delta := uint64(0)
		if !of.ref.IsZero() {
			delta = area.Offset - uint64(v.Start)
		}
		parts = append(parts, part{
			start: v.Start, end: v.End,
			zeros:    !of.ref.IsZero() || area.Name == a.VDSO.Code,
			readable: v.Prot&procfs.ProtRead != 0,
			apart:    area.Name == a.VDSO.Code || huge,
			of:       of.ref,
			delta:    delta,
		})
	}
	return areas, parts, nil
}

// unasked returns what of the huge pages is in private mappings without MADV_HUGEPAGE.
func unasked(areas []Area, huge []Range) (out []Range) {
	for i := range areas {
		a := &areas[i]
		if f, _ := parseFlags(a.Flags); f&flagTHP == 0 || f&flagHugePage != 0 {
			continue
		}
		for _, r := range overlap(huge, arch.Addr(a.Start), arch.Addr(a.End)) {
			out = append(out, Range{max(r.Start, a.Start), min(r.End, a.End)})
		}
	}
	return out
}

func keyOf(v *procfs.SmapsVMA) objectKey {
	return objectKey{v.Major, v.Minor, v.Inode, v.Path, v.Prot&procfs.ProtShared != 0 && v.Flags.Has("mw")}
}

// object returns what a mapping shows, looking at each object once a process.
func (m *mmDump) object(v *procfs.SmapsVMA) (mapped, error) {
	key := keyOf(v)
	if of, ok := m.objects[key]; ok {
		return of, nil
	}
	path := procfs.Path(m.tid, fmt.Sprintf("map_files/%x-%x", uint64(v.Start), uint64(v.End)))
	of, err := m.alike(key, func() (mapped, error) { return m.file(path, v) })
	if err == nil {
		m.objects[key] = of
	}
	return of, err
}

// alikeKey is what processes with the same mounts see as the same file. Only of one that has nothing but its name is no more to be
// found out in the next process.
type alikeKey struct {
	objectKey
	namespaces kernelview.ID
}

var errNotAlike = errors.New("more than its name counts")

// alike looks at an ordinary file once a dump: the libraries that hundreds of processes map.
func (m *mmDump) alike(key objectKey, look func() (mapped, error)) (of mapped, err error) {
	view := m.p.Leader().View
	if view == nil {
		return look()
	}
	ns, known := view.Namespaces.Get()
	if !known || strings.HasSuffix(key.path, deletedSuffix) {
		return look()
	}
	looked := false
	ref, err := m.d.Once(alikeKey{key, ns}, func() (stream.Ref, error) {
		looked = true
		if of, err = look(); err == nil && of != (mapped{ref: of.ref}) {
			return of.ref, errNotAlike
		}
		return of.ref, err
	})
	switch {
	case !looked:
		return mapped{ref: ref}, err
	case errors.Is(err, errNotAlike):
		return of, nil
	}
	return of, err
}

// fits says whether a mapping can be made of its object as a restore will have it.
func fits(v *procfs.SmapsVMA, of mapped) error {
	shared := v.Prot&procfs.ProtShared != 0
	switch {
	case of.deleted && shared:
		return object.Unsupportedf("a shared mapping of a deleted file cannot be checkpointed")
	case of.segment != nil && !shared:
		return object.Unsupportedf("a private mapping of System V shared memory cannot be checkpointed")
	case of.shm && !shared:
		return object.Unsupportedf("a private mapping of shared memory cannot be checkpointed")
	case of.shm && !v.Flags.Has("mw"):
		return object.Unsupportedf("a read-only mapping of shared memory opened elsewhere cannot be checkpointed")
	}
	return nil
}

// vdso dumps the code that the kernel has mapped into the process; zero when it is not mapped.
func (m *mmDump) vdso(areas []Area) (stream.Ref, error) {
	for i := range areas {
		if areas[i].Name != m.arch.VDSO.Code {
			continue
		}
		size := areas[i].End - areas[i].Start
		if size > 1<<19 {
			return stream.Ref{}, fmt.Errorf("reading the vdso: it has %d bytes", size)
		}
		image := m.image
		if uint64(len(image)) != size {
			mem, err := m.mem()
			if err != nil {
				return stream.Ref{}, err
			}
			image = make([]byte, size)
			if n, err := readAt(mem, image, areas[i].Start); err != nil || n < len(image) {
				return stream.Ref{}, fmt.Errorf("reading the vdso: %d bytes of %d: %w", n, len(image), errors.Join(err, unix.EFAULT))
			}
		}
		if arch.VDSOWordSize(image) != m.arch.WordSize {
			m.d.Refuse(m.p.Error("", object.Unsupportedf("its vdso is not that of a program of %s (x32?)", m.arch.Machine)))
		}
		return m.d.Once(vdsoKey(image), func() (stream.Ref, error) { return m.d.Add(TypeVDSO, &VDSO{Image: image}), nil })
	}
	return stream.Ref{}, nil
}

// checkPolicies refuses memory with a NUMA policy (mbind(2), or set_mempolicy(2) of the task: numa_maps shows both alike) that is not known.
func checkPolicies(tid int, known []Policy) error {
	var r procfs.Reader
	b, err := r.Task(tid, "numa_maps")
	if errors.Is(err, unix.ENOENT) {
		return nil // a kernel without NUMA has no policies
	}
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		at, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		policy, _, _ := bytes.Cut(rest, []byte{' '})
		start, err := strconv.ParseUint(string(at), 16, 64)
		if err == nil && slices.ContainsFunc(known, func(p Policy) bool { return p.Start <= start && start < p.End }) {
			continue
		}
		if string(policy) != "default" && string(policy) != "" {
			return object.Unsupportedf("the mapping at %s has the NUMA policy %s, which cannot be checkpointed", at, policy)
		}
	}
	return nil
}
