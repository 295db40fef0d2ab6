package procfs

import (
	"bytes"
	"errors"
	"fmt"
)

// Status is /proc/PID/status (proc_pid_status(5)). Amounts of memory are in
// kilobytes as printed. Lines that an older kernel does not have leave their
// zero value, where that could mislead the pointer is nil.
type Status struct {
	Name      string
	Umask     int  // -1: not shown (no fs_struct: a zombie)
	State     byte // R S D T t Z X I P
	Tgid      int
	Ngid      int
	PID       int
	PPID      int
	TracerPID int
	UID       [4]uint32 // real, effective, saved, file system
	GID       [4]uint32
	FDSize    int
	Groups    []uint32
	NStgid    []int // from the reader's pid namespace to the task's own
	NSpid     []int
	NSpgid    []int
	NSsid     []int
	Kthread   bool
	Memory    []StatusLine // Vm*, Rss*, HugetlbPages as printed, kB

	CoreDumping bool
	THPEnabled  *bool // since Linux 5.0; absent without an address space
	UntagMask   uint64

	Threads    int
	SigQ       uint64 // queued signals of the real user
	SigQLimit  uint64
	SigPnd     uint64 // bit n-1 is signal n
	ShdPnd     uint64
	SigBlk     uint64
	SigIgn     uint64
	SigCgt     uint64
	CapInh     uint64
	CapPrm     uint64
	CapEff     uint64
	CapBnd     uint64
	CapAmb     uint64
	NoNewPrivs bool
	Seccomp    int // 0 none, 1 strict, 2 filter
	// SeccompFilters is the number of filters attached (Linux 5.9).
	SeccompFilters int
	StoreBypass    string // Speculation_Store_Bypass
	IndirectBranch string // SpeculationIndirectBranch
	CpusAllowed    string // as printed: hexadecimal words, the highest first
	CpusAllowedL   string
	MemsAllowed    string
	MemsAllowedL   string
	VoluntarySw    uint64
	NonvoluntarySw uint64
	X86Features    string // x86_Thread_features
	X86Locked      string // x86_Thread_features_locked

	Other []StatusLine // lines that this package does not know
}

// StatusLine is one "Key: value" line.
type StatusLine struct {
	Key, Value string
}

var errValue = errors.New("unexpected value")

// ParseStatus parses the whole file.
func ParseStatus(b []byte) (*Status, error) {
	s := &Status{Umask: -1}
	seen := 0
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		if len(line) == 0 {
			continue
		}
		key, value, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			return nil, badFormat("no colon", line)
		}
		if string(key) == "Name" { // blanks at its ends belong to it
			s.Name = unescapeName(bytes.TrimPrefix(value, []byte{'\t'}))
			seen++
			continue
		}
		// One tab follows the colon, numbers are padded by blanks, and Groups
		// has a trailing blank.
		value = bytes.Trim(value, " \t")
		if err := s.set(key, value); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrFormat, key, err)
		}
		seen++
	}
	if seen == 0 || s.PID == 0 {
		return nil, badFormat("no Pid line", b)
	}
	return s, nil
}

func (s *Status) set(key, value []byte) error {
	switch string(key) {
	case "Umask":
		v, ok := parseUint(value, 8, 16)
		s.Umask = int(v)
		return must(ok)
	case "State":
		if len(value) == 0 {
			return errValue
		}
		s.State = value[0]
		return nil
	case "Tgid":
		return setInt(&s.Tgid, value)
	case "Ngid":
		return setInt(&s.Ngid, value)
	case "Pid":
		return setInt(&s.PID, value)
	case "PPid":
		return setInt(&s.PPID, value)
	case "TracerPid":
		return setInt(&s.TracerPID, value)
	case "Uid":
		return setIDs(&s.UID, value)
	case "Gid":
		return setIDs(&s.GID, value)
	case "FDSize":
		return setInt(&s.FDSize, value)
	case "Groups":
		return s.setGroups(value)
	case "NStgid":
		return setInts(&s.NStgid, value)
	case "NSpid":
		return setInts(&s.NSpid, value)
	case "NSpgid":
		return setInts(&s.NSpgid, value)
	case "NSsid":
		return setInts(&s.NSsid, value)
	case "Kthread":
		return setBool(&s.Kthread, value)
	case "CoreDumping":
		return setBool(&s.CoreDumping, value)
	case "THP_enabled":
		s.THPEnabled = new(bool)
		return setBool(s.THPEnabled, value)
	case "untag_mask":
		hex, ok := bytes.CutPrefix(value, []byte("0x"))
		if !ok {
			return errValue
		}
		return setHex(&s.UntagMask, hex)
	case "Threads":
		return setInt(&s.Threads, value)
	case "SigQ":
		a, z, _ := bytes.Cut(value, []byte{'/'})
		if err := setUint(&s.SigQ, a); err != nil {
			return err
		}
		return setUint(&s.SigQLimit, z)
	case "NoNewPrivs":
		return setBool(&s.NoNewPrivs, value)
	case "Seccomp":
		return setInt(&s.Seccomp, value)
	case "Seccomp_filters":
		return setInt(&s.SeccompFilters, value)
	case "voluntary_ctxt_switches":
		return setUint(&s.VoluntarySw, value)
	case "nonvoluntary_ctxt_switches":
		return setUint(&s.NonvoluntarySw, value)
	}
	if mask := s.mask(string(key)); mask != nil {
		return setHex(mask, value)
	}
	if text := s.text(string(key)); text != nil {
		*text = string(value)
		return nil
	}
	line := StatusLine{string(key), string(value)}
	if bytes.HasPrefix(key, []byte("Vm")) || bytes.HasPrefix(key, []byte("Rss")) || string(key) == "HugetlbPages" {
		s.Memory = append(s.Memory, line)
	} else {
		s.Other = append(s.Other, line)
	}
	return nil
}

