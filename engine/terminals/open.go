package terminals

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// pair is a pseudo-terminal at restore.
type pair struct {
	state  *pairState
	master *sys.FD // its only open file, and of the slave one of our own; nil once they are not needed
	slave  *sys.FD
	flags  uint32 // of the master's file
	given  bool   // to a file of the image
	pooled int    // a descriptor of the slave in the pool, -1: none

	current []currentFile
}

// numberTime is how long a number may take to be free: a terminal that has been closed gives it back some time later.
const numberTime = 5 * time.Second

// farthest is how many numbers in between may be taken for a moment to get at one.
const farthest = 4096

// takenError says that a number is in use.
type takenError struct{ path string }

func (e *takenError) Error() string {
	return fmt.Sprintf("the terminal %s is in use, and the image has one of that number", e.path)
}

func (e *takenError) Hint() string {
	return "close what runs on it, or restore in a mount namespace with a devpts of its own: unshare -m sh -c 'mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts && mount --bind /dev/pts/ptmx /dev/ptmx && exec cr-restore ...'"
}

func restorePair(r *object.Restorer, ref stream.Ref, s *pairState) error {
	p := &pair{state: s, pooled: -1}
	if err := s.check(); err != nil {
		return err
	}
	r.OnClose(p.close)
	if err := p.open(); err != nil {
		return err
	}
	r.Remember(ref, p)
	if s.HungUp {
		r.AfterObjects(func() error { p.close(); return nil }) // that hangs it up, before anybody could get SIGHUP
		return nil
	}
	if s.Session != 0 {
		n, err := dup(p.slave.Int())
		if err != nil {
			return err
		}
		if p.pooled, err = r.Pool(n); err != nil {
			return err
		}
	}
	r.AfterObjects(p.make)
	return nil
}

func dup(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating descriptor: %w", err)
	}
	return n, nil
}

func (p *pair) close() {
	for _, fd := range []**sys.FD{&p.master, &p.slave} {
		if *fd != nil {
			_ = (*fd).Close() // all was written
			*fd = nil
		}
	}
}

// open makes the pair, with its number.
func (p *pair) open() error {
	pinned, rdev, err := files.PinDevice(p.state.Path)
	if err != nil {
		return err
	}
	path := sys.NewFD(pinned)
	defer path.Close()
	if rdev != ptmxDevice {
		return fmt.Errorf("%s is character device %d:%d, and makes no pseudo-terminals", p.state.Path, unix.Major(rdev), unix.Minor(rdev))
	}
	for deadline := time.Now().Add(numberTime); ; time.Sleep(10 * time.Millisecond) {
		if p.master, err = numbered(pinned, p.state.Index); err == nil {
			break
		}
		var taken *takenError
		if errors.As(err, &taken) && p.state.HungUp { // by which nobody could open it any more
			if p.master, err = anyNumber(pinned); err == nil {
				break
			}
			return err
		}
		if !errors.As(err, &taken) || time.Now().After(deadline) {
			return err
		}
	}
	if err := unix.IoctlSetPointerInt(p.master.Int(), unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlocking a terminal: %w", err)
	}
	if p.state.Unopened {
		return nil
	}
	if p.slave, err = sys.OpenSlave(p.master.Int(), unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("opening the slave of terminal %d: %w", p.state.Index, err)
	}
	return nil
}

func anyNumber(ptmx int) (*sys.FD, error) {
	n, err := files.Reopen(ptmx, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening a pseudo-terminal: %w", err)
	}
	return sys.NewFD(n), nil
}

// numbered opens a master of one number: the kernel gives the lowest that is free.
func numbered(ptmx int, index uint32) (*sys.FD, error) {
	var between []*sys.FD
	defer func() {
		for _, fd := range between {
			_ = fd.Close() // never used
		}
	}()
	for {
		n, err := files.Reopen(ptmx, unix.O_RDWR|unix.O_NONBLOCK)
		if err != nil {
			return nil, &object.Lacking{What: fmt.Sprintf("opening pseudo-terminals up to number %d", index), Err: err,
				Do: "close some terminals, or raise kernel.pty.max and the limit of open files (ulimit -n)"}
		}
		fd := sys.NewFD(n)
		got, err := unix.IoctlGetUint32(n, unix.TIOCGPTN)
		if err == nil && got == index {
			return fd, nil
		}
		between = append(between, fd)
		if err != nil {
			return nil, fmt.Errorf("reading the number of a terminal: %w", err)
		}
		if got > index || len(between) > farthest {
			return nil, &takenError{path: fmt.Sprintf("/dev/pts/%d", index)}
		}
	}
}

