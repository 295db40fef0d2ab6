package files

import (
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// An open file that leads out of the tree: a standard descriptor on a terminal, or on a pipe or socket whose other end
// is outside; everything else that is open on that same terminal or pipe; and whatever the user declared with
// --external. Nothing behind it goes into the image, only its name as /proc shows it ("/dev/pts/3", "pipe:[4711]").
//
// At restore something of the caller's stands in for it: what --inherit gives to that name (or to stdin, stdout,
// stderr, or the number); else, when cr-restore stays to wait, its own standard descriptor; else /dev/null. An external
// file that is no standard one must be given by --inherit.
//
// Lost: what the outside had not read yet or had sent already; of a terminal that controls nothing here its modes (of
// others see engine/terminals/outside.go); the status flags but O_NONBLOCK, since the description that stands in belongs to somebody else too.
type externalState struct {
	Name     string  `msgpack:"name"`
	Flags    uint32  `msgpack:"flags"`              // as F_GETFL
	Mode     uint32  `msgpack:"mode"`               // st_mode
	Terminal bool    `msgpack:"terminal,omitempty"` // isatty(3)
	Standard []int32 `msgpack:"standard,omitempty"` // which of the numbers 0, 1, 2 lead to it, ascending
}

type externalKey struct{ name string }

var standardNames = [3]string{"stdin", "stdout", "stderr"}

func claimsExternal(d *object.Dumper, f *object.OpenFile) bool {
	if declared(d, f) {
		return true
	}
	if f.FD < 0 || isOPath(f) {
		return false
	}
	ix, err := indexOf(d)
	if err != nil {
		return false // and whichever kind claims it next says why
	}
	switch f.Stat.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return len(ix.standardTerminal(f)) > 0 && isTerminal(f) && !OwnTerminal(d, f)
	case unix.S_IFIFO:
		use := ix.pipes[inodeOf(f)]
		if use == nil || use.standard < 0 {
			return false
		}
		return use.look(ix, d.View) == nil && use.outside
	case unix.S_IFSOCK:
		return len(ix.standardNumbers(f)) > 0 && ix.outsideSocket(d, f)
	}
	return false
}

// Declared says whether the user named the file with --external.
func Declared(d *object.Dumper, f *object.OpenFile) bool { return declared(d, f) }

// declared says whether the user named the file with --external, by what /proc shows or as a standard descriptor of
// the root process.
func declared(d *object.Dumper, f *object.OpenFile) bool {
	if slices.Contains(d.External, f.Link) {
		return true
	}
	return f.Process == d.Root && f.FD >= 0 && f.FD < len(standardNames) && slices.Contains(d.External, standardNames[f.FD])
}

// ptmx is the device number of /dev/ptmx and of every master of a pseudo-terminal: a master is not a way out.
var ptmx = unix.Mkdev(5, 2)

// controlling is the device number of /dev/tty: whatever controls the process that opens it.
var controlling = unix.Mkdev(5, 0)

// standardTerminal returns the standard numbers under which the tree has the terminal that f is open on.
func (ix *index) standardTerminal(f *object.OpenFile) []int32 {
	rdev := uint64(f.Stat.Rdev)
	if rdev == controlling {
		rdev = uint64(uint32(f.Process.Stat.TTYNr))
	}
	if rdev == ptmx {
		return nil
	}
	return ix.ttys[rdev]
}