func (s *Status) mask(key string) *uint64 {
	switch key {
	case "SigPnd":
		return &s.SigPnd
	case "ShdPnd":
		return &s.ShdPnd
	case "SigBlk":
		return &s.SigBlk
	case "SigIgn":
		return &s.SigIgn
	case "SigCgt":
		return &s.SigCgt
	case "CapInh":
		return &s.CapInh
	case "CapPrm":
		return &s.CapPrm
	case "CapEff":
		return &s.CapEff
	case "CapBnd":
		return &s.CapBnd
	case "CapAmb":
		return &s.CapAmb
	}
	return nil
}

func (s *Status) text(key string) *string {
	switch key {
	case "Speculation_Store_Bypass":
		return &s.StoreBypass
	case "SpeculationIndirectBranch":
		return &s.IndirectBranch
	case "Cpus_allowed":
		return &s.CpusAllowed
	case "Cpus_allowed_list":
		return &s.CpusAllowedL
	case "Mems_allowed":
		return &s.MemsAllowed
	case "Mems_allowed_list":
		return &s.MemsAllowedL
	case "x86_Thread_features":
		return &s.X86Features
	case "x86_Thread_features_locked":
		return &s.X86Locked
	}
	return nil
}

func (s *Status) setGroups(value []byte) error {
	for {
		var w []byte
		if w, value = nextField(value); len(w) == 0 {
			return nil
		}
		v, ok := parseUint(w, 10, 32)
		if !ok {
			return errValue
		}
		s.Groups = append(s.Groups, uint32(v))
	}
}

func must(ok bool) error {
	if !ok {
		return errValue
	}
	return nil
}

func setInt(to *int, b []byte) error {
	v, ok := parseInt(b, 32)
	*to = int(v)
	return must(ok)
}

func setUint(to *uint64, b []byte) error {
	v, ok := parseUint(b, 10, 64)
	*to = v
	return must(ok)
}

func setHex(to *uint64, b []byte) error {
	v, ok := parseUint(b, 16, 64)
	*to = v
	return must(ok)
}

func setBool(to *bool, b []byte) error {
	switch string(b) {
	case "0":
		*to = false
	case "1":
		*to = true
	default:
		return errValue
	}
	return nil
}

func setInts(to *[]int, b []byte) error {
	for {
		var w []byte
		if w, b = nextField(b); len(w) == 0 {
			return nil
		}
		v, ok := parseInt(w, 32)
		if !ok {
			return errValue
		}
		*to = append(*to, int(v))
	}
}

func setIDs(to *[4]uint32, b []byte) error {
	for i := range to {
		var w []byte
		w, b = nextField(b)
		v, ok := parseUint(w, 10, 32)
		if !ok {
			return errValue
		}
		to[i] = uint32(v)
	}
	return nil
}

// unescapeName undoes string_escape_mem with ESCAPE_SPACE|ESCAPE_SPECIAL
// limited to newline and backslash (proc_task_name in fs/proc/array.c).
func unescapeName(b []byte) string {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+1 < len(b) {
			switch b[i+1] {
			case 'n':
				out = append(out, '\n')
				i++
				continue
			case '\\':
				out = append(out, '\\')
				i++
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}
