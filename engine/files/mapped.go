package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// mappedKey is the identity in a dump of the open file through which mappings show an inode without a name.
type mappedKey struct {
	inode
	write bool
}

// Mapped dumps what a mapping shows of an inode without a name (a memfd, a deleted file) that others have too, by descriptors or mapped shared.
// path is the link of map_files; write says that the mapping may write to the file. Of the open file that the mapping holds
// it shows no more than that, so that it gets one of its own (but one for all such mappings), on the same inode as the descriptors.
func Mapped(d *object.Dumper, p *object.Process, path string, write bool) (stream.Ref, error) {
	flags := uint32(unix.O_RDONLY)
	if write {
		flags = unix.O_RDWR
	}
	f, err := object.MeetMapped(p, path, &kernelview.File{Kind: kernelview.KindRegular, Flags: kernelview.Is(flags | largefile()), Pos: kernelview.Is[int64](0)})
	if err != nil {
		return stream.Ref{}, err
	}
	defer f.Close()
	ix, err := indexOf(d)
	if err != nil {
		return stream.Ref{}, err
	}
	for _, holders := range ix.holders {
		h := holders[0]
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", h.Process.Leader().TID, h.FD), &st); err == nil && same(&st, &f.Stat) {
			f.View.Inode = h.File.Inode // by which the descriptors' kinds know it
			break
		}
	}
	return d.Once(mappedKey{inodeOf(f), write}, func() (stream.Ref, error) {
		switch {
		case claimsMemfd(d, f):
			s, err := dumpMemfd(d, f)
			if err != nil {
				return stream.Ref{}, err
			}
			return d.Add(MemfdKind.Type, s), nil
		case claimsDeleted(d, f):
			s, err := dumpDeleted(d, f)
			if err != nil {
				return stream.Ref{}, err
			}
			return d.Add(DeletedKind.Type, s), nil
		}
		return stream.Ref{}, object.Unsupportedf("a mapping of %s cannot be checkpointed", f.Link)
	})
}

// URingType is the type of io_uring instances, which package events keeps: the only open files of theirs that are mapped.
const URingType stream.Type = "file.uring"

// Mappable says whether an object of an image is an open file that Mapped made, one like it, or an io_uring instance.
func Mappable(plan *object.Plan, ref stream.Ref) error {
	o, err := plan.Lookup(ref)
	if err != nil {
		return err
	}
	if o.Type != MemfdKind.Type && o.Type != DeletedKind.Type && o.Type != URingType {
		return object.BadImagef("a mapping of a %s", o.Type)
	}
	return nil
}
