package ipc

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A POSIX message queue (mq_overview(7)): a file of the file system of its IPC namespace, which need not be mounted anywhere. Its link in
// /proc/PID/fd shows its name; owner, permissions and times are those of its inode. What is in it only the kernel's memory shows: every call
// that reads a message takes it out (struct mqueue_inode_info in ipc/mqueue.c). Messages come back in their order, and who is to be told of
// the next one (mq_notify(3)) calls again.
//
// Lost: whose RLIMIT_MSGQUEUE it counts for: that of who restores it.
type mqueueState struct {
	Name        string   `msgpack:"name"`               // without the slash
	Unlinked    bool     `msgpack:"unlinked,omitempty"` // it has its name no more (mq_unlink(3))
	Mode        uint32   `msgpack:"mode"`
	UID         uint32   `msgpack:"uid"`
	GID         uint32   `msgpack:"gid"`
	Access      int64    `msgpack:"atime"` // ns since 1970
	Modify      int64    `msgpack:"mtime"`
	MaxMessages int64    `msgpack:"maxmsg"`
	MessageSize int64    `msgpack:"msgsize"`
	Priorities  []uint32 `msgpack:"priorities,omitempty"` // of the messages, in the order in which they are received
	Sizes       []uint32 `msgpack:"sizes,omitempty"`      // bytes
	Notify      int32    `msgpack:"notify,omitempty"`     // process that is told of the next message; 0: none
	How         int32    `msgpack:"how,omitempty"`        // SIGEV_SIGNAL (0) or SIGEV_NONE (1)
	Signal      int32    `msgpack:"signal,omitempty"`
	Value       uint64   `msgpack:"value,omitempty"` // of the signal
}

// mqueueFileState is an open file on a queue.
type mqueueFileState struct {
	Queue stream.Ref `msgpack:"queue"`
	Flags uint32     `msgpack:"flags"`         // as F_GETFL
	Pos   int64      `msgpack:"pos,omitempty"` // of read(2), which shows its state as text
}

// MqueueKind is the kind of open files on POSIX message queues, MqueueObject that of the queues.
var (
	MqueueKind   = object.NewFileKind("file.mqueue", claimsMqueue, dumpMqueueFile, restoreMqueueFile)
	MqueueObject = object.NewKind("mqueue", restoreMqueue)
)

const (
	maxMqueueMessages = 1 << 16 // HARD_MSGMAX, linux/ipc_namespace.h
	maxMqueueSize     = 1 << 24 // HARD_MSGSIZEMAX
	maxMqueueBytes    = 256 << 20
	maxPriority       = 32768 // MQ_PRIO_MAX
	mqueueFlags       = unix.O_ACCMODE | unix.O_NONBLOCK
	sigevSignal       = 0
	sigevNone         = 1
	sigevThread       = 2
)

type mqueueKey struct{ dev, ino uint64 }

func claimsMqueue(_ *object.Dumper, f *object.OpenFile) bool {
	return f.View != nil && f.View.Kind == kernelview.KindMqueue
}

func dumpMqueueFile(d *object.Dumper, f *object.OpenFile) (*mqueueFileState, error) {
	name, ok := strings.CutPrefix(strings.TrimSuffix(f.Link, " (deleted)"), "/")
	if !ok || strings.Contains(name, "/") {
		return nil, object.Unsupportedf("a message queue that was opened through a mounted file system cannot be checkpointed")
	}
	flags, err := files.Flags(f)
	if err != nil {
		return nil, err
	}
	if odd := flags &^ mqueueFlags; odd != 0 {
		return nil, object.Unsupportedf("a message queue that is open with the flags %#o cannot be checkpointed", odd)
	}
	ref, err := d.Once(mqueueKey{f.Stat.Dev, f.Stat.Ino}, func() (stream.Ref, error) {
		if who := heldOutside(d, &f.Stat); who != "" {
			return stream.Ref{}, &object.Unsupported{What: "the message queue is also open outside of the tree, in " + who, Do: "dump the whole job"}
		}
		return dumpMqueue(d, name, &f.Stat, f.View.ID)
	})
	if err != nil {
		return nil, err
	}
	return &mqueueFileState{Queue: ref, Flags: flags, Pos: f.View.Pos.V}, nil
}

