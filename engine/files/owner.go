package files

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Who is told by a signal of what happens at an open file: its owner (fcntl(2) F_SETOWN_EX), which signal (F_SETSIG), and
// whether signals are sent at all (O_ASYNC). The owner and the ids of whoever set it (F_GETOWNER_UIDS), by which the kernel
// decides whether it may send the signal, are in struct file; that signals are sent, and the descriptor number that they
// name, in a list of the object behind the file (struct fasync_struct), which is known of pipes, FIFOs and sockets.
//
// All this belongs to the open file. It is kept with the first table that has it; the process of that table sets it again,
// last of all, since the other end of a pipe closing is told too. An owner that is dead is nobody, as F_GETOWN says.
// Refused by name: an owner outside of the tree; O_ASYNC of anything but a pipe or socket; an owner of a directory, which F_NOTIFY
// (dnotify) sets; an owner of what is external.

// TableOwner is what is set at one open file.
type TableOwner struct {
	FD     int32  `msgpack:"fd"`            // the number in the table through which it is set
	Kind   string `msgpack:"kind"`          // of the owner, or of the last one
	ID     int32  `msgpack:"id,omitempty"`  // its number; 0: nobody
	UID    uint32 `msgpack:"uid,omitempty"` // of whoever set the owner
	EUID   uint32 `msgpack:"euid,omitempty"`
	Signal int32  `msgpack:"signal,omitempty"` // 0: SIGIO
	Async  bool   `msgpack:"async,omitempty"`
}

const (
	ownerThread  = "thread"
	ownerProcess = "process"
	ownerGroup   = "group"
)

// ownerKinds are the kinds by the kernel's number: F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP.
var ownerKinds = [...]string{ownerThread, ownerProcess, ownerGroup}

// pendingOwner is what was found out about an open file, until a table takes it.
type pendingOwner struct {
	state  TableOwner
	number int // the descriptor number through which it must be set; -1: any
	first  *object.OpenFile
	taken  bool
}

// owner returns what the table of p is to set through fd; nil: nothing.
func (ix *index) owner(d *object.Dumper, p *object.Process, fd kernelview.FD) (*TableOwner, error) {
	pending, seen := ix.owners[fd.File.ID]
	if !seen {
		var err error
		if pending, err = ix.findOwner(d, p, fd); err != nil {
			return nil, err
		}
		ix.owners[fd.File.ID] = pending
	}
	if pending == nil || pending.taken || pending.number >= 0 && pending.number != fd.FD {
		return nil, nil
	}
	pending.taken = true
	s := pending.state
	s.FD = int32(fd.FD)
	return &s, nil
}

