package kernelview

// FileTable is the descriptor table of a thread.
type FileTable struct {
	Tid   int          // the thread that was asked for
	ID    Maybe[ID]    // the table: equal means shared; 0: none (zombie)
	Users Maybe[int32] // tasks that use it, and other holders of the moment
	FDs   []FD         // ascending; of a shared table the same slice in each
}

// FD is one descriptor.
type FD struct {
	FD          int
	CloseOnExec bool
	File        *File
}

// Kind says what an open file is, by the functions that the kernel calls for
// it and, where these are of a file system, by the type of its inode.
type Kind string

// The kinds. KindUnknown: none of these can be told. KindAnon: an anonymous
// inode of a kind not listed here. KindPath: opened with O_PATH, whatever it
// leads to.
const (
	KindUnknown     Kind = ""
	KindAnon        Kind = "anonymous"
	KindPath        Kind = "path"
	KindRegular     Kind = "regular"
	KindDirectory   Kind = "directory"
	KindSymlink     Kind = "symlink"
	KindCharDevice  Kind = "character device"
	KindBlockDevice Kind = "block device"
	KindTTY         Kind = "tty"
	KindPipe        Kind = "pipe" // pipe(2) and FIFOs
	KindSocket      Kind = "socket"
	KindEventfd     Kind = "eventfd"
	KindEpoll       Kind = "epoll"
	KindSignalfd    Kind = "signalfd"
	KindTimerfd     Kind = "timerfd"
	KindInotify     Kind = "inotify"
	KindFanotify    Kind = "fanotify"
	KindPidfd       Kind = "pidfd"
	KindNamespace   Kind = "namespace"
	KindMqueue      Kind = "mqueue"
	KindIOUring     Kind = "io_uring"
	KindUserfaultfd Kind = "userfaultfd"
	KindPerf        Kind = "perf_event"
	KindBPF         Kind = "bpf"
)

// File is one open file (an open file description).
type File struct {
	ID    ID
	Kind  Kind
	Flags Maybe[uint32] // as F_GETFL: no O_CLOEXEC
	Pos   Maybe[int64]
	// Refs counts who holds the file: descriptors in distinct tables, mappings,
	// messages in flight, the kernel. A thread inside a call on a descriptor of a
	// shared table adds one unless the tree is frozen (cgroup v2).
	Refs Maybe[int64]

	Inode  Maybe[ID]
	Dev    Maybe[uint64] // the superblock's, in the form of st_dev; stat(2) of btrfs and overlayfs says another
	Ino    Maybe[uint64]
	Nlink  Maybe[uint32]
	Rdev   Maybe[uint64] // in the form of st_rdev
	Mode   Maybe[uint16] // S_IFMT and permission bits of the inode
	Size   Maybe[int64]
	FSType Maybe[uint64] // as f_type of statfs(2)
	Mount  Maybe[int32]  // mnt_id of /proc/PID/fdinfo

	Owner Maybe[Owner]
	// Locks says that some process holds a lock or a lease on the inode, not
	// necessarily through this file.
	Locks Maybe[bool]
	// Linkable says that the inode was made with O_TMPFILE without O_EXCL, so that
	// linkat(2) may give it a name.
	Linkable Maybe[bool]
	// Unseen says that its use is no event for inotify(7) and fanotify(7): it is the
	// file of an event itself, or one that lies in no file system of the user's.
	Unseen Maybe[bool]
	// WriteHint is the inode's RWH_WRITE_LIFE_* value (F_SET_RW_HINT).
	WriteHint Maybe[uint8]
}

// Owner is who gets SIGIO: F_GETOWN_EX, F_GETSIG, F_GETOWNER_UIDS.
type Owner struct {
	Set    bool
	PID    int    // in the caller's pid namespace, 0: outside of it
	Type   uint32 // 0 thread, 1 process, 2 process group, 3 session; without an owner that of the last one
	Signal int32  // 0: SIGIO
	UID    uint32 // in the initial user namespace
	EUID   uint32
}

// Eventfd is the content of an eventfd(2).
type Eventfd struct {
	Count     uint64
	Semaphore bool
}

// Epoll is the content of an epoll(7) instance, by descriptor number and then
// by file.
type Epoll struct{ Items []EpollItem }

// EpollItem is one watched file. FD is the number it was added by, which may
// be closed, or be another file by now: compare File with the table.
type EpollItem struct {
	FD     int
	File   ID
	Events uint32 // with EPOLLET, EPOLLONESHOT ...; a fired one-shot has only these bits left
	Data   uint64
	Ready  bool // is on the ready list: epoll_wait will look at it
}

// Signalfd is the content of a signalfd(2): bit n-1 is signal n.
type Signalfd struct{ Mask uint64 }

// Timerfd is the content of a timerfd_create(2) object.
type Timerfd struct {
	Clock    int32
	Flags    uint32 // of timerfd_settime(2): TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
	Interval int64  // ns
	// Ticks is the number of expiries that the kernel has counted and nobody has
	// read. A periodic timer that has expired stands until it is read (Expired),
	// and the expiries since then are counted only at that moment.
	Ticks   uint64
	Expired bool
	// Armed: will expire (again). Left is the time to the next expiry in ns as
	// timerfd_gettime(2) counts it: moved on by whole intervals of a periodic one
	// that has expired and was not read; 0 when not armed, negative or 0 when it
	// is about to expire. Expires is the moment that the kernel has set, in the
	// past for an expired one, on the clock ExpiresOn, in the initial time
	// namespace.
	Armed     bool
	Left      Maybe[int64]
	Expires   int64
	ExpiresOn Maybe[int32]
	// Canceled: the clock was set and a read will give ECANCELED.
	Canceled Maybe[bool]
}

// Pipe is the state of a pipe or FIFO.
type Pipe struct {
	ID      ID     // the pipe itself: equal for both ends
	Slots   uint32 // F_GETPIPE_SZ / page size
	Readers uint32 // open files with read access (not descriptors)
	Writers uint32
	Files   uint32
	// Notifications: the kernel writes into it (O_NOTIFICATION_PIPE).
	Notifications bool
	// Async are the open files through which its owner is told by a signal
	// (O_ASYNC). One that was opened with the flag is not: it does nothing.
	Async   Maybe[[]Async]
	Buffers []PipeBuffer // oldest first
}

// Async is an open file that tells its owner by a signal, and the descriptor
// number by which O_ASYNC was set, which is in the signal's siginfo.
type Async struct {
	File ID
	FD   int32
}

// PipeBuffer is one message or part of the byte stream.
type PipeBuffer struct {
	Len    uint32
	Packet bool // written with O_DIRECT: a read takes it alone
}
