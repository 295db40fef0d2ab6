package object

import (
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// earlyWorkers open files at the same time as the restore's own thread: the kernel walks paths on several processors at once.
	earlyWorkers = 2
	// earlyAhead is how many are open before the restore takes them. They count as descriptors.
	earlyAhead = 64
	// earlyLeast is how many there must be for it to be worth it.
	earlyLeast = 32
)

// early is the opening of files by others than the restore's own thread, ahead of it and in any order. Their kind is Independent. The
// restore takes them in the order of the stream, so that errors come up, and numbers are given, as if it had opened each itself.
type early struct {
	made []chan opened // by index into Plan.Objects; nil: not opened early, or taken
	stop chan struct{}
	room chan struct{} // a token for each that is open and not taken
	wait sync.WaitGroup
}

type opened struct {
	fd  int
	err error
}

// openEarly starts it where that is possible, else returns nil.
func (r *Restorer) openEarly() *early {
	if r.Elsewhere {
		return nil
	}
	var list []int
	for i := range r.Plan.Objects {
		if k := r.Plan.Objects[i].kind; k.open != nil {
			list = append(list, i)
		}
	}
	if len(list) < earlyLeast {
		return nil
	}
	e := &early{made: make([]chan opened, len(r.Plan.Objects)), stop: make(chan struct{}), room: make(chan struct{}, earlyAhead)}
	for _, i := range list {
		e.made[i] = make(chan opened, 1)
	}
	next := make(chan int)
	e.wait.Add(1 + earlyWorkers)
	go func() {
		defer e.wait.Done()
		defer close(next)
		for _, i := range list {
			select {
			case e.room <- struct{}{}:
			case <-e.stop:
				return
			}
			next <- i
		}
	}()
	for range earlyWorkers {
		go func() {
			defer e.wait.Done()
			for i := range next {
				o := &r.Plan.Objects[i]
				fd, err := o.kind.open(r, o.Ref, o.State)
				e.made[i] <- opened{fd, err}
			}
		}()
	}
	return e
}

// take waits for object i. ok: it was, or was to be, opened early.
func (e *early) take(i int) (fd int, ok bool, err error) {
	if e == nil || e.made[i] == nil {
		return -1, false, nil
	}
	got := <-e.made[i]
	e.made[i] = nil
	<-e.room
	return got.fd, true, got.err
}

// end closes what was opened and not taken.
func (e *early) end() {
	if e == nil {
		return
	}
	close(e.stop)
	e.wait.Wait()
	for _, c := range e.made {
		select {
		case got := <-c:
			if got.err == nil {
				_ = unix.Close(got.fd)
			}
		default: // not opened
		}
	}
}
