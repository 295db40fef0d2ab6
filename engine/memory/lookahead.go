package memory

import (
	"runtime"
	"sync"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// What /proc says of the memory of hundreds of processes is read by a second thread, some processes ahead of what is made of it.

const (
	lookAheadFrom = 16 // processes; fewer are not worth a thread
	lookAheadMost = 64 // processes whose answers are kept at a time
)

// lookAhead reads ahead. A nil one has read nothing.
type lookAhead struct {
	answers chan answer
	coming  map[int]bool // threads whose answers have not been taken
}

// answer is what the files of /proc say of one address space.
type answer struct {
	tid    int
	maps   []procfs.VMA
	guards []Range
	huge   *[]Range
	err    error
}

type lookAheadKey struct{}

// LookAhead has the processes' mappings be read while Dump, which is then called for them in this order, is busy with others. end
// stops that: it comes before the tree is let go of.
func LookAhead(d *object.Dumper) (end func()) {
	type space struct {
		tid int
		end arch.Addr
	}
	var todo []space
	coming, seen := map[int]bool{}, map[kernelview.ID]bool{}
	for _, p := range d.Processes {
		if p.Zombie || p.View == nil || p.View.MM.V.ID == 0 || seen[p.View.MM.V.ID] {
			continue
		}
		if end := spaceEnd(d.Arch, p.View.MM.V.TaskSize.V); end != 0 {
			seen[p.View.MM.V.ID], coming[p.Leader().TID] = true, true
			todo = append(todo, space{p.Leader().TID, end})
		}
	}
	if len(todo) < lookAheadFrom || runtime.GOMAXPROCS(0) < 2 {
		return func() {}
	}
	l, err := object.Memo(d, lookAheadKey{}, func() (*lookAhead, error) {
		return &lookAhead{answers: make(chan answer, lookAheadMost), coming: coming}, nil
	})
	if err != nil {
		return func() {}
	}
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		defer close(l.answers)
		for _, s := range todo {
			select {
			case l.answers <- lookAt(s.tid, s.end):
			case <-stop:
				return
			}
		}
	})
	return func() {
		close(stop)
		done.Wait()
	}
}

// spaceEnd is where an address space of which the kernel view says that it ends there is taken to end, 0: not known.
func spaceEnd(a *arch.Arch, end arch.Addr) arch.Addr {
	switch {
	case end == 0:
		return 0
	case a.Compat != nil && end <= a.Compat.TaskSize:
		return a.Compat.TaskSize
	}
	return a.TaskSize
}

func lookAt(tid int, end arch.Addr) answer {
	a := answer{tid: tid}
	if a.guards, a.huge, a.err = guardsAndHuge(tid, end); a.err == nil {
		a.maps, a.err = procfs.ReadMaps(tid)
	}
	return a
}

// lookOf returns what LookAhead has read of the address space, or reads it.
func (m *mmDump) lookOf() answer {
	l, err := object.Memo(m.d, lookAheadKey{}, func() (*lookAhead, error) { return nil, nil })
	for err == nil && l != nil && l.coming[m.tid] {
		a, ok := <-l.answers
		if !ok {
			break
		}
		delete(l.coming, a.tid)
		if a.tid == m.tid {
			return a
		}
	}
	return lookAt(m.tid, m.arch.TaskSize)
}
