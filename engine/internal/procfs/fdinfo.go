package procfs

import "bytes"

// Fdinfo is /proc/PID/fdinfo/FD (proc_pid_fdinfo(5)). The members for the
// kinds of files are nil or empty for others.
type Fdinfo struct {
	Pos   int64
	Flags uint32 // O_*, with O_CLOEXEC for this descriptor
	MntID int    // of mountinfo; anonymous files have one that is not listed there
	Ino   uint64 // Linux 5.14

	Eventfd  *EventfdInfo
	Epoll    []EpollTarget
	Signalfd *uint64 // the mask: bit n-1 is signal n
	Timerfd  *TimerfdInfo
	Inotify  []InotifyWatch
	Fanotify *FanotifyInfo
	Pidfd    *PidfdInfo
	Locks    []Lock

	Other []StatusLine // lines that this package does not know
}

// EventfdInfo is what an eventfd shows. ID and Semaphore are -1 where the
// kernel is too old to say (5.2, 6.5).
type EventfdInfo struct {
	Count     uint64
	ID        int
	Semaphore int
}

// EpollTarget is one item of an epoll instance. FD is the number under which
// it was added, which may be closed or another file by now.
type EpollTarget struct {
	FD     int
	Events uint32
	Data   uint64
	Pos    int64 // of the watched file
	Ino    uint64
	Dev    uint32 // s_dev, the kernel's encoding: minor in the low 20 bits
}

// TimerfdInfo is what a timerfd shows: times in nanoseconds.
type TimerfdInfo struct {
	ClockID      int
	Ticks        uint64 // expirations not yet read
	SettimeFlags uint32
	Value        uint64 // time left
	Interval     uint64
}

// InotifyWatch is one watch of an inotify instance.
type InotifyWatch struct {
	WD         int
	Ino        uint64
	Dev        uint32 // s_dev, see EpollTarget
	Mask       uint32
	HandleType uint32 // for open_by_handle_at(2)
	Handle     []byte // empty when the file system has none
}

// PidfdInfo is what a pidfd shows. PID is -1 when the task has been reaped, 0
// when it is not in the reader's pid namespace.
type PidfdInfo struct {
	PID   int
	NSpid []int
}

// FanotifyInfo is what a fanotify group shows.
type FanotifyInfo struct {
	Flags      uint32 // FAN_*, of fanotify_init(2)
	EventFlags uint32 // O_*, of the files of its events
	Marks      []FanotifyMark
}

// MarkedObject is what a mark of fanotify is on.
type MarkedObject uint8

// The objects of marks.
const (
	OnNothing MarkedObject = iota
	OnInode
	OnMount
	OnFilesystem
	OnMountNamespace
)

// FanotifyMark is one mark of a fanotify group.
type FanotifyMark struct {
	On            MarkedObject
	ID            uint32 // of the mount, or inode number of the mount namespace
	Ino           uint64 // of an inode
	Dev           uint32 // of an inode or file system, as the kernel writes it: minor in the low 20 bits
	Flags         uint32 // FAN_MARK_*
	Mask, Ignored uint32
	HandleType    uint32
	Handle        []byte
}

// Lock is one lock held through the description or, for POSIX ones, by the
// process (proc_locks(5)).
type Lock struct {
	Kind  string // FLOCK, POSIX, OFDLCK, LEASE, DELEG, ACCESS
	Mode  string // ADVISORY; for leases ACTIVE, BREAKING, BREAKER
	Type  string // READ, WRITE, UNLCK
	PID   int    // -1: an OFD lock
	Major uint32
	Minor uint32
	Ino   uint64
	Start int64
	End   int64 // last byte; EOF if ToEOF
	ToEOF bool
}

// ParseFdinfo parses the whole file.
func ParseFdinfo(b []byte) (*Fdinfo, error) {
	f := &Fdinfo{}
	seen := 0
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		if len(line) == 0 {
			continue
		}
		known, ok := f.set(line)
		if !ok {
			return nil, badFormat("a line of fdinfo", line)
		}
		if known {
			seen++
			continue
		}
		key, value, _ := bytes.Cut(line, []byte{':'})
		f.Other = append(f.Other, StatusLine{string(key), string(bytes.Trim(value, " \t"))})
	}
	if seen == 0 {
		return nil, badFormat("no known line in fdinfo", b)
	}
	return f, nil
}

