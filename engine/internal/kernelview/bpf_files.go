package kernelview

import (
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"
)

// openFile is what the content calls need of a file that Files has shown.
type openFile struct {
	kind    Kind
	private uint64
	addr    uint64
}

// maxDescriptors bounds a table: the kernel's own limit of fs.nr_open.
const maxDescriptors = 1 << 30

// A table is a descriptor table that is being read.
type table struct {
	id       ID
	users    Maybe[int32]
	fdArray  uint64
	open     []byte // bit maps
	cloexec  []byte
	openAt   uint64
	closeAt  uint64
	maxFDs   int
	pointers []byte
	fds      []FD
}

// Files is documented with View.
func (v *bpfView) Files(tids []int) ([]FileTable, error) {
	for _, f := range []field{fTFiles, fFSFdt, fFdtMax, fFdtFD, fFdtCloexe, fFdtOpen, fFOp, fFPrivate, fFInode, fFFlags, fIMode, fISB, fSBMagic, fOpRel} {
		if !v.l.has(f) {
			return nil, &MissingError{What: "a kernel whose structures are known (" + fieldPaths[f] + " is not in its BTF)"}
		}
	}
	tasks, err := v.tasks(tids)
	if err != nil {
		return nil, err
	}
	addrs := v.pointers(tasks, fTFiles)
	tables, err := v.tables(addrs)
	if err != nil {
		return nil, err
	}
	if err := v.fillTables(tables); err != nil {
		return nil, err
	}
	out := make([]FileTable, len(tasks))
	for i, a := range addrs {
		out[i] = FileTable{Tid: tasks[i].tid, ID: Is(v.id(a))}
		if a == 0 {
			out[i].Users = Is(int32(0))
			continue
		}
		t := tables[a]
		if t == nil {
			return nil, fmt.Errorf("reading the descriptor table of thread %d: %w", tasks[i].tid, errFault)
		}
		out[i].Users, out[i].FDs = t.users, t.fds
	}
	return out, nil
}

// tables reads the distinct files_structs, their fdtables, bit maps and arrays.
func (v *bpfView) tables(addrs []uint64) (map[uint64]*table, error) {
	l := v.l
	structs, err := v.gatherMap(addrs, l.span["files_struct"])
	if err != nil {
		return nil, err
	}
	tables := make(map[uint64]*table)
	var order []*table
	fdts := make([]uint64, 0, len(structs))
	byFdt := make(map[uint64]*table)
	for _, a := range addrs {
		b := structs[a]
		if b == nil || tables[a] != nil {
			continue
		}
		t := &table{id: v.id(a), users: num[int32](l, b, fFSCount)}
		tables[a] = t
		order = append(order, t)
		fdt, _ := l.uint(b, fFSFdt)
		fdts = append(fdts, fdt)
		byFdt[fdt] = t
	}
	blocks, err := v.gatherMap(fdts, l.span["fdtable"])
	if err != nil {
		return nil, err
	}
	for fdt, t := range byFdt {
		b, ok := blocks[fdt]
		if !ok {
			return nil, errFault
		}
		n, _ := l.uint(b, fFdtMax)
		if n > maxDescriptors {
			return nil, errFault
		}
		t.maxFDs = int(n)
		t.fdArray, _ = l.uint(b, fFdtFD)
		t.openAt, _ = l.uint(b, fFdtOpen)
		t.closeAt, _ = l.uint(b, fFdtCloexe)
	}
	// The usual table is small: read all of them at once, the large ones alone.
	if err := v.tableParts(order, func(t *table) (uint64, int) { return t.openAt, (t.maxFDs + 63) / 64 * 8 },
		func(t *table, b []byte) { t.open = b }); err != nil {
		return nil, err
	}
	for _, t := range order {
		t.maxFDs = min(t.maxFDs, highestBit(t.open)+1)
	}
	if err := v.tableParts(order, func(t *table) (uint64, int) { return t.closeAt, (t.maxFDs + 63) / 64 * 8 },
		func(t *table, b []byte) { t.cloexec = b }); err != nil {
		return nil, err
	}
	if err := v.tableParts(order, func(t *table) (uint64, int) { return t.fdArray, t.maxFDs * 8 },
		func(t *table, b []byte) { t.pointers = b }); err != nil {
		return nil, err
	}
	return tables, nil
}

