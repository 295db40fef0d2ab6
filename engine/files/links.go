package files

import (
	"bytes"
	"encoding/binary"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Other names (hard links) of a file whose own name is gone. The kernel does not tell them, so they are looked for: in the
// directory where it was, below that, then in the one above and below that, up to the mount point. Reading a directory shows inode
// numbers; only what has the file's is looked at.

// What all searches of one dump may cost, for the tree stands still meanwhile. A name that is not found in that time is one that the
// kernel does not tell: the file is refused.
var (
	searchEntries = 200_000                // names in one search
	searchTime    = 500 * time.Millisecond // of all together
)

// found are the results of searches in a dump: a file may be open many times.
type found struct {
	names map[removedKey]string
	spent time.Duration
}

// otherName returns another path of the file, "" when none was found.
func otherName(f *object.OpenFile, dir string) string {
	all := object.Note[found](f.Process)
	key := removedKey{uint64(f.Stat.Dev), f.Stat.Ino}
	name, known := all.names[key]
	if known {
		return name
	}
	begin := time.Now()
	s := linkSearch{f: f, left: searchEntries, until: begin.Add(searchTime - all.spent)}
	name = s.around(dir)
	all.spent += time.Since(begin)
	if all.names == nil {
		all.names = map[removedKey]string{}
	}
	all.names[key] = name
	return name
}

type linkSearch struct {
	f     *object.OpenFile
	left  int
	until time.Time
}

// over says whether the search has cost enough.
func (s *linkSearch) over() bool { return s.left <= 0 || time.Now().After(s.until) }

// around searches dir and below it, then the directories above and below them.
func (s *linkSearch) around(dir string) string {
	for done := ""; ; dir = path.Dir(dir) {
		if p := s.below(dir, done); p != "" || dir == "/" || s.over() {
			return p
		}
		done = dir
	}
}

// below searches dir, and then the directories in it but the one that was searched already, in the order of names: two searches find
// the same.
func (s *linkSearch) below(dir, done string) string {
	entries := s.read(dir)
	s.left -= len(entries)
	for _, e := range entries {
		if e.ino != s.f.Stat.Ino {
			continue
		}
		p := path.Join(dir, e.name)
		if st, err := lookup(s.f.Process, p); err == nil && same(&st, &s.f.Stat) {
			return p
		}
	}
	for _, e := range entries {
		if e.kind != unix.DT_DIR {
			continue
		}
		if s.over() {
			return ""
		}
		p := path.Join(dir, e.name)
		if p == done {
			continue
		}
		if p := s.below(p, ""); p != "" {
			return p
		}
	}
	return ""
}

type dirEntry struct {
	ino  uint64
	kind uint8 // DT_*
	name string
}

// read lists a directory of the file's file system, nothing for any other.
func (s *linkSearch) read(dir string) []dirEntry {
	at, err := reach(s.f.Process, dir)
	if err != nil {
		return nil
	}
	fd, err := sys.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME, 0)
	if err != nil {
		return nil // gone, or not to be read: it is not searched
	}
	defer fd.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd.Int(), &st); err != nil || st.Dev != s.f.Stat.Dev {
		return nil
	}
	var all []dirEntry
	buf := make([]byte, 64<<10)
	for len(all) < s.left && !s.over() {
		n, err := unix.Getdents(fd.Int(), buf)
		if err != nil || n <= 0 {
			break
		}
		all = appendEntries(all, buf[:n])
	}
	slices.SortFunc(all, func(a, b dirEntry) int { return strings.Compare(a.name, b.name) })
	return all
}

// appendEntries takes apart what getdents64(2) gives.
func appendEntries(all []dirEntry, b []byte) []dirEntry {
	const name = 19 // offset of d_name in struct linux_dirent64, behind d_ino, d_off, d_reclen, d_type
	for len(b) > name {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size <= name || size > len(b) {
			break
		}
		text, _, _ := bytes.Cut(b[name:size], []byte{0})
		if e := (dirEntry{binary.NativeEndian.Uint64(b), b[18], string(text)}); e.name != "." && e.name != ".." {
			all = append(all, e)
		}
		b = b[size:]
	}
	return all
}
