package kernelview

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

// unseen finds what tells a file that fanotify(7) has opened for an event, whose use nobody is told of (FMODE_NONOTIFY), from one that
// was opened by a program. Since Linux 6.14 files have more marks of this sort, by who watches their file system: one that nobody else
// can watch keeps these equal.
func (c *calibration) unseen() error {
	if !c.v.l.has(fFMode) {
		return errNoField
	}
	dir, err := ownTmpfs()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return errNoField
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	const name = "file"
	if err := unix.Mknodat(dir, name, unix.S_IFREG|0o600, 0); err != nil {
		return err
	}
	group, err := unix.FanotifyInit(unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return errNoField // and no file of an event
	}
	if err != nil {
		return err
	}
	defer unix.Close(group)
	if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD, unix.FAN_OPEN, dir, name); err != nil {
		return err
	}
	plain, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(plain)
	event := make([]byte, 24) // struct fanotify_event_metadata
	if _, err := unix.Read(group, event); err != nil {
		return err
	}
	unseen := int(int32(binary.NativeEndian.Uint32(event[16:])))
	if unseen < 0 {
		return errFault
	}
	defer unix.Close(unseen)
	seenMode, err1 := c.fileMode(plain)
	unseenMode, err2 := c.fileMode(unseen)
	if err1 != nil || err2 != nil {
		return errFault
	}
	if mask := seenMode ^ unseenMode; unseenMode&mask != 0 && bits.OnesCount64(mask) <= 2 {
		c.v.l.facts[factUnseenMask] = fact{known: true, value: mask}
		c.v.l.facts[factUnseen] = fact{known: true, value: unseenMode & mask}
	}
	return nil
}

// fileMode reads f_mode of an open file of our own.
func (c *calibration) fileMode(fd int) (uint64, error) {
	tables, err := c.v.Files([]int{os.Getpid()})
	if err != nil {
		return 0, err
	}
	for _, d := range tables[0].FDs {
		if d.FD != fd {
			continue
		}
		b, err := c.v.mem.peek(c.v.files[d.File.ID].addr, c.v.l.span["file"])
		if err != nil {
			return 0, err
		}
		mode, _ := c.v.l.uint(b, fFMode)
		return mode, nil
	}
	return 0, errFault
}

// ownTmpfs returns the root directory of a new file system that is mounted nowhere and goes with its last descriptor.
func ownTmpfs() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}
