package procfs

import (
	"bytes"
	"strings"

	"crpipe/arch"
)

// Prot is what a mapping allows and how it is shared.
type Prot uint8

// The letters of the second column of maps.
const (
	ProtRead   Prot = 1 << iota // r
	ProtWrite                   // w
	ProtExec                    // x
	ProtShared                  // s (p without)
)

func (p Prot) String() string {
	b := []byte("---p")
	if p&ProtRead != 0 {
		b[0] = 'r'
	}
	if p&ProtWrite != 0 {
		b[1] = 'w'
	}
	if p&ProtExec != 0 {
		b[2] = 'x'
	}
	if p&ProtShared != 0 {
		b[3] = 's'
	}
	return string(b)
}

// VMA is one line of /proc/PID/maps (proc_pid_maps(5)).
type VMA struct {
	Start, End arch.Addr // End is exclusive
	Prot       Prot
	Offset     uint64 // in the file, bytes
	Major      uint32 // of the file's device as maps prints it, 0:0 without a file
	Minor      uint32
	Inode      uint64
	// Path is the last column as printed: a path (with " (deleted)" behind it
	// when unlinked; a newline shows as \012, a backslash is not escaped),
	// "[heap]", "[stack]", "[vdso]", "[anon:NAME]" and so on, or nothing. It
	// cannot tell a file called "x (deleted)" from a deleted x: the truth
	// about the file is behind /proc/PID/map_files.
	Path string
}

// Size returns the length of the mapping in bytes.
func (v *VMA) Size() uint64 { return uint64(v.End - v.Start) }

// ParseMaps parses the whole file and appends to into, which may be nil.
// Lines that name the same file one after the other share one string.
func ParseMaps(b []byte, into []VMA) ([]VMA, error) {
	if into == nil {
		into = make([]VMA, 0, bytes.Count(b, []byte{'\n'}))
	}
	var last string
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		into = append(into, VMA{})
		v := &into[len(into)-1]
		if !parseMapsLine(line, v, last) {
			return nil, badFormat("a line of maps", line)
		}
		if v.Path != "" {
			last = v.Path
		}
	}
	return into, nil
}

// parseMapsLine reads "start-end perms offset dev inode   path"; last is a
// path to reuse when it is the same again.
func parseMapsLine(line []byte, v *VMA, last string) bool {
	dash := bytes.IndexByte(line, '-')
	if dash < 0 {
		return false
	}
	start, ok1 := parseUint(line[:dash], 16, 64)
	word, rest := nextField(line[dash+1:])
	end, ok2 := parseUint(word, 16, 64)
	if !ok1 || !ok2 || end < start {
		return false
	}
	v.Start, v.End = arch.Addr(start), arch.Addr(end)
	word, rest = nextField(rest)
	if v.Prot, ok1 = parseProt(word); !ok1 {
		return false
	}
	word, rest = nextField(rest)
	if v.Offset, ok1 = parseUint(word, 16, 64); !ok1 {
		return false
	}
	word, rest = nextField(rest)
	if v.Major, v.Minor, ok1 = parseDevice(word, 16); !ok1 {
		return false
	}
	word, rest = nextField(rest)
	if v.Inode, ok1 = parseUint(word, 10, 64); !ok1 {
		return false
	}
	// The path starts in a fixed column (seq_pad) or one blank later; a path
	// is absolute or in brackets, so blanks before it are padding.
	for len(rest) > 0 && rest[0] == ' ' {
		rest = rest[1:]
	}
	if string(rest) == last {
		v.Path = last
	} else {
		v.Path = string(rest)
	}
	return true
}

func parseProt(b []byte) (Prot, bool) {
	if len(b) != 4 {
		return 0, false
	}
	var p Prot
	for i, letter := range [...]byte{'r', 'w', 'x'} {
		switch b[i] {
		case letter:
			p |= 1 << i
		case '-':
		default:
			return 0, false
		}
	}
	switch b[3] {
	case 's':
		p |= ProtShared
	case 'p':
	default:
		return 0, false
	}
	return p, true
}

// VMFlags is the VmFlags line of smaps: two-letter codes, each followed by a
// blank (show_smap_vma_flags in fs/proc/task_mmu.c): "rd wr mr mw me ac sd ".
type VMFlags string

// Has reports whether the two-letter code is set.
func (f VMFlags) Has(code string) bool {
	for rest := string(f); len(rest) >= 2; {
		word, after, _ := strings.Cut(rest, " ")
		if word == code {
			return true
		}
		rest = after
	}
	return false
}

// Codes returns the codes one by one.
func (f VMFlags) Codes() []string { return strings.Fields(string(f)) }

// SmapsVMA is one mapping of /proc/PID/smaps. Amounts are kilobytes.
type SmapsVMA struct {
	VMA
	Flags          VMFlags
	KernelPageSize uint64
	Rss            uint64
	Anonymous      uint64
	Swap           uint64
	Locked         uint64
	AnonHuge       uint64 // AnonHugePages
	KSM            uint64
	ProtectionKey  uint32
}

// ParseSmaps parses the whole file. Unknown counters are ignored: they are
// statistics, whose loss loses no state; the state is in Flags.
func ParseSmaps(b []byte) ([]SmapsVMA, error) {
	var out []SmapsVMA
	var lastPath string
	var lastFlags VMFlags
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || bytes.IndexByte(key, ' ') >= 0 { // "start-end perms offset major:minor ..."
			out = append(out, SmapsVMA{})
			v := &out[len(out)-1]
			if !parseMapsLine(line, &v.VMA, lastPath) {
				return nil, badFormat("a line of smaps", line)
			}
			if v.Path != "" {
				lastPath = v.Path
			}
			continue
		}
		if len(out) == 0 {
			return nil, badFormat("a counter before any mapping", line)
		}
		v := &out[len(out)-1]
		if string(key) == "VmFlags" {
			flags := bytes.TrimLeft(value, " \t")
			if string(flags) != string(lastFlags) {
				lastFlags = VMFlags(flags)
			}
			v.Flags = lastFlags
			continue
		}
		to := v.counter(string(key))
		if to == nil && string(key) != "ProtectionKey" {
			continue
		}
		word, _ := nextField(value)
		n, ok := parseUint(word, 10, 64)
		if !ok {
			return nil, badFormat("a counter of smaps", line)
		}
		if to != nil {
			*to = n
		} else {
			v.ProtectionKey = uint32(n)
		}
	}
	return out, nil
}

func (v *SmapsVMA) counter(key string) *uint64 {
	switch key {
	case "KernelPageSize":
		return &v.KernelPageSize
	case "Rss":
		return &v.Rss
	case "Anonymous":
		return &v.Anonymous
	case "Swap":
		return &v.Swap
	case "Locked":
		return &v.Locked
	case "AnonHugePages":
		return &v.AnonHuge
	case "KSM":
		return &v.KSM
	}
	return nil
}