// tableParts reads one part of every table, of whatever size it has in each.
func (v *bpfView) tableParts(tables []*table, where func(*table) (uint64, int), set func(*table, []byte)) error {
	fault := false
	var small []*table
	for _, t := range tables {
		addr, size := where(t)
		switch {
		case size == 0:
			set(t, nil)
		case size <= maxRead:
			small = append(small, t)
		default:
			b, err := v.mem.peek(addr, size)
			if err != nil {
				return err
			}
			set(t, b)
		}
	}
	err := v.mem.gatherEach(len(small), func(i int) (uint64, int) { return where(small[i]) },
		func(i int, b []byte) {
			fault = fault || b == nil
			set(small[i], slices.Clone(b))
		})
	if err == nil && fault {
		err = errFault
	}
	return err
}

func highestBit(bitmap []byte) int {
	for i := len(bitmap) - 8; i >= 0; i -= 8 {
		if w := binary.NativeEndian.Uint64(bitmap[i:]); w != 0 {
			return i*8 + bits.Len64(w) - 1
		}
	}
	return -1
}

func bitAt(bitmap []byte, n int) bool {
	i := n / 64 * 8
	return i+8 <= len(bitmap) && binary.NativeEndian.Uint64(bitmap[i:])>>(n%64)&1 != 0
}

