package files

import (
	"bytes"
	"encoding/binary"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Other names (hard links) of a file whose own name is gone. The kernel does not tell them, so they are looked for: in the
// directory where it was, below that, then in the one above and below that, up to the mount point. Reading a directory shows inode
// numbers; only what has the file's is looked at.

// searchEntries bounds a search: some tenths of a second, for which the tree stands still.
var searchEntries = 200_000

// found are the results of searches in this dump: a file may be open many times.
var found struct {
	sync.Mutex
	of    *object.Process // of the last search: a root process is of one dump only
	names map[removedKey]string
}

// otherName returns another path of the file, "" when none was found.
func otherName(f *object.OpenFile, dir string) string {
	root := f.Process
	for root.Parent != nil {
		root = root.Parent
	}
	found.Lock()
	defer found.Unlock()
	if found.of != root {
		found.of, found.names = root, map[removedKey]string{}
	}
	key := removedKey{uint64(f.Stat.Dev), f.Stat.Ino}
	name, known := found.names[key]
	if !known {
		s := linkSearch{f: f, left: searchEntries}
		name = s.around(dir)
		found.names[key] = name
	}
	return name
}

type linkSearch struct {
	f    *object.OpenFile
	left int
}

// around searches dir and below it, then the directories above and below them.
func (s *linkSearch) around(dir string) string {
	for done := ""; ; dir = path.Dir(dir) {
		if p := s.below(dir, done); p != "" || dir == "/" || s.left <= 0 {
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
		if e.kind != unix.DT_DIR || s.left <= 0 {
			continue
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
	for len(all) < s.left {
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
