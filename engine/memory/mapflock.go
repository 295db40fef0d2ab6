package memory

import (
	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// A lock by flock(2) belongs to the open file, which a mapping holds when its descriptor has been closed: a Java machine locks
// /tmp/hsperfdata_USER/PID that way, so that others see that it lives. At restore all mappings of a file are made from one open file (two, when
// only some may write to it); if they were so before, that one can have the lock.

// How the mappings of a File were locked.
const (
	flockShared    = "shared"
	flockExclusive = "exclusive"
)

// mapFile is what a dump has seen of the mappings of a File.
type mapFile struct {
	state *File
	open  map[kernelview.ID]bool // the open files that they are of
	write map[bool]bool          // whether they may write to it
	at    map[placeKey]bool
}

type placeKey struct {
	process *object.Process
	start   arch.Addr
}

// mapFilesKey is that of the memo of all of them, by objref.
type mapFilesKey struct{}

func mapFiles(d *object.Dumper) map[uint32]*mapFile {
	all, _ := object.Memo(d, mapFilesKey{}, func() (map[uint32]*mapFile, error) { return map[uint32]*mapFile{}, nil }) // cannot fail
	return all
}

// mapsFile notes that a mapping shows an object.
func (m *mmDump) mapsFile(v *procfs.SmapsVMA, of mapped) {
	f := mapFiles(m.d)[of.ref.ID]
	if f == nil {
		return
	}
	f.open[m.files[v.Start]] = true
	f.write[v.Prot&procfs.ProtShared != 0 && v.Flags.Has("mw")] = true
	f.at[placeKey{m.p, v.Start}] = true
}

// keepFlock has the file of a mapping be locked again, if it can be.
func (m *mmDump) keepFlock(l *object.MappedLock) bool {
	for _, f := range mapFiles(m.d) {
		if !f.at[placeKey{l.Process, l.Start}] {
			continue
		}
		if len(f.open) != 1 || !f.open[l.File] || len(f.write) != 1 || f.state.Deleted || f.state.Zero {
			return false
		}
		f.state.Flock = flockShared
		if l.Flock == unix.LOCK_EX {
			f.state.Flock = flockExclusive
		}
		return true
	}
	return false
}

// lockMapped takes the lock of a restored File.
func (h *fileHandle) lockMapped(f *File) error {
	if f.Flock == "" {
		return nil
	}
	fd := h.fd
	if h.shared >= 0 {
		fd = h.shared
	}
	return files.TakeFlock(fd, f.Flock == flockExclusive)
}
