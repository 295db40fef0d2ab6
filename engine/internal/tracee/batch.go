package tracee

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// A Batch is a list of system calls that one task shall execute, in order, until one fails. It is
// built, run once, and then its calls tell their results.
type Batch struct {
	arena *Arena
	calls []*Call
	err   error // the first mistake in building it; Run returns it
}

// Call is one system call of a batch.
type Call struct {
	nr     int
	args   [6]arg
	flags  uint64
	expect uint64
	allow  []unix.Errno
	note   string
	since  string
	child  *Task // of Clone

	offset int   // of the entry in its slot, during its part
	result int64 // after Run
	ran    bool
}

// Buf is a piece of a slot: data for calls, or room for what they write.
type Buf struct {
	bytes    []byte
	out      bool // calls may write to it
	pointers []pointer
	// While a batch runs: where it is in the slot, and for which part and by whom it was put there.
	offset int
	in     *part
	placed *filler
}

type pointer struct {
	at int // in the buffer that holds it
	to *Buf
	// without a buffer: the address of another task's slot
	slot *Task
}

type arg struct {
	value uint64
	buf   *Buf  // the address of buf + value
	from  *Call // the result of an earlier call
	load  *Buf  // the word at load + value, when the call is made
}

// Word is an argument that is read from a buffer when its call is made: the 8 bytes at an offset,
// written by an earlier call of the batch. The kernel looks only at the lower half of an argument
// that is an int, so that on a little-endian machine this serves for descriptors from pipe2 as
// well, and half of the word may lie beyond the buffer.
type Word struct {
	Buf    *Buf
	Offset int
}

// At is an argument that is an address within a buffer.
type At struct {
	Buf    *Buf
	Offset int
}

// Call appends a system call; see arch.Syscalls for its number. An argument is an integer of any
// type, an arch.Addr or a bool (0 or 1); or a *Buf, At, []byte or string (the address of the
// buffer, of a place in it, of a copy of the bytes, of a copy with a zero byte after it); or a
// *Call of this batch (its result) or a Word. Missing arguments are 0.
//
// Unless Ignore, Allow or Expect say otherwise the batch ends at a call whose result is an error.
func (b *Batch) Call(nr int, args ...any) *Call {
	c := &Call{nr: nr}
	b.calls = append(b.calls, c)
	if nr < 0 {
		b.fail(fmt.Errorf("call %d of the batch: this architecture lacks the system call", len(b.calls)-1))
	}
	if len(args) > len(c.args) {
		b.fail(fmt.Errorf("%s: %d arguments", b.arena.arch.SyscallName(nr), len(args)))
		return c
	}
	for i, a := range args {
		v, ok := b.arg(a)
		if !ok {
			b.fail(fmt.Errorf("%s: argument %d is a %T", b.arena.arch.SyscallName(nr), i, a))
		}
		c.args[i] = v
	}
	return c
}

// CompatCall is Call for a call of 32-bit code; nr is of Arch().Compat. What it points to must lie, as the slots do where
// such calls are made, below 4 GiB.
func (b *Batch) CompatCall(nr int, args ...any) *Call {
	c := b.Call(nr, args...)
	c.flags |= arch.FlagCompat
	if b.arena.arch.Compat == nil {
		b.fail(fmt.Errorf("call %d of the batch: this architecture has no calls of 32-bit code", len(b.calls)-1))
	}
	return c
}

// abi is whose number a call's is.
func (c *Call) abi(a *arch.Arch) *arch.Arch {
	if c.flags&arch.FlagCompat != 0 {
		return a.Compat
	}
	return a
}