// fillTables reads the files of all tables and lists the descriptors.
func (v *bpfView) fillTables(tables map[uint64]*table) error {
	var addrs []uint64
	for _, t := range tables {
		for fd := range t.maxFDs {
			if a := binary.NativeEndian.Uint64(t.pointers[fd*8:]); a != 0 && bitAt(t.open, fd) {
				addrs = append(addrs, a)
			}
		}
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	files, err := v.readFiles(addrs)
	if err != nil {
		return err
	}
	for _, t := range tables {
		for fd := range t.maxFDs {
			// The kernel reserves a number before it puts a file there: a bit without a
			// file is no descriptor.
			a := binary.NativeEndian.Uint64(t.pointers[fd*8:])
			if a == 0 || !bitAt(t.open, fd) {
				continue
			}
			f := files[a]
			if f == nil {
				return fmt.Errorf("reading descriptor %d: %w", fd, errFault)
			}
			t.fds = append(t.fds, FD{FD: fd, CloseOnExec: bitAt(t.cloexec, fd), File: f})
		}
	}
	return nil
}

// fileBlocks is what the files of one call point to.
type fileBlocks struct {
	ops, inodes, supers, owners, locks, mounts map[uint64][]byte
	pids                                       map[uint64]int
}

// readFiles reads the files at distinct addresses, in order: IDs then do not
// depend on the order of a map.
func (v *bpfView) readFiles(addrs []uint64) (map[uint64]*File, error) {
	l := v.l
	size := l.span["file"]
	blocks := make([][]byte, len(addrs))
	arena := make([]byte, len(addrs)*size)
	err := v.mem.gather(addrs, size, func(i int, b []byte) {
		if b != nil {
			blocks[i] = arena[i*size : (i+1)*size : (i+1)*size]
			copy(blocks[i], b)
		}
	})
	if err != nil {
		return nil, err
	}
	r, err := v.fileBlocks(blocks)
	if err != nil {
		return nil, err
	}
	files := make(map[uint64]*File, len(blocks))
	all := make([]File, len(blocks))
	for i, b := range blocks {
		if b == nil {
			continue
		}
		f := &all[i]
		f.ID = v.id(addrs[i])
		v.file(f, b, r)
		files[addrs[i]] = f
		private, _ := l.uint(b, fFPrivate)
		if f.Kind == KindMqueue { // which has only its inode
			private, _ = l.uint(b, fFInode)
		}
		if n := int(f.ID) + 1 - len(v.files); n > 0 {
			v.files = append(v.files, make([]openFile, n)...)
		}
		v.files[f.ID] = openFile{kind: f.Kind, private: private, addr: addrs[i]}
	}
	return files, nil
}

// collect gathers what one pointer field of all blocks leads to.
func (v *bpfView) collect(blocks iter.Seq[[]byte], f field, size int) (map[uint64][]byte, error) {
	if !v.l.has(f) || size == 0 {
		return nil, nil
	}
	var addrs []uint64
	var last uint64
	for b := range blocks {
		if a, ok := v.l.uint(b, f); ok && a != last {
			addrs = append(addrs, a)
			last = a
		}
	}
	return v.gatherMap(addrs, size)
}

func (v *bpfView) fileBlocks(files [][]byte) (*fileBlocks, error) {
	l := v.l
	var r fileBlocks
	var err error
	collect := func(from iter.Seq[[]byte], f field, structure string) map[uint64][]byte {
		if err != nil {
			return nil
		}
		var m map[uint64][]byte
		m, err = v.collect(from, f, l.span[structure])
		return m
	}
	r.ops = collect(slices.Values(files), fFOp, "file_operations")
	r.inodes = collect(slices.Values(files), fFInode, "inode")
	r.supers = collect(maps.Values(r.inodes), fISB, "super_block")
	r.locks = collect(maps.Values(r.inodes), fIFlctx, "file_lock_context")
	if l.fields[fFOwner].kind == locPointer {
		r.owners = collect(slices.Values(files), fFOwner, "fown_struct")
	}
	if err != nil {
		return nil, err
	}
	if l.has(fFMount) && l.has(fMntMnt) && l.has(fMntID) {
		// A path holds the vfsmount inside of a struct mount.
		var mounts []uint64
		for _, b := range files {
			if a, ok := l.uint(b, fFMount); ok && a != 0 {
				mounts = append(mounts, a-l.off(fMntMnt))
			}
		}
		if r.mounts, err = v.gatherMap(mounts, l.span["mount"]); err != nil {
			return nil, err
		}
	}
	var pids []uint64
	for _, b := range files {
		if owner := v.ownerBlock(b, &r); owner != nil {
			if pid, ok := l.uint(owner, fOwnPid); ok {
				pids = append(pids, pid)
			}
		}
	}
	r.pids, err = v.numbers(pids)
	return &r, err
}

// ownerBlock is the fown_struct of a file: embedded before 6.12, later made on
// demand.
func (v *bpfView) ownerBlock(b []byte, r *fileBlocks) []byte {
	switch v.l.fields[fFOwner].kind {
	case locCompound:
		owner, _ := v.l.bytes(b, fFOwner)
		return owner
	case locPointer:
		a, _ := v.l.uint(b, fFOwner)
		return r.owners[a]
	}
	return nil
}

func (v *bpfView) file(f *File, b []byte, r *fileBlocks) {
	l := v.l
	f.Flags = num[uint32](l, b, fFFlags)
	f.Flags.V &^= unix.O_CLOEXEC // of the call that opened it, not of the file
	f.Pos = num[int64](l, b, fFPos)
	if refs := num[int64](l, b, fFRef); refs.Known {
		f.Refs = Is(refs.V + 1) // file_ref.h: 0 is the first reference
	} else {
		f.Refs = num[int64](l, b, fFCount)
	}
	f.Owner = v.owner(b, r)
	if mnt, ok := l.uint(b, fFMount); ok && mnt != 0 {
		f.Mount = num[int32](l, r.mounts[mnt-l.off(fMntMnt)], fMntID)
	}

	f.Inode = v.idOf(b, fFInode)
	inodeAddr, _ := l.uint(b, fFInode)
	inode := r.inodes[inodeAddr]
	f.Ino = num[uint64](l, inode, fIIno)
	f.Nlink = num[uint32](l, inode, fINlink)
	f.Mode = num[uint16](l, inode, fIMode)
	f.Size = num[int64](l, inode, fISize)
	f.Rdev = deviceNumber(num[uint32](l, inode, fIRdev))
	sb, _ := l.uint(inode, fISB)
	f.Dev = deviceNumber(num[uint32](l, r.supers[sb], fSBDev))
	f.FSType = num[uint64](l, r.supers[sb], fSBMagic)
	f.Locks = v.locks(inode, r)
	f.Linkable = bitsSet(l, inode, fIState, factLinkable)
	f.Unseen = unseen(l, b)
	f.WriteHint = num[uint8](l, inode, fIHint)

	opAddr, _ := l.uint(b, fFOp)
	f.Kind = v.kind(f, r.ops[opAddr])
}

// deviceNumber turns the kernel's own form, major << 20 | minor, into that of
// stat(2).
func deviceNumber(d Maybe[uint32]) Maybe[uint64] {
	if !d.Known {
		return Maybe[uint64]{}
	}
	return Is(unix.Mkdev(d.V>>20, d.V&(1<<20-1)))
}

// kind tells what a file is.
func (v *bpfView) kind(f *File, ops []byte) Kind {
	if f.Flags.V&unix.O_PATH != 0 {
		return KindPath
	}
	release, ok := v.l.uint(ops, fOpRel)
	if !ok || !f.Mode.Known || !f.FSType.Known {
		return KindUnknown
	}
	named := KindUnknown
	if which, ok := v.fnNames[release]; ok && which >= symFirstFile {
		named = fileKinds[which-symFirstFile]
	} else if read, ok := v.l.uint(ops, fOpRead); ok && release == 0 {
		if which, ok := v.fnNames[read]; ok && which >= symFirstFile && fileKinds[which-symFirstFile] == KindMqueue {
			named = KindMqueue
		}
	}
	if named != KindUnknown {
		return named
	}
	switch f.FSType.V {
	case unix.ANON_INODE_FS_MAGIC:
		return KindAnon
	case unix.PID_FS_MAGIC:
		return KindPidfd
	case unix.NSFS_MAGIC:
		return KindNamespace
	}
	switch f.Mode.V & unix.S_IFMT {
	case unix.S_IFREG:
		return KindRegular
	case unix.S_IFDIR:
		return KindDirectory
	case unix.S_IFLNK:
		return KindSymlink
	case unix.S_IFCHR:
		return KindCharDevice
	case unix.S_IFBLK:
		return KindBlockDevice
	}
	// A FIFO or a socket whose functions are not the known ones, or no type at all.
	return KindUnknown
}

func (v *bpfView) owner(b []byte, r *fileBlocks) Maybe[Owner] {
	l := v.l
	block := v.ownerBlock(b, r)
	if block == nil {
		if a, ok := l.uint(b, fFOwner); ok && l.fields[fFOwner].kind == locPointer && a == 0 {
			return Is(Owner{})
		}
		return Maybe[Owner]{}
	}
	pid, ok1 := l.uint(block, fOwnPid)
	kind, ok2 := l.uint(block, fOwnType)
	sig, ok3 := l.uint(block, fOwnSig)
	uid, ok4 := l.uint(block, fOwnUID)
	euid, ok5 := l.uint(block, fOwnEUID)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return Maybe[Owner]{}
	}
	o := Owner{Set: pid != 0, Signal: int32(sig), UID: uint32(uid), EUID: uint32(euid)}
	o.Type = uint32(kind)
	if o.Set {
		o.PID = r.pids[pid]
	}
	return Is(o)
}

// unseen says whether nobody who watches the inode is told of what happens through a file.
func unseen(l *layout, file []byte) Maybe[bool] {
	mode, ok := l.uint(file, fFMode)
	if !ok || !l.facts[factUnseen].known {
		return Maybe[bool]{}
	}
	return Is(mode&l.facts[factUnseenMask].value == l.facts[factUnseen].value)
}

// locks tells whether one of the three lists of an inode's locks holds one: an
// empty list leads to its own head.
func (v *bpfView) locks(inode []byte, r *fileBlocks) Maybe[bool] {
	l := v.l
	addr, ok := l.uint(inode, fIFlctx)
	if !ok {
		return Maybe[bool]{}
	}
	if addr == 0 {
		return Is(false)
	}
	block := r.locks[addr]
	held := false
	for _, f := range []field{fLockF, fLockP, fLockL} {
		list, ok := l.bytes(block, f)
		if !ok || len(list) < 8 {
			return Maybe[bool]{}
		}
		held = held || binary.NativeEndian.Uint64(list) != addr+l.off(f)
	}
	return Is(held)
}
