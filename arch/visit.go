package arch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// A visit executes system calls in somebody else's task, which must find its way home should the tracer die at any
// moment. The code and what it needs to go home are put into the zero tail behind the vdso's ELF file, where nothing
// of the task's own is, before its program counter is set to them. It maps some room, executes the table of calls in
// it, sleeps for half a second at most so that the tracer can stop it and look, unmaps the room, sets the signal mask and
// the general registers as they were, and jumps to where the task had been stopped. No step depends on a tracer.
//
// The room begins with a header of 64 bytes: how many entries there are, a word that is 1 when all are done, and the struct
// timeval of the sleep. With no entries the task goes home at once. Entries are of VisitEntrySize bytes:
//
//	entry + 0  nr      number of the call
//	      + 8  args    six words
//	      + 56 result
const (
	VisitCount     = 0
	VisitDone      = 8
	VisitSleep     = 16
	VisitEntries   = 64
	VisitEntrySize = 64

	visitSleepMicros = 500_000
)

// VisitCode is the code of visits.
type VisitCode struct {
	Code  []byte
	Entry int // offset at which a task maps the room and goes on to Next
	Next  int // offset at which it executes the table, once it has the room
	Leave int // offset at which it unmaps the room and goes home
	Size  int // of the code and the data behind it
	Room  int // bytes

	home func(regs []byte, mask uint64) ([]byte, error)
	// Base returns where the room is, from the registers of a task that is between Next and Leave.
	Base func(regs []byte) Addr
}

var errOddFlags = errors.New("its processor flags are such as no ordinary program sets")

// Home returns the code with the data by which a task goes home to regs, that is about to issue the call that
// was interrupted, and the signal mask. What it does not restore the calls leave alone: segments and floating point.
func (c *VisitCode) Home(regs []byte, mask uint64) ([]byte, error) { return c.home(regs, mask) }

// Header returns the header of the room for a number of entries.
func (c *VisitCode) Header(order binary.ByteOrder, entries int) []byte {
	b := make([]byte, VisitEntries)
	order.PutUint64(b[VisitCount:], uint64(entries))
	order.PutUint64(b[VisitSleep+8:], visitSleepMicros)
	return b
}

// Tail returns the offset, within a vdso's mapping, of the room behind the ELF file, aligned to 16. left says that it holds
// what an earlier visit has left there; anything else in it is an error.
func (c *VisitCode) Tail(image []byte) (at int, left bool, err error) {
	end, err := elfEnd(image)
	if err != nil {
		return 0, false, fmt.Errorf("looking for room behind the vdso: %w", err)
	}
	end = (end + 15) &^ 15
	if end+c.Size > len(image) {
		return 0, false, errors.New("looking for room behind the vdso: there is too little")
	}
	const own = 64 // enough to know our own code by
	left = bytes.Equal(image[end:end+own], c.Code[:own])
	rest := image[end:]
	if left {
		rest = rest[c.Size:]
	}
	for _, b := range rest {
		if b != 0 {
			return 0, false, errors.New("looking for room behind the vdso: somebody uses it")
		}
	}
	return end, left, nil
}
