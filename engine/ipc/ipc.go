// Package ipc keeps System V semaphores and message queues (sysvipc(7)), POSIX message queues (mq_overview(7)) and the IPC
// namespaces in which all these live. Shared memory is mapped, and belongs to package memory; what it has in common with the
// others is here.
package ipc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Perm is what every System V object has (struct ipc_perm). The kernel shows it in /proc/sysvipc. An object is made by a task that
// is its creator for that moment, under its old id, which /proc/sys/kernel/{shm,sem,msg}_next_id ask for (CONFIG_CHECKPOINT_RESTORE);
// owner and mode are then set by IPC_SET.
//
// Lost of all of them: their times (of use, and of change), which no call sets. They are those of the restore; where the time of the
// last use says that there was none (0), there is none again.
type Perm struct {
	ID   int32  `msgpack:"id"`
	Key  int32  `msgpack:"key,omitempty"` // 0: IPC_PRIVATE
	Mode uint32 `msgpack:"mode"`          // permissions
	UID  uint32 `msgpack:"uid"`
	GID  uint32 `msgpack:"gid"`
	CUID uint32 `msgpack:"cuid"` // of the creator
	CGID uint32 `msgpack:"cgid"`
}

// PermOf is the part of a line of /proc/sysvipc that is common to all.
func PermOf(p *procfs.IPCPerm) Perm {
	return Perm{ID: p.ID, Key: p.Key, Mode: p.Mode & 0o777, UID: p.UID, GID: p.GID, CUID: p.CUID, CGID: p.CGID}
}

// Check refuses what no object can have.
func (p *Perm) Check() error {
	if p.ID < 0 || p.Mode > 0o777 || int32(p.UID) == -1 || int32(p.GID) == -1 || int32(p.CUID) == -1 || int32(p.CGID) == -1 {
		return object.BadImagef("a System V object with id %d, mode %#o, owner %d:%d, creator %d:%d", p.ID, p.Mode, p.UID, p.GID, p.CUID, p.CGID)
	}
	return nil
}

// A Type is one of the three.
type Type string

// The types, by the names that /proc and ipcs(1) have for them.
const (
	Shm Type = "shm"
	Sem Type = "sem"
	Msg Type = "msg"
)

// What is the type in a message.
func (t Type) What() string {
	return map[Type]string{Shm: "System V shared memory", Sem: "the System V semaphores", Msg: "the System V message queue"}[t]
}

// Remove returns the command by which a user removes an object.
func (t Type) Remove(id int32) string {
	return fmt.Sprintf("ipcrm -%s %d", map[Type]string{Shm: "m", Sem: "s", Msg: "q"}[t], id)
}

// RemoveNow removes an object of the caller's namespace.
func (t Type) RemoveNow(id int32) error {
	switch t {
	case Shm:
		return sys.ShmControl(id, unix.IPC_RMID)
	case Sem:
		return sys.SemRemove(id)
	}
	return sys.MsgRemove(id)
}

// LockNow keeps a segment of the caller's namespace in memory (SHM_LOCK of shmctl(2)).
func LockNow(id int32) error { return sys.ShmControl(id, sys.ShmLock) }

// Namespace is an IPC namespace other than the caller's; nil is the caller's own.
type Namespace struct{ fd *sys.FD }

// Open takes hold of the IPC namespace that a thread is in.
func Open(tid int) (*Namespace, error) {
	fd, err := sys.Open(procfs.Path(tid, "ns/ipc"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Namespace{fd}, nil
}

// Enter moves the calling thread, which must be locked to its goroutine, into the namespace.
func (n *Namespace) Enter() error {
	if n == nil {
		return nil
	}
	err := unix.Setns(n.fd.Int(), unix.CLONE_NEWIPC)
	if errors.Is(err, unix.EPERM) {
		return &object.Lacking{What: "entering an IPC namespace", Err: err, Do: "it needs CAP_SYS_ADMIN"}
	}
	if err != nil {
		return fmt.Errorf("entering an IPC namespace: %w", err)
	}
	return nil
}

// Do calls f on a thread that is in the namespace.
func (n *Namespace) Do(f func() error) error {
	if n == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and nobody else gets it
		err := n.Enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// SetNext asks for the id of the next object of a type that is made in the IPC namespace of the calling thread.
func SetNext(t Type, id int32) error {
	err := writeSysctl("kernel/"+string(t)+"_next_id", strconv.Itoa(int(id)))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &object.Lacking{What: "giving " + t.What() + " its old id (CONFIG_CHECKPOINT_RESTORE)", Err: err}
	case errors.Is(err, os.ErrPermission):
		return &object.Lacking{What: "giving " + t.What() + " its old id", Err: err, Do: "it needs CAP_CHECKPOINT_RESTORE"}
	}
	return err
}

func writeSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// readSysctl returns a setting without the line's end; "" where the kernel has none of that name.
func readSysctl(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// Maker is the ids that a task of cr-restore has.
type Maker struct{ EUID, EGID uint32 }

// MakeCalls adds the calls by which a task makes an object: get is the number of shmget(2) and its like, arg what it has between key
// and flags. The result must be the id.
func (p *Perm) MakeCalls(b *tracee.Batch, m Maker, t Type, key int32, args ...any) *tracee.Call {
	n := b.Sys()
	const same = -1
	if p.CGID != m.EGID {
		b.Call(n.Setresgid, same, p.CGID, same).Note("group %d, which made %s %d", p.CGID, t, p.ID)
	}
	if p.CUID != m.EUID {
		b.Call(n.Setresuid, same, p.CUID, same).Note("user %d, who made %s %d", p.CUID, t, p.ID)
	}
	call := b.Call(map[Type]int{Shm: n.Shmget, Sem: n.Semget, Msg: n.Msgget}[t], append([]any{key}, args...)...).Ignore()
	if p.CUID != m.EUID {
		b.Call(n.Setresuid, same, m.EUID, same)
	}
	if p.CGID != m.EGID {
		b.Call(n.Setresgid, same, m.EGID, same)
	}
	return call
}

// SetCalls adds the call that gives an object its owner and mode. qbytes is of a message queue.
func (p *Perm) SetCalls(b *tracee.Batch, t Type, qbytes uint64) *tracee.Call {
	a := b.Arch()
	// struct {shmid,semid,msqid}64_ds: all begin with struct ipc64_perm, in which key, uid, gid, cuid, cgid and mode follow one another on
	// every architecture (asm-generic/ipcbuf.h).
	ds := make([]byte, 256)
	a.Order.PutUint32(ds[4:], p.UID)
	a.Order.PutUint32(ds[8:], p.GID)
	a.Order.PutUint32(ds[20:], p.Mode)
	a.Order.PutUint64(ds[msgBytes64:], qbytes)
	n := b.Sys()
	if t == Sem {
		return b.Call(n.Semctl, p.ID, 0, unix.IPC_SET, b.Data(ds)).Note("owner and mode of %s %d", t, p.ID)
	}
	return b.Call(map[Type]int{Shm: n.Shmctl, Msg: n.Msgctl}[t], p.ID, unix.IPC_SET, b.Data(ds)).Note("owner and mode of %s %d", t, p.ID)
}

// msgBytes64 is where struct msqid64_ds of 64-bit machines has msg_qbytes.
const msgBytes64 = 88
