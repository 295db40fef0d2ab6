//go:build amd64

package kernelview

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSemUndo reads the adjustments that a child has, and sees that another has some of the same set.
func TestSemUndo(t *testing.T) {
	v, c, other := view(t), newChild(t), newChild(t)
	var u SemUndoView = v
	const count = 300
	semid := c.must(unix.SYS_SEMGET, 0, count, 0o666)
	gone := c.must(unix.SYS_SEMGET, 0, 1, 0o666)
	t.Cleanup(func() { _, _, _ = unix.Syscall(unix.SYS_SEMCTL, uintptr(semid), 0, unix.IPC_RMID) })
	for _, b := range [][]byte{{0, 0, 5, 0, 0, 0x10}, {299 & 255, 1, 0xff, 0x7f, 0, 0x10}, {0, 0, 0xfe, 0xff, 0, 0x10}} { // +5 of 0, +32767 of 299, -2 of 0
		c.must(unix.SYS_SEMOP, uint64(semid), c.put(0x100, b), 1)
	}
	c.must(unix.SYS_SEMOP, uint64(gone), c.put(0x100, []byte{0, 0, 1, 0, 0, 0x10}), 1)
	c.must(unix.SYS_SEMCTL, uint64(gone), 0, unix.IPC_RMID)
	list := oneThread(t, v, c.pid()).SysVSem.V
	read := func() SemUndo {
		t.Helper()
		got, err := u.SemUndo([]ID{list}, func(id int32) int {
			if id == int32(semid) {
				return count
			}
			return -1
		})
		if err != nil || len(got) != 1 || got[0].SemID != int32(semid) || got[0].List != list {
			t.Fatalf("%+v, %v", got, err)
		}
		return got[0]
	}
	want := make([]int16, count)
	want[0], want[299] = -3, -32767
	if got := read(); !slices.Equal(got.Adjust, want) || got.Outside {
		t.Errorf("%+v", got)
	}
	other.must(unix.SYS_SEMOP, uint64(semid), other.put(0x100, []byte{7, 0, 1, 0, 0, 0x10}), 1)
	if got := read(); !slices.Equal(got.Adjust, want) || !got.Outside {
		t.Errorf("with somebody else: %+v", got)
	}
	if _, err := u.SemUndo([]ID{1 << 60}, func(int32) int { return 1 }); !errors.Is(err, ErrKind) {
		t.Errorf("an unknown list: %v", err)
	}
}

// TestMqueue reads messages of every length around the ends of the pages that they are kept in, and leaves them where they are.
func TestMqueue(t *testing.T) {
	v, c := view(t), newChild(t)
	var m MqueueView = v
	c.put(0, append([]byte(fmt.Sprintf("crpipe-kernelview-%d", c.pid())), 0))
	// struct mq_attr {flags, maxmsg, msgsize}
	fd, err := c.call(unix.SYS_MQ_OPEN, c.page, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NONBLOCK, 0o600, c.putWords(0x100, 0, 10, 8192))
	if err != nil {
		t.Skipf("needs message queues: %v", err)
	}
	c.must(unix.SYS_MQ_UNLINK, c.page)
	id := fileOf(t, v, c.pid(), int(fd)).ID
	read := func() Mqueue {
		t.Helper()
		q, err := m.Mqueue(id)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	if q := read(); q.MaxMessages != 10 || q.MessageSize != 8192 || len(q.Messages) != 0 || q.Notify.Set {
		t.Errorf("an empty one: %+v", q)
	}
	type message struct {
		priority uint32
		size     int
	}
	sent := []message{{1, 0}, {5, 4047}, {5, 4048}, {0, 4049}, {32767, 8136}, {5, 8137}, {1, 8192}}
	for i, s := range sent {
		c.put(0x1000, bytes.Repeat([]byte{byte('a' + i)}, s.size))
		c.must(unix.SYS_MQ_TIMEDSEND, uint64(fd), c.page+0x1000, uint64(s.size), uint64(s.priority), 0)
	}
	for range 2 {
		q := read()
		if len(q.Messages) != len(sent) {
			t.Fatalf("%d messages", len(q.Messages))
		}
		for i, from := range []int{4, 1, 2, 5, 0, 6, 3} {
			if m := q.Messages[i]; m.Priority != sent[from].priority || !bytes.Equal(m.Data, bytes.Repeat([]byte{byte('a' + from)}, sent[from].size)) {
				t.Errorf("message %d: priority %d, %d bytes, want message %d: %+v", i, m.Priority, len(m.Data), from, sent[from])
			}
		}
	}
	// struct sigevent {value, signal and SIGEV_SIGNAL}
	c.must(unix.SYS_MQ_NOTIFY, uint64(fd), c.putWords(0x200, 0x1122334455667788, 12))
	if n := read().Notify; n != (MqueueNotify{Set: true, PID: c.pid(), Signal: 12, Value: 0x1122334455667788}) {
		t.Errorf("%+v", n)
	}
	if _, err := m.Mqueue(1 << 60); !errors.Is(err, ErrKind) {
		t.Errorf("an unknown file: %v", err)
	}
}