func (b *Batch) arg(a any) (arg, bool) {
	switch v := a.(type) {
	case int:
		return arg{value: uint64(v)}, true
	case int64:
		return arg{value: uint64(v)}, true
	case int32:
		return arg{value: uint64(v)}, true
	case uint:
		return arg{value: uint64(v)}, true
	case uint64:
		return arg{value: v}, true
	case uint32:
		return arg{value: uint64(v)}, true
	case uint16:
		return arg{value: uint64(v)}, true
	case uint8:
		return arg{value: uint64(v)}, true
	case uintptr:
		return arg{value: uint64(v)}, true
	case unix.Signal:
		return arg{value: uint64(v)}, true
	case arch.Addr:
		return arg{value: uint64(v)}, true
	case bool:
		if v {
			return arg{value: 1}, true
		}
		return arg{}, true
	case *Buf:
		return arg{buf: v}, v != nil
	case At:
		return arg{buf: v.Buf, value: uint64(v.Offset)}, v.Buf != nil && v.Offset >= 0 && v.Offset <= len(v.Buf.bytes)
	case []byte:
		return arg{buf: b.Data(v)}, true
	case string:
		return arg{buf: b.Data(append([]byte(v), 0))}, true
	case *Call:
		return arg{from: v}, v != nil
	case Word:
		return arg{load: v.Buf, value: uint64(v.Offset)}, v.Buf != nil && v.Offset >= 0 && v.Offset+4 <= len(v.Buf.bytes)
	}
	return arg{}, false
}

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = fmt.Errorf("building a batch: %w", err)
	}
}

// Len is the number of calls so far.
func (b *Batch) Len() int { return len(b.calls) }

// Arch is the architecture of the tasks that the batch is for.
func (b *Batch) Arch() *arch.Arch { return b.arena.arch }

// Sys is short for the system call numbers of Arch.
func (b *Batch) Sys() *arch.Syscalls { return &b.arena.arch.Sys }

// Data makes a buffer with a copy of p, for calls to read.
func (b *Batch) Data(p []byte) *Buf { return &Buf{bytes: append([]byte(nil), p...)} }

// InOut makes a buffer with a copy of p, for calls to read and write.
func (b *Batch) InOut(p []byte) *Buf { return &Buf{bytes: append([]byte(nil), p...), out: true} }

// Space makes a buffer of n zero bytes, for calls to write.
func (b *Batch) Space(n int) *Buf { return &Buf{bytes: make([]byte, n), out: true} }

// Bytes is the contents of a buffer: after Run, what the calls have written there. Before Run it
// may be changed.
func (f *Buf) Bytes() []byte { return f.bytes }

// Pointer puts the address of another buffer into this one, as a word of 8 bytes at an offset.
func (f *Buf) Pointer(offset int, to *Buf) *Buf {
	f.pointers = append(f.pointers, pointer{at: offset, to: to})
	return f
}

// Ignore lets the batch go on whatever the result; Errno tells it.
func (c *Call) Ignore() *Call {
	c.flags |= arch.FlagIgnore
	return c
}

// Allow lets the batch go on after these errors too. After another one it goes on as well, but Run
// then fails with it.
func (c *Call) Allow(errs ...unix.Errno) *Call {
	c.flags |= arch.FlagIgnore
	c.allow = append(c.allow, errs...)
	return c
}

// Expect makes every other result a failure. It is for calls that do not say when they fail, as
// brk, and for addresses that must be met.
func (c *Call) Expect(v uint64) *Call {
	c.flags |= arch.FlagExpect
	c.expect = v
	return c
}

// Note adds words to the error that names this call, e.g. which descriptor it was about.
func (c *Call) Note(format string, args ...any) *Call {
	c.note = fmt.Sprintf(format, args...)
	return c
}

// Since says which version of Linux was the first to know the call, or its arguments: on an older one it fails with a SinceError.
func (c *Call) Since(version string) *Call {
	c.since = version
	return c
}

// Result is what the call returned, -errno where it failed; 0 if it was not reached.
func (c *Call) Result() int64 { return c.result }

// Int is Result as an int.
func (c *Call) Int() int { return int(c.result) }

// Ran says whether the call was executed.
func (c *Call) Ran() bool { return c.ran }

// Errno is the call's error, 0 for none.
func (c *Call) Errno() unix.Errno {
	if c.result < 0 && c.result >= -4095 {
		return unix.Errno(-c.result)
	}
	return 0
}

// Child is the task that a Clone makes. It may be used after Run.
func (c *Call) Child() *Task { return c.child }

