package procfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// AuxEntry is one pair of the auxiliary vector (getauxval(3)).
type AuxEntry struct {
	Type, Value uint64
}

// AuxNull ends the vector, AT_NULL.
const AuxNull = 0

// ParseAuxv parses /proc/PID/auxv of a task whose words are wordSize (4 or 8)
// bytes long, up to and without AT_NULL.
func ParseAuxv(b []byte, order binary.ByteOrder, wordSize int) ([]AuxEntry, error) {
	if wordSize != 4 && wordSize != 8 {
		return nil, fmt.Errorf("%w: words of %d bytes", ErrFormat, wordSize)
	}
	word := func(i int) uint64 {
		if wordSize == 4 {
			return uint64(order.Uint32(b[4*i:]))
		}
		return order.Uint64(b[8*i:])
	}
	if len(b)%(2*wordSize) != 0 {
		return nil, fmt.Errorf("%w: auxiliary vector of %d bytes", ErrFormat, len(b))
	}
	var out []AuxEntry
	for i := 0; i < len(b)/wordSize; i += 2 {
		e := AuxEntry{word(i), word(i + 1)}
		if e.Type == AuxNull {
			return out, nil
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, nil // a kernel thread or a zombie
	}
	return nil, fmt.Errorf("%w: auxiliary vector without an end", ErrFormat)
}

// Timer is one POSIX timer of /proc/PID/timers (proc_pid_timers(5)). The file
// does not say when it fires.
type Timer struct {
	ID      int
	Signal  int
	Value   uint64 // sigev_value as an address
	Notify  string // "signal", "none" or "thread"
	ToTID   bool   // SIGEV_THREAD_ID: Target is a thread
	Target  int    // in the reader's pid namespace
	ClockID int    // negative: a CPU clock of a process or thread
}

// ParseTimers parses the whole file.
func ParseTimers(b []byte) ([]Timer, error) {
	var out []Timer
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, value, _ := bytes.Cut(line, []byte{':'})
		value = bytes.TrimLeft(value, " \t")
		if string(key) == "ID" {
			out = append(out, Timer{})
		} else if len(out) == 0 {
			return nil, badFormat("a line before any timer", line)
		}
		t := &out[len(out)-1]
		var ok bool
		switch string(key) {
		case "ID":
			t.ID, ok = parseIntFull(value)
		case "signal":
			sig, ptr, _ := bytes.Cut(value, []byte{'/'})
			// %px prints no 0x; a null pointer may print as (null) on old kernels.
			t.Signal, ok = parseIntFull(sig)
			if ok && string(ptr) != "(null)" {
				t.Value, ok = parseUint(bytes.TrimPrefix(ptr, []byte("0x")), 16, 64)
			}
		case "notify":
			how, who, _ := bytes.Cut(value, []byte{'/'})
			kind, target, _ := bytes.Cut(who, []byte{'.'})
			t.Notify, t.ToTID = string(how), string(kind) == "tid"
			t.Target, ok = parseIntFull(target)
			ok = ok && (t.ToTID || string(kind) == "pid")
		case "ClockID":
			t.ClockID, ok = parseIntFull(value)
		default:
			ok = true // a later kernel says more
		}
		if !ok {
			return nil, badFormat("a timer", line)
		}
	}
	return out, nil
}

// Cgroup is one line of /proc/PID/cgroup (cgroups(7)).
type Cgroup struct {
	Hierarchy   int // 0: version 2
	Controllers string
	// Path is the cgroup relative to the root of the reader's cgroup
	// namespace, "/.." where it lies outside. " (deleted)" follows the path of
	// a removed one, which only a zombie can be in.
	Path string
}

// Has reports whether the line's hierarchy has the controller (or "name=X").
func (c *Cgroup) Has(controller string) bool {
	for rest := c.Controllers; rest != ""; {
		one, after, _ := strings.Cut(rest, ",")
		if one == controller {
			return true
		}
		rest = after
	}
	return false
}

// ParseCgroups parses the whole file.
func ParseCgroups(b []byte) ([]Cgroup, error) {
	var out []Cgroup
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		id, rest, ok1 := bytes.Cut(line, []byte{':'})
		controllers, path, ok2 := bytes.Cut(rest, []byte{':'})
		n, ok3 := parseIntFull(id)
		// A cgroup's name cannot hold a newline (cgroup_mkdir refuses it).
		if !ok1 || !ok2 || !ok3 || len(path) == 0 || path[0] != '/' {
			return nil, badFormat("a line of cgroup", line)
		}
		out = append(out, Cgroup{n, string(controllers), string(path)})
	}
	return out, nil
}

// ParseChildren parses /proc/PID/task/TID/children.
func ParseChildren(b []byte) ([]int, error) {
	var out []int
	rest, _ := cutLine(b)
	for {
		var w []byte
		if w, rest = nextField(rest); len(w) == 0 {
			return out, nil
		}
		pid, ok := parseIntFull(w)
		if !ok || pid < 0 {
			return nil, badFormat("a child", b)
		}
		out = append(out, pid)
	}
}

// ParseCmdline splits /proc/PID/cmdline at its NUL bytes.
func ParseCmdline(b []byte) ([]string, error) {
	if len(b) == 0 {
		return nil, nil
	}
	b = bytes.TrimSuffix(b, []byte{0})
	var out []string
	for _, arg := range bytes.Split(b, []byte{0}) {
		out = append(out, string(arg))
	}
	return out, nil
}
