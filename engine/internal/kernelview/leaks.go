package kernelview

import (
	"fmt"
	"slices"
)

// LeakView is what a View may offer beside: counts of all references to open files, whoever holds them. A file that is held
// more often than a tree can account for leads out of it, even where no file of /proc shows how.
type LeakView interface {
	// OpenFiles tells each file of IDs that Files, Areas or Processes have given
	// out; what is no open file any more is an error.
	OpenFiles(ids []ID) ([]OpenFile, error)
}

// OpenFile is an open file with who else has its inode open.
type OpenFile struct {
	File
	// Openings counts the references to the directory entry that the file was
	// opened by: each open file is one. Of what has no name (pipes, memfds, shared
	// anonymous memory) nothing else holds one.
	Openings Maybe[int32]
}

// OpenFiles is documented with LeakView.
func (v *bpfView) OpenFiles(ids []ID) ([]OpenFile, error) {
	addrs := make([]uint64, len(ids))
	for addr, id := range v.ids {
		for i := range ids {
			if ids[i] == id {
				addrs[i] = addr
			}
		}
	}
	unique := slices.Clone(addrs)
	slices.Sort(unique)
	unique = slices.Compact(unique)
	files, err := v.readFiles(unique)
	if err != nil {
		return nil, err
	}
	blocks, err := v.gatherMap(unique, v.l.span["file"])
	if err != nil {
		return nil, err
	}
	dentries, err := v.gatherMap(v.follow(blocks, fFDentry), v.l.span["dentry"])
	if err != nil {
		return nil, err
	}
	out := make([]OpenFile, len(ids))
	for i, a := range addrs {
		f := files[a]
		if f == nil {
			return nil, fmt.Errorf("reading an open file: %w", errFault)
		}
		out[i].File = *f
		if d, ok := v.l.uint(blocks[a], fFDentry); ok {
			out[i].Openings = num[int32](v.l, dentries[d], fDCount)
		}
	}
	return out, nil
}