// findOwner looks at an open file for the first time. What cannot be kept is refused.
func (ix *index) findOwner(d *object.Dumper, p *object.Process, fd kernelview.FD) (*pendingOwner, error) {
	flags, known := fd.File.Flags.Get()
	owner, sure := fd.File.Owner.Get()
	if known && (flags&unix.O_PATH != 0 || sure && owner == (kernelview.Owner{}) && flags&unix.O_ASYNC == 0) {
		return nil, nil
	}
	f, err := object.Meet(p, fd.FD, fd.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if flags, err = Flags(f); err != nil {
		return nil, err
	}
	if flags&unix.O_PATH != 0 {
		return nil, nil
	}
	pending, err := ix.ownerOfFile(d, f, flags)
	if err != nil {
		d.Refuse(f.Error(err))
	}
	return pending, nil
}

func (ix *index) ownerOfFile(d *object.Dumper, f *object.OpenFile, flags uint32) (*pendingOwner, error) {
	owner, err := ownerOf(f)
	if err != nil {
		return nil, err
	}
	async := flags&unix.O_ASYNC != 0
	if !owner.Set && owner.Type == 0 && owner.Signal == 0 && !async {
		return nil, nil
	}
	switch {
	case isType(f, unix.S_IFDIR):
		return nil, object.Unsupportedf("it has a receiver of SIGIO (pid %d), as fcntl(2) F_NOTIFY sets it for a directory, which cannot be checkpointed", owner.PID)
	case claimsExternal(d, f):
		return nil, object.Unsupportedf("it has a receiver of SIGIO (fcntl(2) F_SETOWN, F_SETSIG or O_ASYNC; pid %d, signal %d), and it leads out of the tree", owner.PID, owner.Signal)
	}
	p := &pendingOwner{number: -1, state: TableOwner{Signal: owner.Signal}, first: &object.OpenFile{Process: f.Process, FD: f.FD, Link: f.Link}}
	if p.state.Kind, p.state.ID, err = ownerInTree(d, &owner); err != nil {
		return nil, err
	}
	if p.state.ID != 0 {
		p.state.UID, p.state.EUID = owner.UID, owner.EUID
	}
	if async {
		if p.number, err = ix.asyncNumber(d, f); err != nil {
			return nil, err
		}
		p.state.Async = true
	}
	return p, nil
}

// asyncNumber returns the descriptor number with which the signals of a pipe or socket were asked for.
func (ix *index) asyncNumber(d *object.Dumper, f *object.OpenFile) (int, error) {
	var all kernelview.Maybe[[]kernelview.Async]
	if use := ix.pipes[inodeOf(f)]; use != nil {
		if err := use.look(ix, d.View); err != nil {
			return -1, err
		}
		all = use.view.Async
	} else if f.View.Kind == kernelview.KindSocket {
		var err error
		if all, err = d.View.SocketAsync(f.View.ID); err != nil {
			return -1, err
		}
	}
	list, _ := all.Get()
	if i := slices.IndexFunc(list, func(a kernelview.Async) bool { return a.File == f.View.ID }); i >= 0 {
		return int(list[i].FD), nil
	}
	return -1, object.Unsupportedf("it sends SIGIO (O_ASYNC), which can be checkpointed only of a pipe or socket, with the kernel view")
}

func ownerOf(f *object.OpenFile) (kernelview.Owner, error) {
	if owner, ok := f.View.Owner.Get(); ok {
		return owner, nil
	}
	fd, err := f.Descriptor()
	if err != nil {
		return kernelview.Owner{}, err
	}
	// The set owner is there even when it is dead, but then both calls say 0, as the kernel does.
	own, err := unix.FcntlInt(uintptr(fd), unix.F_GETOWN, 0)
	if err != nil {
		return kernelview.Owner{}, fmt.Errorf("reading who gets SIGIO: %w", err)
	}
	sig, err := unix.FcntlInt(uintptr(fd), unix.F_GETSIG, 0)
	if err != nil {
		return kernelview.Owner{}, fmt.Errorf("reading the signal that stands for SIGIO: %w", err)
	}
	if own != 0 {
		return kernelview.Owner{}, object.Unsupportedf("it has a receiver of SIGIO (pid %d), and without the kernel view nobody knows who set it", own)
	}
	return kernelview.Owner{Signal: int32(sig)}, nil
}

// ownerInTree returns the kind of an owner and its number in the pid namespace of the tree, 0 when it is dead.
func ownerInTree(d *object.Dumper, o *kernelview.Owner) (kind string, id int32, err error) {
	if int(o.Type) >= len(ownerKinds) {
		return "", 0, object.Unsupportedf("it has a receiver of SIGIO of an unknown kind (%d), which cannot be checkpointed", o.Type)
	}
	kind = ownerKinds[o.Type]
	if !o.Set {
		return kind, 0, nil
	}
	for _, p := range d.Processes {
		switch kind {
		case ownerProcess:
			if p.PID == o.PID {
				return kind, int32(p.ID), nil
			}
		case ownerThread:
			for _, t := range p.Threads {
				if t.TID == o.PID {
					return kind, int32(t.ID), nil
				}
			}
		case ownerGroup:
			// The group must be led from the tree, or others could be in it.
			if p.PID == o.PID && p.Stat.Pgrp == o.PID {
				return kind, int32(p.ID), nil
			}
		}
	}
	target := o.PID
	if kind == ownerGroup {
		target = -o.PID
	}
	if o.PID > 1 && errors.Is(unix.Kill(target, 0), unix.ESRCH) {
		return kind, 0, nil
	}
	return "", 0, object.Unsupportedf("its receiver of SIGIO (fcntl(2) F_SETOWN) is %s %d, outside of the tree, which cannot be checkpointed", kind, o.PID)
}

// CheckOwners refuses what no table has taken. It comes after all tables.
func CheckOwners(d *object.Dumper) error {
	ix, err := indexOf(d)
	if err != nil {
		return err
	}
	var left []*pendingOwner
	for _, p := range ix.owners {
		if p != nil && !p.taken {
			left = append(left, p)
		}
	}
	slices.SortFunc(left, func(a, b *pendingOwner) int {
		return a.first.Process.PID<<20 + a.first.FD - b.first.Process.PID<<20 - b.first.FD
	})
	for _, p := range left {
		d.Refuse(p.first.Error(object.Unsupportedf("its signals (O_ASYNC) name descriptor %d, which is not that file any more; this cannot be checkpointed", p.number)))
	}
	return nil
}

func (t *TableState) checkOwners() error {
	for i := range t.Owners {
		o := &t.Owners[i]
		switch {
		case t.file(o.FD).IsZero():
			return object.BadImagef("a receiver of SIGIO of descriptor %d, which the table does not have", o.FD)
		case o.Signal < 0 || o.Signal > 64:
			return object.BadImagef("signal %d in place of SIGIO", o.Signal)
		case o.ID < 0 || !slices.Contains(ownerKinds[:], o.Kind):
			return object.BadImagef("a receiver of SIGIO of the kind %q with number %d", o.Kind, o.ID)
		case o.UID == ^uint32(0) || o.EUID == ^uint32(0):
			return object.BadImagef("user %d, %d has set a receiver of SIGIO", o.UID, o.EUID)
		}
	}
	return nil
}

// HasOwners says whether any table of the plan has something for OwnerCalls to do.
func HasOwners(plan *object.Plan) bool {
	return slices.ContainsFunc(object.All[TableState](plan), func(f object.Found[TableState]) bool { return len(f.State.Owners) > 0 })
}

// OwnerCalls appends the calls by which a process sets what Owners says, after TableCalls and after every end of a pipe
// that nobody is to have has been closed. inTree says whether the image has a process or thread of a number.
func OwnerCalls(r *object.Restorer, b *tracee.Batch, t *TableState, inTree func(id int32, thread bool) bool) error {
	n := b.Sys()
	uid, euid := uint32(os.Getuid()), uint32(os.Geteuid())
	for i := range t.Owners {
		o := &t.Owners[i]
		if o.Signal != 0 {
			b.Call(n.Fcntl, o.FD, unix.F_SETSIG, o.Signal).Note("the signal of fd %d", o.FD)
		}
		if o.ID != 0 || o.Kind != ownerThread { // which it is before anybody sets it
			if o.ID != 0 && !inTree(o.ID, o.Kind == ownerThread) {
				return object.BadImagef("the receiver of SIGIO of descriptor %d, %s %d, is not in the image", o.FD, o.Kind, o.ID)
			}
			own := make([]byte, 8) // struct f_owner_ex
			binary.NativeEndian.PutUint32(own, uint32(slices.Index(ownerKinds[:], o.Kind)))
			binary.NativeEndian.PutUint32(own[4:], uint32(o.ID))
			// The kernel notes the ids of whoever makes the call. The saved one stays, and with it the way back.
			if o.ID != 0 && (o.UID != uid || o.EUID != euid) {
				b.Call(n.Setresuid, o.UID, o.EUID, -1).Note("user %d for the receiver of fd %d", o.UID, o.FD)
				b.Call(n.Fcntl, o.FD, unix.F_SETOWN_EX, own).Note("the receiver of fd %d", o.FD)
				b.Call(n.Setresuid, uid, euid, -1).Note("user %d again", uid)
			} else {
				b.Call(n.Fcntl, o.FD, unix.F_SETOWN_EX, own).Note("the receiver of fd %d", o.FD)
			}
		}
		if o.Async { // F_SETFL would set the other flags too (ioctl_fioasync in fs/ioctl.c)
			b.Call(n.Ioctl, o.FD, sys.FIOASYNC, []byte{1, 0, 0, 0}).Note("the signals of fd %d", o.FD)
		}
	}
	return nil
}