// heldOutside says which process outside of the tree has a file open; "": none.
func heldOutside(d *object.Dumper, st *unix.Stat_t) string {
	pids, err := procfs.Processes()
	if err != nil {
		return ""
	}
	l := Of(d)
	for _, pid := range pids {
		if _, ours := l.ids[pid]; ours || pid == os.Getpid() {
			continue
		}
		dir := procfs.Path(pid, "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // gone
		}
		for _, e := range entries {
			var at unix.Stat_t
			if unix.Stat(dir+"/"+e.Name(), &at) == nil && at.Dev == st.Dev && at.Ino == st.Ino {
				s, _ := procfs.ReadStat(pid)
				return fmt.Sprintf("pid %d (%s)", pid, s.Comm)
			}
		}
	}
	return ""
}

func errNoMqueueView() error {
	return &object.Unsupported{What: "the contents of a POSIX message queue cannot be read without taking them out", Do: "dump it as root on a kernel with BTF (--source bpf)"}
}

// dumpMqueue adds the record of a queue and its contents.
func dumpMqueue(d *object.Dumper, name string, st *unix.Stat_t, file kernelview.ID) (stream.Ref, error) {
	view, ok := d.View.(kernelview.MqueueView)
	if !ok {
		return stream.Ref{}, errNoMqueueView()
	}
	v, err := view.Mqueue(file)
	if err != nil {
		return stream.Ref{}, fmt.Errorf("looking at the message queue: %w", err)
	}
	l := Of(d)
	s := &mqueueState{Name: name, Unlinked: st.Nlink == 0, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Access: st.Atim.Nano(), Modify: st.Mtim.Nano(),
		MaxMessages: v.MaxMessages, MessageSize: v.MessageSize}
	if n := v.Notify; n.Set {
		s.Notify, s.How, s.Signal, s.Value = l.PID(n.PID), n.How, n.Signal, n.Value
		switch {
		case n.How == sigevThread:
			return stream.Ref{}, object.Unsupportedf("the process that is told of the next message in the queue by a new thread (SIGEV_THREAD) cannot be checkpointed")
		case n.How != sigevSignal && n.How != sigevNone:
			return stream.Ref{}, object.Unsupportedf("the way in which a process is told of the next message in the queue (%d) cannot be checkpointed", n.How)
		case s.Notify == 0:
			return stream.Ref{}, object.Unsupportedf("a process outside of the tree (pid %d) is told of the next message in the queue", n.PID)
		}
		if n.How == sigevNone {
			s.Signal, s.Value = 0, 0 // whatever was there, nobody sees it
		}
	}
	var contents []byte
	for _, m := range v.Messages {
		s.Priorities, s.Sizes = append(s.Priorities, m.Priority), append(s.Sizes, uint32(len(m.Data)))
		contents = append(contents, m.Data...)
	}
	ref := d.Add(MqueueObject.Type, s)
	if !s.Unlinked && !l.Own {
		d.Ended = append(d.Ended, func() error {
			if err := sys.MqUnlink(name); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("removing message queue /%s, which is in the image: %w", name, err)
			}
			return nil
		})
	}
	if len(contents) > 0 {
		d.AddBulk(ref, func(w *stream.Writer) error { return writeContents(w, ref, contents) })
	}
	return ref, nil
}

