package memory

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

const (
	// fillWorkers write at the same time: the cost is in the kernel, which makes fresh pages.
	fillWorkers = 2
	// fillBuffers of maxPages each are in use at most. They must reach across two stripes, or only one worker works; and they are
	// what is read ahead while nothing can be written yet.
	fillBuffers = 48
	// A stripe of memory belongs to one worker, so that of two records with the same page the later wins, and so that a huge
	// page is touched by one of them only.
	stripeShift = 21
	// smallRecord is the length below which records are gathered, to be written by one call: a process of many threads has
	// thousands of a few pages each.
	smallRecord = 32 << 10
)

// Filler writes pages records into address spaces and shared memory. Put, Map, Buffer and Wait are for one goroutine; the writing
// is done by others. An error is returned by the next Put or by Wait.
//
// After Hold records may be put before the memory is there: they are kept, as many as there are buffers for. Then another goroutine
// calls Map for each address space, and Release, or Drop.
type Filler struct {
	r       *object.Restorer
	spaces  map[stream.Ref]*Space
	targets map[uint32]*target // by objref

	jobs   [fillWorkers]chan order
	small  [fillWorkers]order // gathered, not sent yet
	done   sync.WaitGroup
	free   chan []byte
	made   int
	lent   []byte // what Buffer gave last
	failed atomic.Pointer[error]
	ended  bool
	gate   chan struct{} // closed by Release and Drop; nil: there was no Hold
}

// target is where pages go: the memory of a task, or shared memory.
type target struct {
	space  *Space
	ranges []Range // of a bank: what may be written
	tid    int
	shm    *shmHandle

	once   sync.Once
	mem    *sys.FD // /proc/TID/mem, which writes where the mapping forbids it; opened when first wanted
	memErr error
}

// order is what a worker gets: jobs to be done in this order, whose data lie in one buffer.
type order struct {
	jobs []job
	load *load
}

// job is one piece of a record, for one worker.
type job struct {
	to   *target
	at   uint64
	data []byte
	// how the data lies in mappings: forced[i] says whether the next lengths[i] bytes go through /proc/PID/mem. Without
	// entries all of it does not.
	pieces []piece
}

type piece struct {
	length int
	forced bool
}

// load is a buffer in use by some orders.
type load struct {
	data   []byte
	orders atomic.Int32
}

// NewFiller starts the workers. Wait must be called, whatever happens.
func NewFiller(r *object.Restorer, spaces map[stream.Ref]*Space) *Filler {
	f := &Filler{r: r, spaces: spaces, targets: map[uint32]*target{}, free: make(chan []byte, fillBuffers)}
	for i := range f.jobs {
		f.jobs[i] = make(chan order, 2*fillBuffers)
		f.done.Add(1)
		go f.work(f.jobs[i])
	}
	return f
}

// Map says which task's memory is the address space ref: any live thread of it, after Layout has run.
func (f *Filler) Map(ref stream.Ref, tid int) error {
	space := f.spaces[ref]
	if space == nil {
		return object.BadImagef("object %d is not an address space", ref.ID)
	}
	if t := f.targets[ref.ID]; t != nil {
		t.tid = tid
		return nil
	}
	f.targets[ref.ID] = &target{space: space, tid: tid}
	return nil
}

// Hold has nothing written before Release. It is called before any Put. refs are the address spaces that Map will be called for.
func (f *Filler) Hold(refs []stream.Ref) error {
	f.gate = make(chan struct{})
	for _, ref := range refs {
		if err := f.Map(ref, 0); err != nil {
			return err
		}
	}
	return nil
}

// Release lets what was held be written: all Map calls have been made, and every object of the image is there.
func (f *Filler) Release() { close(f.gate) }

// errDropped is what Put returns after Drop.
var errDropped = errors.New("the memory to be filled will not be made")

// Drop forgets what was held.
func (f *Filler) Drop() {
	f.failed.CompareAndSwap(nil, &errDropped)
	close(f.gate)
}