// set takes one line; known is false for one that this package does not know.
func (f *Fdinfo) set(line []byte) (known, ok bool) {
	if after, is := bytes.CutPrefix(line, []byte("fanotify ")); is {
		return true, f.setFanotify(after)
	}
	if after, is := bytes.CutPrefix(line, []byte("inotify ")); is {
		return true, f.setInotify(after)
	}
	key, value, found := bytes.Cut(line, []byte{':'})
	if !found {
		return false, true
	}
	value = bytes.Trim(value, " \t")
	var u uint64
	switch string(key) {
	case "pos":
		f.Pos, ok = parseInt(value, 64)
	case "flags":
		u, ok = parseUint(value, 8, 32)
		f.Flags = uint32(u)
	case "mnt_id":
		f.MntID, ok = parseIntFull(value)
	case "ino":
		f.Ino, ok = parseUint(value, 10, 64)
	case "eventfd-count":
		f.eventfd().Count, ok = parseUint(value, 16, 64)
	case "eventfd-id":
		f.eventfd().ID, ok = parseIntFull(value)
	case "eventfd-semaphore":
		f.eventfd().Semaphore, ok = parseIntFull(value)
	case "tfd":
		ok = f.setEpoll(value)
	case "sigmask":
		f.Signalfd = new(uint64)
		*f.Signalfd, ok = parseUint(value, 16, 64)
	case "clockid":
		f.timerfd().ClockID, ok = parseIntFull(value)
	case "ticks":
		f.timerfd().Ticks, ok = parseUint(value, 10, 64)
	case "settime flags":
		u, ok = parseUint(value, 8, 32)
		f.timerfd().SettimeFlags = uint32(u)
	case "it_value":
		f.timerfd().Value, ok = parseTimespec(value)
	case "it_interval":
		f.timerfd().Interval, ok = parseTimespec(value)
	case "Pid":
		f.pidfd().PID, ok = parseIntFull(value)
	case "NSpid":
		ok = setInts(&f.pidfd().NSpid, value) == nil
	case "lock":
		ok = f.setLock(value)
	default:
		return false, true
	}
	return true, ok
}

func (f *Fdinfo) eventfd() *EventfdInfo {
	if f.Eventfd == nil {
		f.Eventfd = &EventfdInfo{ID: -1, Semaphore: -1}
	}
	return f.Eventfd
}

func (f *Fdinfo) timerfd() *TimerfdInfo {
	if f.Timerfd == nil {
		f.Timerfd = &TimerfdInfo{}
	}
	return f.Timerfd
}

func (f *Fdinfo) pidfd() *PidfdInfo {
	if f.Pidfd == nil {
		f.Pidfd = &PidfdInfo{}
	}
	return f.Pidfd
}

// setEpoll reads "%8d events: %8x data: %16llx  pos:%lli ino:%lx sdev:%x"
// (ep_show_fdinfo in fs/eventpoll.c); pos and what follows came with 4.13.
func (f *Fdinfo) setEpoll(b []byte) bool {
	var t EpollTarget
	word, rest := nextField(b)
	fd, ok := parseIntFull(word)
	t.FD = fd
	for ok {
		if word, rest = nextField(rest); len(word) == 0 {
			f.Epoll = append(f.Epoll, t)
			return true
		}
		key, value, found := bytes.Cut(word, []byte{':'})
		if !found {
			return false
		}
		if len(value) == 0 { // the number is the next word
			value, rest = nextField(rest)
		}
		var u uint64
		switch string(key) {
		case "events":
			u, ok = parseUint(value, 16, 32)
			t.Events = uint32(u)
		case "data":
			t.Data, ok = parseUint(value, 16, 64)
		case "pos":
			t.Pos, ok = parseInt(value, 64)
		case "ino":
			t.Ino, ok = parseUint(value, 16, 64)
		case "sdev":
			u, ok = parseUint(value, 16, 32)
			t.Dev = uint32(u)
		}
	}
	return false
}

// setInotify reads "wd:%x ino:%llx sdev:%x mask:%x ignored_mask:%x
// fhandle-bytes:%x fhandle-type:%x f_handle:HEX" (fs/notify/fdinfo.c).
func (f *Fdinfo) setInotify(b []byte) bool {
	var w InotifyWatch
	size := uint64(0)
	for {
		var word []byte
		if word, b = nextField(b); len(word) == 0 {
			break
		}
		key, value, found := bytes.Cut(word, []byte{':'})
		if !found {
			return false
		}
		var u uint64
		ok := true
		switch string(key) {
		case "wd":
			u, ok = parseUint(value, 16, 31)
			w.WD = int(u)
		case "ino":
			w.Ino, ok = parseUint(value, 16, 64)
		case "sdev":
			u, ok = parseUint(value, 16, 32)
			w.Dev = uint32(u)
		case "mask":
			u, ok = parseUint(value, 16, 32)
			w.Mask = uint32(u)
		case "fhandle-bytes":
			size, ok = parseUint(value, 16, 16)
		case "fhandle-type":
			u, ok = parseUint(value, 16, 32)
			w.HandleType = uint32(u)
		case "f_handle":
			w.Handle, ok = hexBytes(value)
		}
		if !ok {
			return false
		}
	}
	if uint64(len(w.Handle)) != size {
		return false
	}
	f.Inotify = append(f.Inotify, w)
	return true
}