// writeContents writes bytes as data records.
func writeContents(w *stream.Writer, of stream.Ref, contents []byte) error {
	for at := 0; at < len(contents); {
		n := min(len(contents)-at, 64<<10)
		if err := w.Put(object.TypeData, 0, &object.Data{Of: of, Offset: uint64(at)}, contents[at:at+n]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// DumpMqueues adds the queues of the tree's own IPC namespace that nobody has open.
func DumpMqueues(d *object.Dumper) error {
	l := Of(d)
	if !l.Own {
		return nil
	}
	var found []*os.File
	defer func() {
		for _, f := range found {
			_ = f.Close() // only looked at
		}
	}()
	if err := l.Do(func() error {
		dir, err := openMqueues()
		if errors.Is(err, unix.ENODEV) { // a kernel without them
			return nil
		}
		if err != nil {
			return err
		}
		defer dir.Close()
		names, err := dir.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, name := range names {
			fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("opening message queue /%s: %w", name, err)
			}
			found = append(found, os.NewFile(uintptr(fd), name))
		}
		return nil
	}); err != nil {
		return d.Root.Error("", fmt.Errorf("looking for message queues in its IPC namespace: %w", err))
	}
	if len(found) == 0 {
		return nil
	}
	if _, ok := d.View.(kernelview.MqueueView); !ok {
		d.Refuse(d.Root.Error("message queue /"+found[0].Name()+" of its IPC namespace", errNoMqueueView()))
		return nil
	}
	tables, err := d.View.Files([]int{os.Getpid()})
	if err != nil {
		return err
	}
	views := map[int]*kernelview.File{}
	for _, fd := range tables[0].FDs {
		views[fd.FD] = fd.File
	}
	for _, f := range found {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		if _, err := d.Once(mqueueKey{st.Dev, st.Ino}, func() (stream.Ref, error) {
			v := views[int(f.Fd())]
			if v == nil || v.Kind != kernelview.KindMqueue {
				return stream.Ref{}, object.Unsupportedf("it cannot be told to be a message queue")
			}
			return dumpMqueue(d, f.Name(), &st, v.ID)
		}); err != nil {
			d.Refuse(d.Root.Error("message queue /"+f.Name()+" of its IPC namespace", err))
		}
	}
	return nil
}

// openMqueues opens the directory of the queues of the calling thread's IPC namespace.
func openMqueues() (*os.File, error) {
	fs, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mount)
	dir, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dir), "mqueue"), nil
}

func (s *mqueueState) bytes() (sum uint64) {
	for _, n := range s.Sizes {
		sum += uint64(n)
	}
	return sum
}

func (s *mqueueState) check() error {
	switch {
	case s.Name == "" || s.Name == "." || s.Name == ".." || len(s.Name) > unix.NAME_MAX || strings.ContainsAny(s.Name, "/\x00"):
		return object.BadImagef("the name %q of a message queue", clip(s.Name))
	case s.MaxMessages <= 0 || s.MaxMessages > maxMqueueMessages || s.MessageSize <= 0 || s.MessageSize > maxMqueueSize || int64(len(s.Sizes)) > s.MaxMessages ||
		len(s.Sizes) != len(s.Priorities) || s.bytes() > maxMqueueBytes:
		return object.BadImagef("a message queue of %d messages, at most %d of %d bytes", len(s.Sizes), s.MaxMessages, s.MessageSize)
	case s.Mode > 0o7777 || int32(s.UID) == -1 || int32(s.GID) == -1:
		return object.BadImagef("a message queue of mode %#o and owner %d:%d", s.Mode, s.UID, s.GID)
	case s.Notify < 0 || s.How != sigevSignal && s.How != sigevNone || s.Notify != 0 && s.How == sigevSignal && (s.Signal < 0 || s.Signal > 64):
		return object.BadImagef("process %d is told of messages by signal %d", s.Notify, s.Signal)
	}
	for i, n := range s.Sizes {
		if int64(n) > s.MessageSize || s.Priorities[i] >= maxPriority || i > 0 && s.Priorities[i] > s.Priorities[i-1] {
			return object.BadImagef("message %d has %d bytes and the priority %d", i, n, s.Priorities[i])
		}
	}
	return nil
}

// madeMqueue is a queue at restore.
type madeMqueue struct {
	state *mqueueState
	fd    int    // in the pool: for reading and writing, O_NONBLOCK
	next  int    // the message that is sent next
	at    uint64 // bytes that have arrived
	part  []byte // of the message that is sent next

	open map[uint32]int // the open files of the image on it, by objref, in the pool
}

func restoreMqueue(r *object.Restorer, ref stream.Ref, s *mqueueState) error {
	if err := s.check(); err != nil {
		return err
	}
	m := &madeMqueue{state: s, open: map[uint32]int{}}
	if err := m.make(r, ref); err != nil {
		return fmt.Errorf("making message queue /%s: %w", clip(s.Name), err)
	}
	r.Remember(ref, m)
	r.OnContent(ref, m.take)
	return m.send()
}

