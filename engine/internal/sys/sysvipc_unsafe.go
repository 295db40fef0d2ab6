package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and flags of System V IPC that x/sys lacks (linux/ipc.h, linux/msg.h, linux/sem.h, linux/shm.h).
const (
	MsgCopy   = 0o40000 // MSG_COPY of msgrcv(2): the type is a position, and the message stays
	SemGetPID = 11      // GETPID
	SemGetAll = 13      // GETALL
	SemSetVal = 16      // SETVAL
	SemSetAll = 17      // SETALL
	SemUndo   = 0x1000  // SEM_UNDO
	ShmRdonly = 0o10000 // SHM_RDONLY
	ShmExec   = 0o100000
	ShmLock   = 11 // SHM_LOCK
)

// ShmAttach is shmat(2) at an address of the kernel's choice, which is no memory that Go knows of.
func ShmAttach(id int32, flags int) (uintptr, error) {
	at, _, errno := unix.Syscall(unix.SYS_SHMAT, uintptr(id), 0, uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return at, nil
}

// ShmDetach is shmdt(2).
func ShmDetach(at uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_SHMDT, at, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// ShmControl is shmctl(2) with a command that takes no buffer: IPC_RMID, SHM_LOCK.
func ShmControl(id int32, cmd int) error {
	if _, _, errno := unix.Syscall(unix.SYS_SHMCTL, uintptr(id), uintptr(cmd), 0); errno != 0 {
		return errno
	}
	return nil
}

// SemValues is semctl(2) GETALL of a set of n > 0 semaphores.
func SemValues(id int32, n int) ([]uint16, error) {
	values := make([]uint16, n)
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), 0, SemGetAll, uintptr(unsafe.Pointer(&values[0])), 0, 0); errno != 0 {
		return nil, errno
	}
	return values, nil
}

// SemSetValues is semctl(2) SETALL of a set of that many semaphores.
func SemSetValues(id int32, values []uint16) error {
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), 0, SemSetAll, uintptr(unsafe.Pointer(&values[0])), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// SemPID is semctl(2) GETPID: who changed a semaphore last, in the caller's pid namespace.
func SemPID(id int32, n int) (int, error) {
	pid, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), uintptr(n), SemGetPID, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(int32(pid)), nil
}

// SemRemove is semctl(2) IPC_RMID.
func SemRemove(id int32) error {
	if _, _, errno := unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), 0, unix.IPC_RMID, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// MsgRemove is msgctl(2) IPC_RMID.
func MsgRemove(id int32) error {
	if _, _, errno := unix.Syscall(unix.SYS_MSGCTL, uintptr(id), unix.IPC_RMID, 0); errno != 0 {
		return errno
	}
	return nil
}

// MsgBytes is msgctl(2) IPC_STAT, as far as nothing else shows it: msg_qbytes, the most bytes that the queue takes.
func MsgBytes(id int32) (uint64, error) {
	var ds [256]byte
	if _, _, errno := unix.Syscall(unix.SYS_MSGCTL, uintptr(id), unix.IPC_STAT, uintptr(unsafe.Pointer(&ds[0]))); errno != 0 {
		return 0, errno
	}
	return uint64(*(*uintptr)(unsafe.Pointer(&ds[MsgBytesOffset]))), nil
}

// MsgBytesOffset is where struct msqid64_ds has msg_qbytes: behind the permissions (48 bytes with words of 8, 36 with words of
// 4), three times of 8 bytes, and two words (asm-generic/msgbuf.h; the same on all architectures that are known here).
const MsgBytesOffset = 72 + 16 - (8-unsafe.Sizeof(uintptr(0)))*5

// MsgPeek copies the message at a position of a queue (msgrcv(2) MSG_COPY) and returns its type and size; buf must have a
// word more than the message. ENOMSG: there is none.
func MsgPeek(id int32, position int, buf []byte) (typ int64, n int, err error) {
	const word = int(unsafe.Sizeof(uintptr(0)))
	got, _, errno := unix.Syscall6(unix.SYS_MSGRCV, uintptr(id), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)-word), uintptr(position), MsgCopy|unix.IPC_NOWAIT, 0)
	if errno != 0 {
		return 0, 0, errno
	}
	return int64(*(*int)(unsafe.Pointer(&buf[0]))), int(got), nil
}

// MsgSend is msgsnd(2) without waiting. buf is a word of room for the type and the message.
func MsgSend(id int32, typ int64, buf []byte) error {
	const word = int(unsafe.Sizeof(uintptr(0)))
	*(*int)(unsafe.Pointer(&buf[0])) = int(typ)
	if _, _, errno := unix.Syscall6(unix.SYS_MSGSND, uintptr(id), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)-word), unix.IPC_NOWAIT, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// MsgWord is how many bytes the type of a message takes.
const MsgWord = int(unsafe.Sizeof(uintptr(0)))