// setFanotify reads "flags:%x event-flags:%x" of the group, and of each mark
// "ino:%lx sdev:%x", "sdev:%x", "mnt_id:%x" or "mnt_ns:%u", with
// "mflags:%x mask:%x ignored_mask:%x" and, of an inode, its handle
// (fs/notify/fdinfo.c).
func (f *Fdinfo) setFanotify(b []byte) bool {
	var m FanotifyMark
	size := uint64(0)
	group := false
	for {
		var word []byte
		if word, b = nextField(b); len(word) == 0 {
			if group {
				return true
			}
			break
		}
		key, value, found := bytes.Cut(word, []byte{':'})
		if !found {
			return false
		}
		base, to := uint64(16), (*uint32)(nil)
		var u uint64
		ok := true
		switch string(key) {
		case "flags":
			group, f.Fanotify = true, &FanotifyInfo{}
			to = &f.Fanotify.Flags
		case "event-flags":
			if f.Fanotify == nil {
				return false
			}
			to = &f.Fanotify.EventFlags
		case "ino":
			m.On = OnInode
			m.Ino, ok = parseUint(value, 16, 64)
		case "sdev":
			if m.On == OnNothing {
				m.On = OnFilesystem
			}
			to = &m.Dev
		case "mnt_id":
			m.On, to = OnMount, &m.ID
		case "mnt_ns":
			m.On, base, to = OnMountNamespace, 10, &m.ID
		case "mflags":
			to = &m.Flags
		case "mask":
			to = &m.Mask
		case "ignored_mask":
			to = &m.Ignored
		case "fhandle-bytes":
			size, ok = parseUint(value, 16, 16)
		case "fhandle-type":
			to = &m.HandleType
		case "f_handle":
			m.Handle, ok = hexBytes(value)
		}
		if to != nil {
			u, ok = parseUint(value, base, 32)
			*to = uint32(u)
		}
		if !ok {
			return false
		}
	}
	if uint64(len(m.Handle)) != size || m.On == OnNothing || f.Fanotify == nil {
		return false
	}
	f.Fanotify.Marks = append(f.Fanotify.Marks, m)
	return true
}

// setLock reads "1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF"
// (lock_get_status in fs/locks.c).
func (f *Fdinfo) setLock(b []byte) bool {
	var l Lock
	_, b = nextField(b) // a running number
	kind, b := nextField(b)
	mode, b := nextField(b)
	typ, b := nextField(b)
	pid, b := nextField(b)
	file, b := nextField(b)
	start, b := nextField(b)
	end, b := nextField(b)
	l.Kind, l.Mode, l.Type = string(kind), string(mode), string(typ)
	var ok1, ok2, ok3 bool
	l.PID, ok1 = parseIntFull(pid)
	if i := bytes.LastIndexByte(file, ':'); i >= 0 && !bytes.HasPrefix(file, []byte("<none>")) {
		l.Major, l.Minor, ok2 = parseDevice(file[:i], 16)
		l.Ino, ok3 = parseUint(file[i+1:], 10, 64)
		if !ok2 || !ok3 {
			return false
		}
	}
	l.Start, ok2 = parseInt(start, 64)
	if string(end) == "EOF" {
		l.ToEOF, ok3 = true, true
	} else {
		l.End, ok3 = parseInt(end, 64)
	}
	if !ok1 || !ok2 || !ok3 || len(bytes.TrimSpace(b)) != 0 {
		return false
	}
	f.Locks = append(f.Locks, l)
	return true
}

// parseTimespec reads "(seconds, nanoseconds)" into nanoseconds.
func parseTimespec(b []byte) (uint64, bool) {
	if len(b) < 2 || b[0] != '(' || b[len(b)-1] != ')' {
		return 0, false
	}
	s, n, found := bytes.Cut(b[1:len(b)-1], []byte(", "))
	sec, ok1 := parseUint(s, 10, 34)
	nsec, ok2 := parseUint(n, 10, 30)
	if !found || !ok1 || !ok2 {
		return 0, false
	}
	const perSecond = 1_000_000_000
	if sec > (^uint64(0)-nsec)/perSecond {
		return 0, false
	}
	return sec*perSecond + nsec, true
}
