package memory

import (
	"testing"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
)

// TestLeaveOfItsSize: what a task leaves ends where its program's addresses end. A task of a 32-bit program may not unmap more
// (munmap then fails); that such calls name no more shows in a task of 64 bits, which keeps what is above.
func TestLeaveOfItsSize(t *testing.T) {
	needRoot(t)
	a := native(t)
	if a.Compat == nil {
		t.Skip("this architecture has no 32-bit programs")
	}
	for _, c := range []struct {
		name  string
		arch  *arch.Arch
		leave func(s *Space, b *tracee.Batch, keep [2]arch.Addr)
	}{
		{"space, 32 bits", a.Compat, (*Space).leave},
		{"space, 64 bits", a, (*Space).leave},
		{"bank, 32 bits", a.Compat, leaveForBank},
		{"bank, 64 bits", a, leaveForBank},
	} {
		t.Run(c.name, func(t *testing.T) {
			arena, err := tracee.NewArena(a, 4, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			defer arena.Close()
			tracer := tracee.NewTracer()
			defer tracer.Close()
			task, err := tracer.Spawn(arena, compatLow)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := tracer.KillAll(); err != nil {
					t.Error(err)
				}
			}()
			b := arena.NewBatch()
			c.leave(&Space{arch: c.arch}, b, [2]arch.Addr{compatLow, compatLow + arch.Addr(arena.Size())})
			if err := tracer.RunOne(task, b); err != nil {
				t.Fatal(err)
			}
			list, err := procfs.ReadMaps(task.Tid)
			if err != nil {
				t.Fatal(err)
			}
			low, high := 0, 0 // of the arena, its code and its slots
			for i := range list {
				switch v := &list[i]; {
				case v.Start < a.Compat.TaskSize:
					low++
				case v.Start < a.TaskSize: // not [vsyscall]
					high++
				}
			}
			if low != 2 || (high != 0) != (c.arch != a) {
				t.Errorf("%d mappings below %v and %d above are left", low, a.Compat.TaskSize, high)
			}
		})
	}
}

func leaveForBank(s *Space, b *tracee.Batch, keep [2]arch.Addr) {
	_ = (&Bank{space: s}).Layout(nil, b, keep) // of no area: nothing to fail
}