// standardNumbers returns the standard numbers that lead to f itself.
func (ix *index) standardNumbers(f *object.OpenFile) []int32 {
	var numbers []int32
	for _, h := range ix.holders[f.View.ID] {
		if n := int32(h.FD); h.FD <= 2 && !slices.Contains(numbers, n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}

func isTerminal(f *object.OpenFile) bool {
	switch f.View.Kind {
	case kernelview.KindTTY:
		return true
	case kernelview.KindUnknown:
	default:
		return false
	}
	fd, err := f.Descriptor()
	if err != nil {
		return false
	}
	return isatty(fd)
}

func isatty(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// outsideSocket says whether a socket that is a standard descriptor is connected to the outside. Of a unix socket the
// kernel tells who made the other end (SO_PEERCRED, unix(7)); one made in the tree may still be there. Any other
// socket is taken for outside only when the tree has no second one that could be its peer.
func (ix *index) outsideSocket(d *object.Dumper, f *object.OpenFile) bool {
	if d.SocketOutside != nil {
		if outside, known := d.SocketOutside(d, f); known {
			return outside
		}
	}
	if len(ix.sockets) == 1 {
		return true
	}
	fd, err := f.Descriptor()
	if err != nil {
		return false
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_UNIX {
		return false
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return false
	}
	for _, p := range d.Processes {
		if p.PID == int(cred.Pid) {
			return false
		}
	}
	return true
}

func dumpExternal(d *object.Dumper, f *object.OpenFile) (*externalState, error) {
	flags, err := Flags(f)
	if err != nil {
		return nil, err
	}
	ix, err := indexOf(d)
	if err != nil {
		return nil, err
	}
	s := &externalState{Name: f.Link, Flags: flags &^ tmpfileFlag, Mode: f.Stat.Mode, Standard: ix.standardNumbers(f)}
	switch {
	case isType(f, unix.S_IFCHR) && isTerminal(f):
		s.Terminal = true
		if len(s.Standard) == 0 {
			s.Standard = ix.standardTerminal(f)
		}
	case isType(f, unix.S_IFIFO) && len(s.Standard) == 0:
		if use := ix.pipes[inodeOf(f)]; use != nil && use.standard >= 0 {
			s.Standard = []int32{int32(use.standard)}
		}
	}
	if !declared(d, f) && d.Container {
		if !d.Leaks[f.View.ID] { // else it has been refused, with who else holds it
			return nil, &object.Unsupported{What: "leads out of the container",
				Do: fmt.Sprintf("pass --external '%s' and give something in its place at restore with --inherit", f.Link)}
		}
		return s, nil
	}
	if !declared(d, f) && d.Warn != nil {
		_, _ = d.Once(externalKey{f.Link}, func() (stream.Ref, error) {
			d.Warn("pid %d (%s): fd %d -> %s leads out of the tree and is not saved; give something in its place at restore with --inherit", f.Process.PID, f.Process.Comm(), f.FD, f.Link)
			return stream.Ref{}, nil
		})
	}
	return s, nil
}

// notGiven is the error for an external file that nothing stands in for.
type notGiven struct{ name string }

func (e *notGiven) Error() string {
	return fmt.Sprintf("%s lay outside of the tree and nothing was given in its place", e.name)
}

func (e *notGiven) Hint() string { return fmt.Sprintf("pass --inherit '%s=FD'", e.name) }

func restoreExternal(r *object.Restorer, _ stream.Ref, s *externalState) (int, error) {
	names := []string{s.Name}
	for _, n := range s.Standard {
		if n < 0 || n > 2 {
			return -1, object.BadImagef("%d is no standard descriptor", n)
		}
		names = append(names, standardNames[n], strconv.Itoa(int(n)))
	}
	for _, name := range names {
		if fd, ok := r.Inherit[name]; ok {
			return inherit(fd, s)
		}
	}
	if len(s.Standard) == 0 {
		return -1, &notGiven{clip(s.Name)}
	}
	if r.Wait {
		if fd := ownStandard(s, r.StdinTaken); fd >= 0 {
			return inherit(fd, s)
		}
	}
	fd, err := openNull(s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/null in place of %s: %w", clip(s.Name), err)
	}
	return fd, nil
}

// ownStandard returns the caller's own standard descriptor that fits best, -1 when none does. A terminal that was all
// of stdin, stdout and stderr is replaced by a terminal where there is one, although stdin may be the image.
func ownStandard(s *externalState, stdinTaken bool) int {
	if s.Terminal {
		for _, n := range append(slices.Clone(s.Standard), 2, 1, 0) {
			if isatty(int(n)) {
				return int(n)
			}
		}
	}
	for _, n := range s.Standard {
		if fits(int(n), s.Flags) && !(n == 0 && stdinTaken) {
			return int(n)
		}
	}
	return -1
}

// fits says whether fd is open and can read or write as flags demand. One that could do both may be replaced by one
// that can do either: a terminal is open for both and used for one.
func fits(fd int, flags uint32) bool {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || have&unix.O_PATH != 0 {
		return false
	}
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		return readable(uint32(have))
	case unix.O_WRONLY:
		return writable(uint32(have))
	}
	return true
}

// inherit returns a duplicate of what the caller gives in place of s.
func inherit(fd int, s *externalState) (int, error) {
	if fd < 0 {
		return -1, fmt.Errorf("descriptor %d cannot stand in for %s", fd, clip(s.Name))
	}
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return -1, fmt.Errorf("looking at descriptor %d, which is to stand in for %s: %w", fd, clip(s.Name), err)
	}
	if !fits(fd, s.Flags) {
		return -1, fmt.Errorf("descriptor %d cannot stand in for %s: it is open for the other direction", fd, clip(s.Name))
	}
	n, err := dup(fd)
	if err != nil {
		return -1, err
	}
	// A program that polls would hang in a read or write that blocks.
	if s.Flags&unix.O_NONBLOCK != 0 && have&unix.O_NONBLOCK == 0 {
		if err := setStatus(n, uint32(have)|unix.O_NONBLOCK); err != nil {
			_ = unix.Close(n)
			return -1, err
		}
	}
	return n, nil
}

// ExternalTerminal returns a descriptor, in the pool, of what stands in for the external terminal of that name. ok: it is a terminal.
func ExternalTerminal(r *object.Restorer, name string) (fd int, ok bool) {
	for _, f := range object.All[externalState](r.Plan) {
		if !f.State.Terminal || f.State.Name != name {
			continue
		}
		if fd, err := r.File(f.Ref); err == nil && isatty(fd) {
			return fd, true
		}
	}
	return -1, false
}

func openNull(flags uint32) (int, error) {
	pinned, st, err := pin("/dev/null", unix.S_IFCHR, false)
	if err != nil {
		return -1, err
	}
	defer pinned.Close()
	if _, ok := plainDevice(st); !ok {
		return -1, fmt.Errorf("/dev/null is character device %d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	}
	return reopen(pinned.Int(), flags&(unix.O_ACCMODE|unix.O_APPEND|unix.O_NONBLOCK))
}

// ExternalKind is the kind of open files that lead out of the tree.
var ExternalKind = object.NewFileKind("file.external", claimsExternal, dumpExternal, restoreExternal)