// make makes the queue and opens it as often as the image says, all by its name: any other way would add O_LARGEFILE.
func (m *madeMqueue) make(r *object.Restorer, ref stream.Ref) error {
	s := m.state
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NONBLOCK
	attr := &sys.MqAttr{MaxMessages: s.MaxMessages, MessageSize: s.MessageSize}
	name := s.Name
	fd, err := sys.MqOpen(name, flags, 0o600, attr)
	for try := 0; s.Unlinked && errors.Is(err, unix.EEXIST) && try < 100; try++ {
		// Somebody else has the name now. The queue gets another until it is unlinked, which /proc will show.
		name = fmt.Sprintf(".%.200s.%d.%d", s.Name, os.Getpid(), try)
		fd, err = sys.MqOpen(name, flags, 0o600, attr)
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return &mqueueTakenError{s.Name}
	case errors.Is(err, unix.EINVAL):
		return &object.Lacking{What: fmt.Sprintf("%d messages of %d bytes are more than fs.mqueue.msg_max and msgsize_max allow", s.MaxMessages, s.MessageSize), Err: err,
			Do: "raise them by sysctl, or give cr-restore CAP_SYS_RESOURCE"}
	case errors.Is(err, unix.EMFILE):
		return &object.Lacking{What: "cr-restore's limit of bytes in message queues (RLIMIT_MSGQUEUE)", Err: err, Do: "raise it by prlimit --msgqueue"}
	case err != nil:
		return err
	}
	if m.fd, err = r.Pool(fd.Disown()); err != nil {
		return err
	}
	if !s.Unlinked && len(object.All[NamespaceState](r.Plan)) == 0 { // else it goes with the namespace
		r.Undo(func() {
			if err := sys.MqUnlink(name); err != nil && !errors.Is(err, unix.ENOENT) {
				r.Warn("message queue /%s, which was made here, stays: %v", clip(name), err)
			}
		})
	}
	for _, f := range object.All[mqueueFileState](r.Plan) {
		if f.State.Queue != ref {
			continue
		}
		if err = f.State.check(); err == nil {
			if fd, err = sys.MqOpen(name, int(f.State.Flags), 0, nil); err == nil {
				m.open[f.Ref.ID], err = r.Pool(fd.Disown())
			}
		}
		if err != nil {
			break
		}
	}
	if s.Unlinked {
		err = errors.Join(err, sys.MqUnlink(name))
	}
	if err == nil {
		err = unix.Fchown(m.fd, int(s.UID), int(s.GID))
	}
	if err == nil {
		err = unix.Fchmod(m.fd, s.Mode)
	}
	return err
}

// mqueueTakenError says that a name is in use at the restore.
type mqueueTakenError struct{ name string }

func (e *mqueueTakenError) Error() string {
	return fmt.Sprintf("POSIX message queue /%s: there is one of that name", clip(e.name))
}

// Hint is the command that makes room, if it is of what the tree has left behind.
func (e *mqueueTakenError) Hint() string {
	return "if that is what the dumped tree has left behind, remove it (rm of it where the file system mqueue is mounted, as on /dev/mqueue); cr-dump --kill does so itself"
}

// CheckMqueues refuses queues whose names are in use in the namespace of the calling thread.
func CheckMqueues(plan *object.Plan) error {
	for _, q := range object.All[mqueueState](plan) {
		if err := q.State.check(); err != nil {
			return err
		}
		if q.State.Unlinked {
			continue
		}
		fd, err := sys.MqOpen(q.State.Name, unix.O_RDONLY|unix.O_NONBLOCK, 0, nil)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOSYS) {
			continue
		}
		if err == nil {
			_ = fd.Close() // nothing was done with it
		}
		return &mqueueTakenError{q.State.Name}
	}
	return nil
}

// take takes contents in the order of the messages.
func (m *madeMqueue) take(meta *object.Data, data []byte) error {
	if meta.Offset != m.at || uint64(len(data)) > m.state.bytes()-m.at {
		return object.BadImagef("contents at %d of a message queue of %d bytes, of which %d are there", meta.Offset, m.state.bytes(), m.at)
	}
	m.at += uint64(len(data))
	m.part = append(m.part, data...)
	return m.send()
}

