package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// MqAttr is what struct mq_attr says of a new queue (mq_open(3)).
type MqAttr struct{ MaxMessages, MessageSize int64 }

// MqOpen is mq_open(2), whose descriptors are closed on exec whatever the flags, which F_GETFL shows as they were given. The name has no
// slash in front of it; attr is nil where nothing is made.
func MqOpen(name string, flags int, mode uint32, attr *MqAttr) (*FD, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return nil, err
	}
	var raw [8]uintptr // longs: flags, maxmsg, msgsize, curmsgs, four reserved
	var at unsafe.Pointer
	if attr != nil {
		raw[1], raw[2] = uintptr(attr.MaxMessages), uintptr(attr.MessageSize)
		at = unsafe.Pointer(&raw[0])
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), uintptr(flags), uintptr(mode), uintptr(at), 0, 0)
	if errno != 0 {
		return nil, errno
	}
	return NewFD(int(fd)), nil
}

// MqUnlink is mq_unlink(2).
func MqUnlink(name string) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(p)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// MqSend is mq_timedsend(2) without a time; fd is O_NONBLOCK.
func MqSend(fd int, data []byte, priority uint32) error {
	var none byte
	at := unsafe.Pointer(&none)
	if len(data) > 0 {
		at = unsafe.Pointer(&data[0])
	}
	if _, _, errno := unix.Syscall6(unix.SYS_MQ_TIMEDSEND, uintptr(fd), uintptr(at), uintptr(len(data)), uintptr(priority), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
