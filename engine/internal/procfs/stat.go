package procfs

import "bytes"

// Stat is /proc/PID/stat, all 52 fields of proc_pid_stat(5) in its order.
// Without PTRACE_MODE_READ on the task the kernel shows zeros for addresses,
// the wait channel and the exit code.
type Stat struct {
	PID         int
	Comm        string // raw: may hold blanks and parentheses
	State       byte   // R S D Z T t X I P ...
	PPID        int
	Pgrp        int
	Session     int
	TTYNr       int32 // st_rdev of the controlling terminal, 0: none
	Tpgid       int   // foreground group of it, -1: none
	Flags       uint32
	Minflt      uint64
	Cminflt     uint64
	Majflt      uint64
	Cmajflt     uint64
	Utime       uint64 // clock ticks, as all times here
	Stime       uint64
	Cutime      int64
	Cstime      int64
	Priority    int64
	Nice        int64
	NumThreads  int64
	Itrealvalue int64
	Starttime   uint64 // clock ticks since boot, boot-time clock
	Vsize       uint64 // bytes
	RSS         int64  // pages
	RSSLim      uint64 // bytes
	StartCode   uint64
	EndCode     uint64
	StartStack  uint64
	KstkESP     uint64
	KstkEIP     uint64
	Signal      uint64 // the old masks of the first 31 signals: use Status
	Blocked     uint64
	SigIgnore   uint64
	SigCatch    uint64
	Wchan       uint64
	Nswap       uint64
	Cnswap      uint64
	ExitSignal  int32
	Processor   int32
	RTPriority  uint32
	Policy      uint32
	Blkio       uint64
	GuestTime   uint64
	CguestTime  int64
	StartData   uint64
	EndData     uint64
	StartBrk    uint64
	ArgStart    uint64
	ArgEnd      uint64
	EnvStart    uint64
	EnvEnd      uint64
	ExitCode    int32 // as wait(2) gives it
}

// ParseStat parses the one line. The name is what stands between the first
// opening and the last closing parenthesis: it may contain either.
func ParseStat(b []byte) (Stat, error) {
	var s Stat
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 2 || end < open || b[open-1] != ' ' {
		return s, badFormat("no name in parentheses", b)
	}
	pid, ok := parseIntFull(b[:open-1])
	if !ok {
		return s, badFormat("pid", b)
	}
	s.PID, s.Comm = pid, string(b[open+1:end])
	rest, _ := cutLine(b[end+1:])
	p := fieldParser{rest: rest}
	if state := p.word(); len(state) == 1 {
		s.State = state[0]
	} else {
		return s, badFormat("state", rest)
	}
	s.PPID, s.Pgrp, s.Session = int(p.int(32)), int(p.int(32)), int(p.int(32))
	s.TTYNr, s.Tpgid, s.Flags = int32(p.int(32)), int(p.int(32)), uint32(p.uint(32))
	s.Minflt, s.Cminflt, s.Majflt, s.Cmajflt = p.uint(64), p.uint(64), p.uint(64), p.uint(64)
	s.Utime, s.Stime, s.Cutime, s.Cstime = p.uint(64), p.uint(64), p.int(64), p.int(64)
	s.Priority, s.Nice, s.NumThreads, s.Itrealvalue = p.int(64), p.int(64), p.int(64), p.int(64)
	s.Starttime, s.Vsize, s.RSS, s.RSSLim = p.uint(64), p.uint(64), p.int(64), p.uint(64)
	s.StartCode, s.EndCode, s.StartStack, s.KstkESP, s.KstkEIP = p.uint(64), p.uint(64), p.uint(64), p.uint(64), p.uint(64)
	s.Signal, s.Blocked, s.SigIgnore, s.SigCatch = p.uint(64), p.uint(64), p.uint(64), p.uint(64)
	s.Wchan, s.Nswap, s.Cnswap = p.uint(64), p.uint(64), p.uint(64)
	s.ExitSignal, s.Processor = int32(p.int(32)), int32(p.int(32))
	s.RTPriority, s.Policy, s.Blkio = uint32(p.uint(32)), uint32(p.uint(32)), p.uint(64)
	s.GuestTime, s.CguestTime = p.uint(64), p.int(64)
	s.StartData, s.EndData, s.StartBrk = p.uint(64), p.uint(64), p.uint(64)
	s.ArgStart, s.ArgEnd, s.EnvStart, s.EnvEnd = p.uint(64), p.uint(64), p.uint(64), p.uint(64)
	s.ExitCode = int32(p.int(32))
	if p.bad {
		return s, badFormat("a field that is no number, or too few of them", rest)
	}
	return s, nil
}

// fieldParser takes one blank-separated word after the other and remembers
// whether any was not what it had to be.
type fieldParser struct {
	rest []byte
	bad  bool
}

func (p *fieldParser) word() []byte {
	var w []byte
	w, p.rest = nextField(p.rest)
	return w
}

func (p *fieldParser) int(bits uint) int64 {
	v, ok := parseInt(p.word(), bits)
	p.bad = p.bad || !ok
	return v
}

func (p *fieldParser) uint(bits uint) uint64 {
	v, ok := parseUint(p.word(), 10, bits)
	p.bad = p.bad || !ok
	return v
}
