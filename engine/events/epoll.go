package events

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// An epoll instance (epoll(7)). Its open file goes into the image like any other; what it watches goes into "link"
// records behind all objects, since an epoll instance may watch any file and be watched itself. An item is known by the
// open file and by the number under which it was added; that number may be closed by now, or lead to another file,
// while the item lives on through a duplicate. kernelview tells the file itself (struct epitem), fdinfo only the number.
//
// Lost: the order of the ready list, and that an edge (EPOLLET) was reported already: what is ready at restore is
// reported once more, as epoll(7) tells programs to expect. An item that was disarmed by EPOLLONESHOT is disarmed
// again by having it fire; where its file cannot be made ready (a signalfd, a pidfd, another epoll instance, a terminal), it
// reports EPOLLERR and EPOLLHUP, if these happen, before it is armed again.
type epollFileState struct {
	Epoll stream.Ref `msgpack:"epoll"`
	Flags uint32     `msgpack:"flags"` // as F_GETFL
}

// epollState is the instance itself, which has nothing but its items. It is an object of its own so that those can
// refer to it.
type epollState struct{}

// watchState is some of the items of one instance.
type watchState struct {
	Epoll stream.Ref  `msgpack:"epoll"`
	Items []watchItem `msgpack:"items"`
}

type watchItem struct {
	File   stream.Ref `msgpack:"file"`
	FD     int32      `msgpack:"fd"`     // the number it was added by
	Events uint32     `msgpack:"events"` // EPOLL*
	Data   uint64     `msgpack:"data"`
}

const (
	epollType stream.Type = "epoll"
	watchType stream.Type = "link.epoll"

	// itemsPerRecord keeps a record well below the limit of its metadata.
	itemsPerRecord = 4096
)

// madeEpoll is an instance at restore.
type madeEpoll struct{ file stream.Ref } // zero until its open file is met

func dumpEpoll(d *object.Dumper, f *object.OpenFile) (*epollFileState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	v, err := d.View.Epoll(f.View.ID)
	if err != nil {
		return nil, fmt.Errorf("looking at the epoll instance: %w", err)
	}
	items := make([]watchItem, 0, len(v.Items))
	for i := range v.Items {
		item, err := dumpItem(d, f, &v.Items[i])
		if err != nil {
			d.Refuse(f.Error(err))
			continue
		}
		items = append(items, *item)
	}
	// Those that must fire once come first: they are added while nothing else in the instance can.
	slices.SortStableFunc(items, func(a, b watchItem) int {
		switch {
		case a.disarmed() == b.disarmed():
			return 0
		case a.disarmed():
			return -1
		}
		return 1
	})
	ref := d.Add(epollType, &epollState{})
	for len(items) > 0 {
		n := min(len(items), itemsPerRecord)
		d.AddLink(watchType, &watchState{Epoll: ref, Items: items[:n]})
		items = items[n:]
	}
	return &epollFileState{Epoll: ref, Flags: flags}, nil
}

// dumpItem dumps the file that an item watches, which any process of the tree may hold.
func dumpItem(d *object.Dumper, f *object.OpenFile, v *kernelview.EpollItem) (*watchItem, error) {
	holders, err := files.Holders(d, v.File)
	if err != nil {
		return nil, err
	}
	if len(holders) == 0 {
		return nil, object.Unsupportedf("it watches a file, added as descriptor %d, that no process of the tree has open any more", v.FD)
	}
	h := holders[0]
	watched, err := object.Meet(h.Process, h.FD, h.File)
	if err != nil {
		return nil, err
	}
	defer watched.Close()
	ref, err := d.File(watched)
	if err != nil {
		return nil, err
	}
	return &watchItem{File: ref, FD: int32(v.FD), Events: v.Events, Data: v.Data}, nil
}

func restoreEpollObject(r *object.Restorer, ref stream.Ref, _ *epollState) error {
	r.Remember(ref, &madeEpoll{})
	return nil
}

func restoreEpoll(r *object.Restorer, ref stream.Ref, s *epollFileState) (int, error) {
	m, err := object.Recall[madeEpoll](r, s.Epoll)
	if err != nil {
		return -1, err
	}
	if !m.file.IsZero() {
		return -1, object.BadImagef("two open files are the same epoll instance")
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making an epoll instance: %w", err)
	}
	m.file = ref
	return finish(fd, s.Flags)
}

// restoreWatch asks the root task for the calls that add the items: only there are the numbers free.
func restoreWatch(r *object.Restorer, _ stream.Ref, s *watchState) error {
	m, err := object.Recall[madeEpoll](r, s.Epoll)
	if err != nil {
		return err
	}
	if m.file.IsZero() {
		return object.BadImagef("no open file is the epoll instance %s", s.Epoll)
	}
	epfd, err := r.File(m.file)
	if err != nil {
		return err
	}
	var watches []watch
	for _, item := range s.Items {
		w, err := newWatch(r, item)
		if err != nil {
			return err
		}
		if w != nil && !watchLate(r, epfd, *w) && !watchSignalfd(r, m.file, epfd, *w) {
			watches = append(watches, *w)
		}
	}
	r.InRoot(rootCalls(epfd, watches))
	return nil
}

// watch is an item that is ready to be added.
type watch struct {
	watchItem
	fd   int      // of the watched file, in the pool
	wake *wakener // how to have a disarmed item fire; nil: armed, or no way
}

// newWatch checks an item. It returns nil for one that cannot be added because something else stands in for an
// external file.
func newWatch(r *object.Restorer, item watchItem) (*watch, error) {
	if item.FD < 0 || int(item.FD) >= r.PoolBase {
		return nil, object.BadImagef("an epoll item with descriptor %d is impossible", item.FD)
	}
	fd, err := r.File(item.File)
	if err != nil {
		return nil, err
	}
	o, err := r.Plan.Lookup(item.File)
	if err != nil {
		return nil, err
	}
	if o.Type == files.ExternalKind.Type {
		ok, err := pollable(fd)
		if err != nil {
			return nil, err
		}
		if !ok {
			if r.Warn != nil {
				r.Warn("fd %d is watched by epoll, which what stands in for it does not allow: no event will come from it", item.FD)
			}
			return nil, nil
		}
	}
	w := &watch{watchItem: item, fd: fd}
	if item.disarmed() {
		w.wake = wakenerOf(r, o, fd)
	}
	return w, nil
}

// pollable says whether a file can be watched by epoll: a regular file or /dev/null cannot.
func pollable(fd int) (bool, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("making an epoll instance: %w", err)
	}
	defer unix.Close(ep)
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{})
	if errors.Is(err, unix.EPERM) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("watching what stands in for an external file: %w", err)
	}
	return true, nil
}

// MaxFD returns the highest number under which an item was added, -1 for none. It is how files.MaxFD learns of them.
func (s *watchState) MaxFD() int {
	highest := -1
	for i := range s.Items {
		highest = max(highest, int(s.Items[i].FD))
	}
	return highest
}

// EpollKind is the kind of epoll instances.
var EpollKind = object.NewFileKind("file.epoll", claims(kernelview.KindEpoll, "anon_inode:[eventpoll]"), dumpEpoll, restoreEpoll)

// EpollObject is the record of an instance itself.
var EpollObject = object.NewKind(epollType, restoreEpollObject)

// EpollLink is the record of what an instance watches.
var EpollLink = object.NewKind(watchType, restoreWatch)