// Await waits for Release where there was a Hold.
func (f *Filler) Await() error {
	if f.gate != nil {
		<-f.gate
	}
	if err := f.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Buffer is for stream.Reader.SetBuffers: it lets the reader put contents where the workers take them from, which saves a
// copy. It waits until a buffer is free.
func (f *Filler) Buffer(t stream.Type, n int) []byte {
	if t != object.TypePages || n > maxPages || n < smallRecord {
		return nil
	}
	if f.lent == nil {
		f.lent = f.buffer(maxPages)
	}
	return f.lent
}

// buffer returns n bytes of memory that give takes back.
func (f *Filler) buffer(n int) []byte {
	if n > maxPages {
		return make([]byte, n)
	}
	select {
	case b := <-f.free:
		return b[:n]
	default:
	}
	if f.made < fillBuffers {
		f.made++
		return make([]byte, maxPages)[:n]
	}
	return (<-f.free)[:n]
}

func (f *Filler) give(b []byte) {
	if cap(b) == maxPages {
		f.free <- b[:maxPages]
	}
}

// Put takes a pages record. Its memory is not used after the call unless it came from Buffer.
func (f *Filler) Put(rec *stream.Record) error {
	if err := f.failed.Load(); err != nil {
		return *err
	}
	var meta Pages
	if err := rec.Decode(&meta); err != nil {
		return object.BadImagef("%w", err)
	}
	data, err := rec.Data()
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return object.BadImagef("%v: no contents", rec)
	}
	to, err := f.target(meta.Of)
	if err != nil {
		return fmt.Errorf("%v: %w", rec, err)
	}
	var pieces []piece
	if to.space != nil {
		pieces, err = to.space.pieces(meta.Addr, uint64(len(data)))
		if err == nil && to.ranges != nil && !declared(to.ranges, meta.Addr, uint64(len(data))) {
			err = fmt.Errorf("pages at %#x, which nobody shares", meta.Addr)
		}
	} else {
		err = to.shm.holds(meta.Addr, uint64(len(data)), f.r.Plan.Header.PageSize)
	}
	if err != nil {
		return object.BadImagef("%v: %w", rec, err)
	}
	if len(data) < smallRecord && f.gather(job{to: to, at: meta.Addr, data: data, pieces: pieces}) {
		return nil
	}
	l := &load{}
	if f.lent != nil && &f.lent[0] == &data[0] {
		l.data, f.lent = f.lent, nil
	} else {
		l.data = f.buffer(len(data))
		copy(l.data, data)
		data = l.data[:len(data)]
	}
	f.share(job{to: to, at: meta.Addr, data: data, pieces: pieces}, l)
	return nil
}

// gather keeps a small record for later; false: it does not belong to one worker alone.
func (f *Filler) gather(j job) bool {
	w := j.at >> stripeShift % fillWorkers
	if (j.at+uint64(len(j.data))-1)>>stripeShift != j.at>>stripeShift {
		return false
	}
	o := &f.small[w]
	if o.load != nil && len(o.load.data)+len(j.data) > cap(o.load.data) {
		f.flush(int(w))
	}
	if o.load == nil {
		o.load = &load{data: f.buffer(maxPages)[:0]}
		o.load.orders.Store(1)
	}
	n := len(o.load.data)
	o.load.data = append(o.load.data, j.data...)
	j.data = o.load.data[n:]
	o.jobs = append(o.jobs, j)
	return true
}

// flush sends what was gathered for a worker.
func (f *Filler) flush(w int) {
	if o := f.small[w]; o.load != nil {
		f.small[w] = order{}
		f.jobs[w] <- o
	}
}

// memory opens /proc/TID/mem, once.
func (t *target) memory() (*sys.FD, error) {
	t.once.Do(func() { t.mem, t.memErr = sys.Open(procfs.Path(t.tid, "mem"), unix.O_RDWR, 0) })
	return t.mem, t.memErr
}

// target returns where contents of an object go.
func (f *Filler) target(ref stream.Ref) (*target, error) {
	if t := f.targets[ref.ID]; t != nil {
		return t, nil
	}
	if ref.Class != string(TypeShm) && ref.Class != TypeSegment.Class() {
		return nil, object.BadImagef("pages of object %d, which is no memory of a process", ref.ID)
	}
	if err := f.Await(); err != nil { // System V shared memory is made with the tasks
		return nil, err
	}
	h, err := object.Recall[shmHandle](f.r, ref)
	if err != nil {
		return nil, err
	}
	if h.fd < 0 {
		return nil, object.BadImagef("pages of System V shared memory that nobody ever attached")
	}
	t := &target{shm: h}
	f.targets[ref.ID] = t
	return t, nil
}

// pieces says how a range is to be written; an error when a part of it is not memory that contents can be written to.
func (s *Space) pieces(at, length uint64) ([]piece, error) {
	if !pageAligned(at|length, s.pageSize) || at+length < at {
		return nil, fmt.Errorf("pages at %#x are not aligned", at)
	}
	areas := s.covered(arch.Addr(at), arch.Addr(at+length))
	if areas == nil {
		return nil, fmt.Errorf("pages at %x-%x, where nothing is mapped", at, at+length)
	}
	var out []piece
	for i := range areas {
		v := &areas[i]
		if v.shared || v.part && v.name != s.arch.VDSO.Code {
			return nil, fmt.Errorf("pages at %x-%x, in mapping %s, which has no contents of its own", at, at+length, span(v.start, v.end))
		}
		n := int(min(uint64(v.end), at+length) - max(uint64(v.start), at))
		forced := v.part || v.firstProt()&unix.PROT_WRITE == 0
		if k := len(out); k > 0 && out[k-1].forced == forced {
			out[k-1].length += n
			continue
		}
		out = append(out, piece{n, forced})
	}
	return out, nil
}

