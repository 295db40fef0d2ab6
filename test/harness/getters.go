package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What only a system call tells: of an open file fcntl(2) F_GET*, asked by the harness through a duplicate of the descriptor, and of a task
// prctl(2) PR_GET_*, which the task itself has to ask. Fixtures do (testdata/prog/getters.h); a real program is made to.

// fcntlGetters are all commands of fcntl(2) that tell something, and how the comparison asks for it.
var fcntlGetters = map[string]func(fd int) string{
	"F_GETFD":     nil, // with the flags in fdinfo: a duplicate has its own
	"F_GETFL":     status,
	"F_GETOWN":    number(unix.F_GETOWN),
	"F_GETSIG":    number(unix.F_GETSIG),
	"F_GETLEASE":  number(unix.F_GETLEASE),
	"F_GETDELEG":  nil, // answers as F_GETLEASE does about the one sort of lease, in a structure
	"F_GETOWN_EX": structure(unix.F_GETOWN_EX, 8), "F_GETOWNER_UIDS": structure(getOwnerUIDs, 8),
	"F_GETPIPE_SZ":       number(unix.F_GETPIPE_SZ),
	"F_GET_SEALS":        number(unix.F_GET_SEALS),
	"F_GET_RW_HINT":      structure(unix.F_GET_RW_HINT, 8),
	"F_GET_FILE_RW_HINT": structure(unix.F_GET_FILE_RW_HINT, 8),
	"F_GETLK":            lock(unix.F_GETLK),
	"F_GETLK64":          nil, // F_GETLK of 64-bit programs
	"F_OFD_GETLK":        lock(unix.F_OFD_GETLK),
	"F_DUPFD_QUERY":      nil, // sameFile
	"F_CREATED_QUERY":    nil, // ignoredFcntl
}

const getOwnerUIDs = 17 // F_GETOWNER_UIDS, asm-generic/fcntl.h

func number(cmd int) func(fd int) string {
	return func(fd int) string {
		n, err := unix.FcntlInt(uintptr(fd), cmd, 0)
		if err != nil {
			return err.Error()
		}
		return strconv.Itoa(n)
	}
}

func status(fd int) string {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err.Error()
	}
	return strconv.FormatInt(int64(n&^unix.O_NOFOLLOW), 8) // as of fdinfo
}

func structure(cmd, size int) func(fd int) string {
	return func(fd int) string {
		out := make([]byte, size)
		if err := fcntlOut(fd, cmd, out); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%x", out)
	}
}

// lock tells where somebody who has no locks could take none on all of the file, "r" or "w" and ranges of bytes. The one call names the
// first of several locks in the way, which depends on the order in which they were taken; whose they are is in fdinfo.
func lock(cmd int) func(fd int) string {
	return func(fd int) string {
		var taken []string
		var look func(start, length int64) error
		look = func(start, length int64) error {
			l := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: length}
			if err := unix.FcntlFlock(uintptr(fd), cmd, &l); err != nil || l.Type == unix.F_UNLCK {
				return err
			}
			from, to := max(l.Start, start), l.Start+l.Len
			if l.Len == 0 || length > 0 && to > start+length {
				to = start + length
			}
			if from > start {
				if err := look(start, from-start); err != nil {
					return err
				}
			}
			end := fmt.Sprint(to)
			if l.Len == 0 && length == 0 {
				end = "end"
			}
			if how := string("rw"[l.Type]); len(taken) >= 3 && taken[len(taken)-3] == how && taken[len(taken)-1] == fmt.Sprint(from) {
				taken[len(taken)-1] = end // goes on where the last one ends
			} else {
				taken = append(taken, how, fmt.Sprint(from), end)
			}
			switch {
			case l.Len == 0, length > 0 && to == start+length:
				return nil
			case length == 0:
				return look(to, 0)
			}
			return look(to, start+length-to)
		}
		if err := look(0, 0); err != nil {
			return err.Error()
		}
		return strings.Join(taken, " ")
	}
}

// FcntlGetters are their names.
func FcntlGetters() map[string]bool {
	all := map[string]bool{}
	for name := range fcntlGetters {
		all[name] = true
	}
	return all
}

// openFiles are duplicates of all descriptors that a snapshot has met, so that who shares an open file can be asked.
type openFiles struct {
	byInode map[string][]openFile
	count   int
}

type openFile struct {
	fd   int
	name string
}

func (o *openFiles) close() {
	for _, some := range o.byInode {
		for _, f := range some {
			_ = unix.Close(f.fd)
		}
	}
}

// ask puts what fcntl says of a process's descriptor into the snapshot.
func (o *openFiles) ask(pid, fd int, put func(name, value string)) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(pidfd) }()
	dup, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return
	}
	for name, get := range fcntlGetters {
		if get != nil && ignoredFcntl[name] == "" {
			put(name, get(dup))
		}
	}
	askSocket(dup, put)
	put("open file", o.sameFile(dup))
}

// sameFile gives an open file a name by the order in which it was met, and keeps the duplicate.
func (o *openFiles) sameFile(dup int) string {
	var st unix.Stat_t
	if err := unix.Fstat(dup, &st); err != nil {
		_ = unix.Close(dup)
		return err.Error()
	}
	key := fmt.Sprintf("%x:%d", st.Dev, st.Ino)
	for _, f := range o.byInode[key] {
		if same, err := unix.FcntlInt(uintptr(dup), unix.F_DUPFD_QUERY, f.fd); err == nil && same == 1 {
			_ = unix.Close(dup)
			return f.name
		} else if err != nil {
			_ = unix.Close(dup)
			return "not asked: " + err.Error() // before Linux 6.10, or O_PATH
		}
	}
	o.count++
	name := fmt.Sprintf("#%d", o.count)
	o.byInode[key] = append(o.byInode[key], openFile{dup, name})
	return name
}

// getter is one line of getters.h.
type getter struct {
	name string
	arch bool // arch_prctl(2)
	args []uint64
	out  int // which argument is the buffer; -1: none
}

var getterLine = regexp.MustCompile(`(?m)^\tX\((\w+), ([^)]*)\)`)

// PrctlGetters are the names in getters.h.
func PrctlGetters() (map[string]bool, error) {
	all := map[string]bool{}
	text, err := os.ReadFile(filepath.Join(Root(), "test", "testdata", "prog", "getters.h"))
	for _, m := range getterLine.FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = true
	}
	return all, err
}

// prctlGetters reads getters.h, but for those that ask for one capability each: /proc/PID/status shows these.
func prctlGetters() ([]getter, error) {
	text, err := os.ReadFile(filepath.Join(Root(), "test", "testdata", "prog", "getters.h"))
	if err != nil {
		return nil, err
	}
	var all []getter
	for _, m := range getterLine.FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(m[2], "CAP") {
			continue
		}
		g := getter{name: m[1] + "(" + m[2] + ")", arch: strings.HasPrefix(m[1], "ARCH_"), out: -1}
		for i, a := range strings.Split(m[2], ", ") {
			if a == "OUT" {
				g.out = i
				g.args = append(g.args, 0)
				continue
			}
			n, err := strconv.ParseUint(a, 0, 64)
			if err != nil {
				return nil, fmt.Errorf("getters.h: %s: %w", m[0], err)
			}
			g.args = append(g.args, n)
		}
		all = append(all, g)
	}
	return all, nil
}
