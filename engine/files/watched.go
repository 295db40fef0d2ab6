package files

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// Removed is a regular file without a name that the tree has open. The dump opens and reads it, as anybody else would have to: an
// event, for whoever watches the file or where it was. Everything else is looked at with O_PATH, which is none.
type Removed struct {
	Path  string // where it was, as /proc shows it
	Dir   string
	Dev   uint64 // of the file system, in the form of st_dev
	Ino   uint64
	Mount int32 // -1: not known
}

// RemovedFiles returns all of the tree, in the order of processes and descriptors.
func RemovedFiles(d *object.Dumper) ([]Removed, error) {
	ix, err := indexOf(d)
	if err != nil {
		return nil, err
	}
	if ix.removed != nil {
		return *ix.removed, nil
	}
	all := []Removed{}
	for i := range ix.order {
		h := &ix.order[i]
		if n, ok := h.File.Nlink.Get(); ok && n != 0 {
			continue
		}
		f := &object.OpenFile{Process: h.Process, FD: h.FD, View: h.File, Path: procfs.Path(h.Process.Leader().TID, fmt.Sprintf("fd/%d", h.FD))}
		if err := unix.Stat(f.Path, &f.Stat); err != nil || !isType(f, unix.S_IFREG) || f.Stat.Nlink != 0 || isOPath(f) {
			continue // what cannot be looked at is refused elsewhere
		}
		if f.Link, err = os.Readlink(f.Path); err != nil {
			continue
		}
		dir, ok := deletedPlace(f)
		if !ok {
			continue
		}
		r := Removed{Path: f.Link, Dir: dir, Dev: f.Stat.Dev, Ino: f.Stat.Ino, Mount: -1}
		if dev, ok := h.File.Dev.Get(); ok {
			r.Dev = dev
		}
		if mount, ok := h.File.Mount.Get(); ok {
			r.Mount = mount
		}
		all = append(all, r)
	}
	ix.removed = &all
	return all, nil
}

// On says whether it lies in the file system of an inode that fdinfo shows.
func (r *Removed) On(dev uint32) bool {
	return unix.Major(r.Dev) == dev>>20 && unix.Minor(r.Dev) == dev&(1<<20-1)
}