func (h *shmHandle) holds(at, length uint64, pageSize int) error {
	size := (h.size + uint64(pageSize) - 1) &^ uint64(pageSize-1)
	if !pageAligned(at|length, pageSize) || at > size || length > size-at {
		return fmt.Errorf("pages at %#x of shared memory of %d bytes", at, h.size)
	}
	return nil
}

// share gives a record to the workers that own its stripes.
func (f *Filler) share(j job, l *load) {
	l.orders.Store(1)
	send := func(j job) {
		w := int(j.at >> stripeShift % fillWorkers)
		f.flush(w) // of two records with the same page the later wins
		f.jobs[w] <- order{[]job{j}, l}
	}
	for {
		stripeEnd := (j.at>>stripeShift + 1) << stripeShift
		if j.at+uint64(len(j.data)) <= stripeEnd {
			send(j)
			return
		}
		n := int(stripeEnd - j.at)
		head := j
		head.data = j.data[:n]
		head.pieces, j.pieces = cut(j.pieces, n)
		j.data, j.at = j.data[n:], stripeEnd
		l.orders.Add(1)
		send(head)
	}
}

// cut splits pieces behind n bytes.
func cut(pieces []piece, n int) (head, tail []piece) {
	for i, p := range pieces {
		if p.length >= n {
			head = append(head, piece{n, p.forced})
			if p.length > n {
				tail = append(tail, piece{p.length - n, p.forced})
			}
			return head, append(tail, pieces[i+1:]...)
		}
		head = append(head, p)
		n -= p.length
	}
	return head, nil
}

func (f *Filler) work(orders chan order) {
	defer f.done.Done()
	for o := range orders {
		if f.Await() == nil {
			if err := failpoint.After("restore.pages", writeJobs(o.jobs)); err != nil {
				f.failed.CompareAndSwap(nil, &err)
			}
		}
		if o.load.orders.Add(-1) == 0 {
			f.give(o.load.data)
		}
	}
}

// writeJobs writes several jobs, in their order and in as few calls as possible.
func writeJobs(jobs []job) error {
	for len(jobs) > 0 {
		n := 0
		for n < len(jobs) && n < sys.MaxIovec && jobs[n].to == jobs[0].to && jobs[n].plain() {
			n++
		}
		if n > 1 && writeTogether(jobs[:n]) {
			jobs = jobs[n:]
			continue
		}
		if err := jobs[0].write(); err != nil {
			return err
		}
		jobs = jobs[1:]
	}
	return nil
}

// plain says whether the whole job is for process_vm_writev(2).
func (j *job) plain() bool {
	return j.to.shm == nil && (len(j.pieces) == 0 || len(j.pieces) == 1 && !j.pieces[0].forced)
}

// writeTogether writes jobs by one call. After false, one by one, they tell what was wrong.
func writeTogether(jobs []job) bool {
	local := make([][]byte, len(jobs))
	remote := make([]sys.RemoteRange, len(jobs))
	want := 0
	for i := range jobs {
		local[i], remote[i] = jobs[i].data, sys.RemoteRange{Addr: arch.Addr(jobs[i].at), Len: len(jobs[i].data)}
		want += len(jobs[i].data)
	}
	n, err := sys.ProcessVMWritev(jobs[0].to.tid, local, remote)
	return err == nil && n == want
}

func (j *job) write() error {
	if j.to.shm != nil {
		if err := j.to.shm.write(j.data, j.at); err != nil {
			return fmt.Errorf("writing %d bytes at %#x of shared memory: %w", len(j.data), j.at, err)
		}
		return nil
	}
	at, data := j.at, j.data
	for _, p := range j.pieces {
		var err error
		if p.forced {
			var mem *sys.FD
			if mem, err = j.to.memory(); err == nil {
				err = pwriteAll(mem.Int(), data[:p.length], at)
			}
		} else {
			err = sys.Write(j.to.tid, arch.Addr(at), data[:p.length])
		}
		if err != nil {
			return fmt.Errorf("filling memory of pid %d at %#x: %w", j.to.tid, at, err)
		}
		at, data = at+uint64(p.length), data[p.length:]
	}
	return nil
}

// Wait waits until everything is written, and ends the workers. It returns the first error.
func (f *Filler) Wait() error {
	if !f.ended {
		f.ended = true
		for w, c := range f.jobs {
			f.flush(w)
			close(c)
		}
	}
	f.done.Wait()
	for _, t := range f.targets {
		_ = t.mem.Close() // its writes are not delayed
	}
	if err := f.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// pwriteAll writes all of b at offset of a descriptor.
func pwriteAll(fd int, b []byte, offset uint64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, int64(offset))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EIO
		}
		b, offset = b[n:], offset+uint64(n)
	}
	return nil
}
