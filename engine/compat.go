package engine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
)

// 32-bit programs of a 64-bit kernel (arch.Compat). What 32-bit code sets by calls of its own is set again by such calls,
// which 64-bit code can make too (the routine's FlagCompat), and the registers of all tasks have the same form. But what
// execve(2) fixes, the end of the address space above all, only execve sets (arch/x86/kernel/process_64.c,
// set_personality_ia32): a process whose program is of another mode than its creator's executes a stub of its own mode
// as soon as it has been made. Its children inherit the mode from it.

// compat is what a restore of such a tree holds.
type compat struct {
	first int                 // the mode of the first task, which all descend from: 1 where all programs are of 32 bits
	stubs [2]*tracee.StubFile // of 64 and of 32 bits
	fds   [2]int              // their numbers in the pool
	arena int                 // the arena's number in the pool
}

// planCompat finds out whether the tree has 32-bit code, and checks what that needs.
func (rs *restoration) planCompat() error {
	need := false
	for _, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		s, err := object.State[signals.Sighand](rs.plan, p.state.Sighand)
		if err != nil {
			return err
		}
		need = need || p.space.MM.Compat || s.NeedsCompat()
		for _, t := range p.threads {
			need = need || t.state.NeedsCompat() || rs.arch.Mode(t.regset(arch.NTPRStatus)) != rs.arch
		}
	}
	if !need {
		return nil
	}
	if rs.arch.Compat == nil {
		return object.BadImagef("32-bit code on %s", rs.arch.Name)
	}
	rs.compat = &compat{first: 1}
	for _, p := range rs.procs {
		if !p.state.Zombie && !p.space.MM.Compat {
			rs.compat.first = 0
		}
	}
	for _, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		if p.state.ExitSignal != int32(unix.SIGCHLD) && rs.switches(p.birth) {
			// execve would reset it (de_thread in fs/exec.c), as it did when the process executed its program.
			return object.BadImagef("process %d, whose program is of another mode than its creator's, sends signal %d at its end", p.state.PID, p.state.ExitSignal)
		}
		const unshared = unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_SIGHAND
		if p.birth.Share&unshared != 0 && rs.switches(p.birth) {
			return object.BadImagef("process %d, whose program is of another mode than its creator's, shares with it what execve(2) ends", p.state.PID)
		}
		for b := p.birth; b != nil; b = b.Creator {
			if rs.switches(b) {
				p.space.Copied()
			}
		}
	}
	return nil
}

// prepare makes the stubs, and finds out whether this kernel can run such a tree at all.
func (c *compat) prepare(native *arch.Arch) error {
	if c.stubs[1] != nil {
		return nil
	}
	for i, a := range []*arch.Arch{native, native.Compat} {
		var err error
		if c.stubs[i], err = tracee.NewStubFile(a); err != nil {
			return err
		}
	}
	err := c.stubs[1].Try()
	if errors.Is(err, tracee.ErrNoCompat) {
		return &object.Lacking{What: "32-bit programs, which the image has",
			Do: "use a kernel with CONFIG_IA32_EMULATION, not booted with ia32_emulation=off"}
	}
	return err
}

// open puts the stubs and the arena among the descriptors that tasks inherit until they have their own.
func (c *compat) open(rs *restoration) error {
	if err := c.prepare(rs.arch); err != nil {
		return err
	}
	pool := func(fd int) (int, error) {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("duplicating a descriptor: %w", err)
		}
		return rs.r.Pool(dup)
	}
	var err error
	for i, s := range c.stubs {
		if c.fds[i] == 0 {
			if c.fds[i], err = pool(s.Descriptor()); err != nil {
				return err
			}
		}
	}
	rs.arena.Program = c.stubs[c.first].Program()
	c.arena, err = pool(rs.arena.Descriptor())
	return err
}

func (c *compat) close() {
	for _, s := range c.stubs {
		if s != nil {
			_ = s.Close() // a memfd
		}
	}
}

// mode returns 1 for a process with a 32-bit program, else 0. A stand-in or zombie is as its creator.
func (rs *restoration) mode(b *tasks.Birth) int {
	for ; b != nil; b = b.Creator {
		if !b.Ghost() && !b.Process.Zombie {
			if rs.byPID[b.Process.PID].space.MM.Compat {
				return 1
			}
			return 0
		}
	}
	if rs.compat != nil {
		return rs.compat.first
	}
	return 0
}

// switches says whether a process executes a stub: its creator is of the other mode.
func (rs *restoration) switches(b *tasks.Birth) bool { return rs.mode(b) != rs.mode(b.Creator) }

// setMode has a process that was just made execute a stub where its creator is of the other mode.
func (rs *restoration) setMode(b *tasks.Birth) error {
	if rs.compat == nil || !rs.switches(b) {
		return nil
	}
	mode := rs.mode(b)
	return rs.tracer.Exec(rs.made[b], rs.compat.stubs[mode], rs.compat.fds[mode], rs.compat.arena)
}
