package procfs

import "bytes"

// Mount is one line of /proc/PID/mountinfo (proc_pid_mountinfo(5)), the
// octal escapes undone.
type Mount struct {
	ID, Parent int
	Major      uint32 // st_dev of files on it
	Minor      uint32
	Root       string // the directory of the file system that is the mount's root
	Point      string // relative to the reading process's root
	Options    string // of the mount, comma-separated
	Optional   []string
	FSType     string
	Source     string
	Super      string // options of the file system, comma-separated
}

// HasSuper reports whether the file system has the option, as v1 cgroup
// hierarchies name their controllers.
func (m *Mount) HasSuper(option string) bool {
	c := Cgroup{Controllers: m.Super}
	return c.Has(option)
}

// ParseMountinfo parses the whole file, in its order: a later line may lie on
// top of an earlier one. It does the work itself and not by
// moby/sys/mountinfo, which reads a malformed number as 0 and limits a line.
func ParseMountinfo(b []byte) ([]Mount, error) {
	var out []Mount
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		m, ok := parseMount(line)
		if !ok {
			return nil, badFormat("a line of mountinfo", line)
		}
		out = append(out, m)
	}
	return out, nil
}

func parseMount(line []byte) (m Mount, ok bool) {
	p := spaceParser{rest: line}
	id, parent, dev := p.next(), p.next(), p.next()
	m.Root, m.Point, m.Options = unescapeOctal(p.next()), unescapeOctal(p.next()), string(p.next())
	for {
		if p.done {
			return m, false
		}
		f := p.next()
		if string(f) == "-" {
			break
		}
		m.Optional = append(m.Optional, string(f))
	}
	m.FSType, m.Source = unescapeOctal(p.next()), unescapeOctal(p.next())
	if p.done {
		return m, false
	}
	m.Super = string(p.rest)
	var ok1, ok2, ok3 bool
	m.ID, ok1 = parseIntFull(id)
	m.Parent, ok2 = parseIntFull(parent)
	m.Major, m.Minor, ok3 = parseDevice(dev, 10)
	return m, ok1 && ok2 && ok3
}

// spaceParser splits at single blanks: a field may be empty (the source of a
// mount may be).
type spaceParser struct {
	rest []byte
	done bool
}

func (p *spaceParser) next() []byte {
	i := bytes.IndexByte(p.rest, ' ')
	if i < 0 {
		w := p.rest
		p.rest, p.done = nil, true
		return w
	}
	w := p.rest[:i]
	p.rest = p.rest[i+1:]
	return w
}