// send sends the messages that are there.
func (m *madeMqueue) send() error {
	for m.next < len(m.state.Sizes) && len(m.part) >= int(m.state.Sizes[m.next]) {
		n := int(m.state.Sizes[m.next])
		if err := sys.MqSend(m.fd, m.part[:n], m.state.Priorities[m.next]); err != nil {
			return fmt.Errorf("sending message %d of %d to message queue /%s: %w", m.next+1, len(m.state.Sizes), clip(m.state.Name), err)
		}
		m.part = m.part[n:]
		m.next++
	}
	return nil
}

// FinishMqueues makes sure that all messages are there, and gives the queues their times.
func FinishMqueues(r *object.Restorer) error {
	for _, q := range object.All[mqueueState](r.Plan) {
		m, err := object.Recall[madeMqueue](r, q.Ref)
		if err != nil {
			return err
		}
		if m.next != len(m.state.Sizes) {
			return object.BadImagef("message queue /%s has %d of its %d messages", clip(m.state.Name), m.next, len(m.state.Sizes))
		}
		times := []unix.Timespec{unix.NsecToTimespec(m.state.Access), unix.NsecToTimespec(m.state.Modify)}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", m.fd), times, 0); err != nil {
			return fmt.Errorf("setting the times of message queue /%s: %w", clip(m.state.Name), err)
		}
	}
	return nil
}

func (s *mqueueFileState) check() error {
	if s.Flags&^mqueueFlags != 0 || s.Flags&unix.O_ACCMODE == unix.O_ACCMODE || s.Pos < 0 || s.Pos > math.MaxInt32 {
		return object.BadImagef("flags %#o or position %d of a message queue are impossible", s.Flags, s.Pos)
	}
	return nil
}

func restoreMqueueFile(r *object.Restorer, ref stream.Ref, s *mqueueFileState) (int, error) {
	m, err := object.Recall[madeMqueue](r, s.Queue)
	if err != nil {
		return -1, err
	}
	opened, ok := m.open[ref.ID]
	if !ok {
		return -1, object.BadImagef("an open file on a message queue that nothing can refer to")
	}
	fd, err := unix.FcntlInt(uintptr(opened), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if s.Pos > 0 {
		if _, err := unix.Seek(fd, s.Pos, unix.SEEK_SET); err != nil {
			_ = unix.Close(fd) // new
			return -1, fmt.Errorf("setting the position of message queue /%s: %w", clip(m.state.Name), err)
		}
	}
	return fd, nil
}

// Notify is a process that is told of the next message of a queue.
type Notify struct {
	PID   int32
	queue stream.Ref
	state *mqueueState
}

// Notifies returns all of an image.
func Notifies(plan *object.Plan) (all []Notify) {
	for _, q := range object.All[mqueueState](plan) {
		if q.State.Notify != 0 {
			all = append(all, Notify{q.State.Notify, q.Ref, q.State})
		}
	}
	return all
}

// Calls adds the call of a process with that descriptor table, which must be its own already: to close a descriptor of the queue ends
// its being told (mqueue_flush_file in ipc/mqueue.c).
func (n *Notify) Calls(r *object.Restorer, b *tracee.Batch, table *files.TableState) error {
	for _, fd := range table.Entries {
		f, err := r.Plan.Lookup(fd.File)
		if err != nil {
			return err
		}
		s, ok := f.State.(*mqueueFileState)
		if !ok || s.Queue != n.queue {
			continue
		}
		event := make([]byte, 64) // struct sigevent: value, signal, how
		a := b.Arch()
		a.Order.PutUint64(event, n.state.Value)
		a.Order.PutUint32(event[8:], uint32(n.state.Signal))
		a.Order.PutUint32(event[12:], uint32(n.state.How))
		b.Call(b.Sys().MqNotify, fd.FD, b.Data(event)).Note("message queue /%s, descriptor %d", clip(n.state.Name), fd.FD)
		return nil
	}
	return object.BadImagef("process %d is told of messages of a queue that it has not open", n.PID)
}