// Clone appends a clone3 that makes a task with the given ids (one for each pid namespace, the
// innermost first; none: any). The stack and CLONE_PTRACE are filled in. After Run its Child is a
// task in its first stop, ready for batches; it has the arena where its maker has it. CLONE_PARENT
// and CLONE_THREAD need ExitSignal 0.
//
// tid is the new task's id in the tracer's own pid namespace where the caller knows it; 0: found out.
func (b *Batch) Clone(args sys.CloneArgs, setTID []int32, tid int) *Call {
	return b.clone(args, setTID, tid, false)
}

// CloneSmall is Clone for a task whose batches are short. It gets a small slot, if there is one: what does not fit takes more
// round trips, and the data of a single call must be shorter than 1 KiB.
func (b *Batch) CloneSmall(args sys.CloneArgs, setTID []int32, tid int) *Call {
	return b.clone(args, setTID, tid, true)
}

func (b *Batch) clone(args sys.CloneArgs, setTID []int32, tid int, small bool) *Call {
	child := &Task{arena: b.arena, Tid: tid, thread: args.Flags&unix.CLONE_THREAD != 0, init: args.Flags&unix.CLONE_NEWPID != 0}
	slot, err := b.arena.take(small)
	if err != nil {
		b.fail(err)
	}
	child.slot = slot
	args.Flags |= unix.CLONE_PTRACE
	// The kernel only checks that stack is not 0; the stack pointer is its end.
	const room = 64
	args.StackSize = room
	buf := b.Data(args.Append(nil, hostOrder))
	buf.pointers = append(buf.pointers, pointer{at: cloneArgsStack, slot: child})
	if len(setTID) > 0 {
		ids := make([]byte, 0, 4*len(setTID))
		for _, id := range setTID {
			ids = hostOrder.AppendUint32(ids, uint32(id))
		}
		hostOrder.PutUint64(buf.bytes[cloneArgsSetTIDSize:], uint64(len(setTID)))
		buf.Pointer(cloneArgsSetTID, b.Data(ids))
	}
	c := b.Call(b.arena.arch.Sys.Clone3, buf, sys.SizeofCloneArgs)
	c.flags |= arch.FlagClone
	c.child = child
	return c
}

// Offsets in struct clone_args.
const (
	cloneArgsStack      = 40
	cloneArgsSetTID     = 64
	cloneArgsSetTIDSize = 72
)

// CallError says which call of a batch failed in which task. It unwraps to the unix.Errno, if it was one.
type CallError struct {
	Tid    int
	Name   string // of the system call
	Index  int    // in its batch, from 0
	Note   string
	Result int64
	Err    unix.Errno // 0: the result was not the expected one
	Expect uint64
}

func (e *CallError) Error() string {
	what := fmt.Sprintf("returned %#x, expected %#x", uint64(e.Result), e.Expect)
	if e.Err != 0 {
		what = fmt.Sprintf("%s (%s)", unix.ErrnoName(e.Err), e.Err.Error())
	}
	note := ""
	if e.Note != "" {
		note = " for " + e.Note
	}
	return fmt.Sprintf("pid %d: call %d of a batch, %s%s: %s", e.Tid, e.Index, e.Name, note, what)
}

// SinceError is a CallError of a call that needs a later kernel.
type SinceError struct {
	CallError
	Linux string // the first version that knows it
}

func (e *SinceError) Error() string { return e.CallError.Error() + ", which needs Linux " + e.Linux }
func (e *SinceError) Unwrap() error { return &e.CallError }

// ExitCode is that of a kernel that lacks something.
func (e *SinceError) ExitCode() int { return 5 }

// Hint says what helps.
func (e *SinceError) Hint() string { return "restore on Linux " + e.Linux + " or later" }

// failure is the error of a call that has failed.
func (c *Call) failure(tid, index int, a *arch.Arch) error {
	e := CallError{Tid: tid, Name: c.abi(a).SyscallName(c.nr), Index: index, Note: c.note, Result: c.result, Err: c.Errno(), Expect: c.expect}
	if c.since != "" && (e.Err == unix.ENOSYS || e.Err == unix.EINVAL) {
		return &SinceError{e, c.since}
	}
	return &e
}

func (e *CallError) Unwrap() error {
	if e.Err == 0 {
		return nil
	}
	return e.Err
}
