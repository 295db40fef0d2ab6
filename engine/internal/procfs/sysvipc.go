package procfs

import (
	"bytes"
	"strconv"
)

// IPCPerm is what /proc/sysvipc/{shm,sem,msg} (proc_sysvipc(5)) show of every object. All three show the IPC namespace of the
// thread that opens them, all its objects, whatever their permissions.
type IPCPerm struct {
	Key  int32 // 0: IPC_PRIVATE, or a destroyed segment
	ID   int32
	Mode uint32 // permissions; of shared memory with IPCDest and IPCLocked
	UID  uint32
	GID  uint32
	CUID uint32
	CGID uint32
}

// Bits of the mode of shared memory, linux/shm.h.
const (
	IPCDest   = 0o1000 // SHM_DEST: goes with the last attach
	IPCLocked = 0o2000 // SHM_LOCKED
)

// SysVShm is a segment of shared memory. Pids are in the namespace of the proc file system; times in s since 1970.
type SysVShm struct {
	IPCPerm
	Size                uint64 // bytes
	CPID, LPID          int    // who made it, who attached or detached it last
	NAttch              uint64 // mappings
	ATime, DTime, CTime int64
}

// SysVSem is a set of semaphores.
type SysVSem struct {
	IPCPerm
	Count        int   // semaphores
	OTime, CTime int64 // 0: nobody ever operated on it
}

// SysVMsg is a message queue.
type SysVMsg struct {
	IPCPerm
	Bytes, Count        uint64 // in the queue
	LSPID, LRPID        int
	STime, RTime, CTime int64
}

// ipcLine reads the numbers of a line.
type ipcLine struct {
	fields [][]byte
	bad    bool
}

func (l *ipcLine) next() []byte {
	if len(l.fields) == 0 {
		l.bad = true
		return nil
	}
	f := l.fields[0]
	l.fields = l.fields[1:]
	return f
}

func (l *ipcLine) signed(bits int) int64 {
	n, err := strconv.ParseInt(string(l.next()), 10, bits)
	l.bad = l.bad || err != nil
	return n
}

func (l *ipcLine) unsigned(base, bits int) uint64 {
	n, err := strconv.ParseUint(string(l.next()), base, bits)
	l.bad = l.bad || err != nil
	return n
}

func (l *ipcLine) id() uint32 { return uint32(l.unsigned(10, 32)) }
func (l *ipcLine) pid() int   { return int(l.signed(32)) }

func (l *ipcLine) perm() (p IPCPerm) {
	p.Key, p.ID, p.Mode = int32(l.signed(32)), int32(l.signed(32)), uint32(l.unsigned(8, 32))
	return p
}

func (l *ipcLine) owners(p *IPCPerm) { p.UID, p.GID, p.CUID, p.CGID = l.id(), l.id(), l.id(), l.id() }

// parseIPC calls f for every line behind the headings.
func parseIPC(b []byte, f func(l *ipcLine)) error {
	_, b = cutLine(b)
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		l := &ipcLine{fields: bytes.Fields(line)}
		if f(l); l.bad {
			return badFormat("a System V IPC object", line)
		}
	}
	return nil
}

// ParseSysVShm parses /proc/sysvipc/shm.
func ParseSysVShm(b []byte) (out []SysVShm, err error) {
	err = parseIPC(b, func(l *ipcLine) {
		s := SysVShm{IPCPerm: l.perm(), Size: l.unsigned(10, 64), CPID: l.pid(), LPID: l.pid(), NAttch: l.unsigned(10, 64)}
		l.owners(&s.IPCPerm)
		s.ATime, s.DTime, s.CTime = l.signed(64), l.signed(64), l.signed(64)
		out = append(out, s)
	})
	return out, err
}

// ParseSysVSem parses /proc/sysvipc/sem.
func ParseSysVSem(b []byte) (out []SysVSem, err error) {
	err = parseIPC(b, func(l *ipcLine) {
		s := SysVSem{IPCPerm: l.perm(), Count: int(l.unsigned(10, 31))}
		l.owners(&s.IPCPerm)
		s.OTime, s.CTime = l.signed(64), l.signed(64)
		out = append(out, s)
	})
	return out, err
}

// ParseSysVMsg parses /proc/sysvipc/msg.
func ParseSysVMsg(b []byte) (out []SysVMsg, err error) {
	err = parseIPC(b, func(l *ipcLine) {
		s := SysVMsg{IPCPerm: l.perm(), Bytes: l.unsigned(10, 64), Count: l.unsigned(10, 64), LSPID: l.pid(), LRPID: l.pid()}
		l.owners(&s.IPCPerm)
		s.STime, s.RTime, s.CTime = l.signed(64), l.signed(64), l.signed(64)
		out = append(out, s)
	})
	return out, err
}
