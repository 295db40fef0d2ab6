package tasks

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Dispatch is PR_SET_SYSCALL_USER_DISPATCH (prctl(2)): calls from outside of a range raise SIGSYS while the byte at the
// selector says so.
type Dispatch struct {
	On       bool   `msgpack:"on,omitempty"`
	Selector uint64 `msgpack:"selector,omitempty"` // 0: always
	Offset   uint64 `msgpack:"offset,omitempty"`
	Length   uint64 `msgpack:"length,omitempty"`
}

// DumpDispatch reads it.
func DumpDispatch(d *object.Dumper, t *object.Thread) Dispatch {
	v := look(looker{d, t}, t.View.SyscallDispatch, "system call dispatch")
	return Dispatch{On: v.On, Selector: uint64(v.Selector), Offset: uint64(v.Offset), Length: v.Len}
}

// Set gives it to a stopped thread, from outside: no call of its own is possible after it. The kernel keeps the range of
// PR_SYS_DISPATCH_INCLUSIVE_ON turned inside out, with an end before its start, and takes it only as it was given.
func (s *Dispatch) Set(tid int) error {
	if !s.On {
		return nil
	}
	c := sys.DispatchConfig{Mode: sys.DispatchOn, Selector: s.Selector, Offset: s.Offset, Length: s.Length}
	if s.Offset != 0 && s.Offset+s.Length <= s.Offset {
		c.Mode, c.Offset, c.Length = sys.DispatchInclusiveOn, s.Offset+s.Length, -s.Length
	}
	err := sys.PtraceSetDispatch(tid, c)
	if errors.Is(err, unix.EIO) {
		return &object.Lacking{What: "setting system call user dispatch from outside (Linux 6.4)", Err: err}
	}
	if err != nil {
		return fmt.Errorf("setting system call user dispatch: %w", err)
	}
	return nil
}