// make gives the pair its contents once all its files are open. What takes a session that it controls comes later; see Finish.
func (p *pair) make() error {
	s := p.state
	if err := p.fill(); err != nil {
		return err
	}
	size := &unix.Winsize{Row: s.Rows, Col: s.Columns, Xpixel: s.XPixels, Ypixel: s.YPixels}
	if err := unix.IoctlSetWinsize(p.master.Int(), unix.TIOCSWINSZ, size); err != nil {
		return fmt.Errorf("setting the size of a terminal: %w", err)
	}
	if p.slave == nil {
		return p.own(unix.AT_FDCWD, slavePath(s.Path, s.Index))
	}
	return p.own(p.slave.Int(), "")
}

// own gives the slave its owner and permissions. Where nobody may open it, it is found by its path.
func (p *pair) own(at int, name string) error {
	s := p.state
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, flags); err != nil {
		return fmt.Errorf("looking at the slave of terminal %d: %w", s.Index, err)
	}
	if name != "" && (st.Mode&unix.S_IFMT != unix.S_IFCHR || uint64(st.Rdev) != unix.Mkdev(slaveMajor, s.Index)) {
		return fmt.Errorf("%s is not the slave of terminal %d", name, s.Index)
	}
	if st.Uid != s.UID || st.Gid != s.GID {
		if err := unix.Fchownat(at, name, int(s.UID), int(s.GID), flags); err != nil {
			return &object.Lacking{What: fmt.Sprintf("giving /dev/pts/%d to user %d, group %d", s.Index, s.UID, s.GID), Err: err, Do: "restore as root"}
		}
	}
	if st.Mode&0o7777 == s.Mode {
		return nil
	}
	var err error
	if name == "" {
		err = unix.Fchmod(at, s.Mode)
	} else {
		err = unix.Fchmodat(at, name, s.Mode, 0)
	}
	if err != nil {
		return fmt.Errorf("setting the permissions of a terminal: %w", err)
	}
	return nil
}

// Finish does what is last, when the terminals have their sessions: input that is not processed yet may hold characters that send
// signals to them.
func Finish(r *object.Restorer) error {
	for _, f := range object.All[pairState](r.Plan) {
		p, err := object.Recall[pair](r, f.Ref)
		if err != nil {
			return err
		}
		if p.state.HungUp {
			continue
		}
		if err := p.finish(); err != nil {
			return fmt.Errorf("terminal %d: %w", p.state.Index, err)
		}
		p.close()
	}
	return nil
}

func (p *pair) finish() error {
	s := p.state
	if err := p.write(p.master, s.Unprocessed); err != nil {
		return err
	}
	if err := p.setPacket(); err != nil {
		return err
	}
	set := func(on bool, fd *sys.FD, request uint, arg int) error {
		if !on {
			return nil
		}
		return os.NewSyscallError("ioctl", unix.IoctlSetInt(fd.Int(), request, arg))
	}
	if err := errors.Join(
		set(s.Choked, p.master, unix.TCXONC, unix.TCOOFF),
		set(s.Alone, p.master, unix.TIOCEXCL, 0),
		set(s.Exclusive, p.slave, unix.TIOCEXCL, 0),
	); err != nil {
		return err
	}
	if s.Locked {
		if err := unix.IoctlSetPointerInt(p.master.Int(), unix.TIOCSPTLCK, 1); err != nil {
			return fmt.Errorf("locking a terminal: %w", err)
		}
	}
	if s.Modify != 0 && p.slave != nil {
		times := []unix.Timespec{unix.NsecToTimespec(s.Access), unix.NsecToTimespec(s.Modify)}
		if err := unix.UtimesNanoAt(p.slave.Int(), "", times, unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("setting the times of a terminal: %w", err)
		}
	}
	return files.SetStatus(p.master.Int(), p.flags)
}

// PairObject is the record of a pseudo-terminal itself.
var PairObject = object.NewKind(pairType, restorePair)
