package events

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/object"
)

// A watcher is an inotify instance or fanotify group at restore, which shall watch files of which it is to see nothing before.
type watcher interface {
	// hold calls keep for every descriptor of the pool that start needs: it then is a duplicate that stays open.
	hold(r *object.Restorer, keep func(fd *int)) error
	start() error
}

// readEvents are the events of the dump's own reading of a file that has no name any more: IN_ and FAN_OPEN, _ACCESS and
// _CLOSE_NOWRITE, and who is asked for leave to do so: FAN_OPEN_PERM, _ACCESS_PERM and _PRE_ACCESS.
const readEvents = unix.IN_OPEN | unix.IN_ACCESS | unix.IN_CLOSE_NOWRITE | unix.FAN_OPEN_PERM | unix.FAN_ACCESS_PERM | unix.FAN_PRE_ACCESS

// refuseRead refuses a watch that would tell of the dump's own reading, or ask for leave, which the stopped program could not give.
func refuseRead(d *object.Dumper, mask uint32, tells func(r *files.Removed) bool) error {
	if mask&readEvents == 0 {
		return nil
	}
	all, err := files.RemovedFiles(d)
	if err != nil {
		return err
	}
	for i := range all {
		if tells(&all[i]) {
			return &object.Unsupported{
				What: fmt.Sprintf("it watches who opens or reads %s, which the dump would have to do", all[i].Path),
				Do:   "dump when that file is closed, or without these events (IN_OPEN, IN_ACCESS, IN_CLOSE_NOWRITE) or with IN_EXCL_UNLINK in the mask",
			}
		}
	}
	return nil
}

// StartWatches has all inotify instances and fanotify groups of the image watch what they are to watch. It is called right before the
// tasks go on. It closes the pool, since the last close of a file is an event too, and so is the last one that is done with it.
func StartWatches(r *object.Restorer) (err error) {
	var all []watcher
	for _, o := range object.All[inotifyState](r.Plan) {
		m, err := object.Recall[madeInotify](r, o.Ref)
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	for _, o := range object.All[fanotifyState](r.Plan) {
		m, err := object.Recall[madeFanotify](r, o.Ref)
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil
	}
	var own []int
	defer func() {
		for _, fd := range own {
			_ = unix.Close(fd) // duplicates
		}
	}()
	var failed error
	keep := func(fd *int) {
		n, e := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 0)
		if e != nil {
			failed = errors.Join(failed, fmt.Errorf("duplicating a descriptor: %w", e))
			return
		}
		own = append(own, n)
		*fd = n
	}
	for _, w := range all {
		if err := w.hold(r, keep); err != nil {
			return err
		}
	}
	if failed != nil {
		return failed
	}
	r.Close()
	for _, w := range all {
		if err := w.start(); err != nil {
			return err
		}
	}
	return nil
}

// watchRoot opens, once, the root of the mount namespace of the tree, in the pool, for the late look at what is watched.
func watchRoot(r *object.Restorer, root *int) error {
	if *root != 0 {
		return nil
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the root directory: %w", err)
	}
	if *root, err = r.Pool(fd); err != nil {
		return err
	}
	r.Late(*root)
	return nil
}
