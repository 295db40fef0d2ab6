package stream

// concurrent is a step that edits records on several processors at once and
// emits them in their order.
type concurrent struct {
	newEdit func() func(*Record) error
	jobs    []*concurrentJob // begun and not emitted, oldest first
	idle    []*concurrentJob
	limit   int
}

// concurrentJob holds a copy of one record, for the time it is edited.
type concurrentJob struct {
	rec     Record
	meta    []byte
	payload []byte
	edit    func(*Record) error
	done    chan error
	running bool
}

// Concurrent returns a step that edits each record on its own, up to n of them
// at once. newEdit makes the functions that do it: each is used for one record
// at a time, and what it leaves in the record must stay valid until its next
// call. Records come out in the order they came in. The output does not depend
// on n. It holds up to 2n records in memory.
func Concurrent(n int, newEdit func() func(*Record) error) Step {
	if n < 2 {
		edit := newEdit()
		return StepFunc(func(r *Record, emit Emit) error {
			if err := edit(r); err != nil {
				return err
			}
			return emit(r)
		})
	}
	return &concurrent{newEdit: newEdit, limit: 2 * n}
}

// smallPayload is up to where a payload is edited at once: handing it to
// another processor would cost more.
const smallPayload = 4 << 10

func (c *concurrent) Record(r *Record, emit Emit) error {
	for len(c.jobs) >= c.limit {
		if err := c.oldest(emit); err != nil {
			return err
		}
	}
	j := c.job()
	j.meta = append(j.meta[:0], r.Meta...)
	j.payload = append(j.payload[:0], r.Payload...)
	j.rec = *r
	j.rec.Meta, j.rec.Payload = j.meta, j.payload
	c.jobs = append(c.jobs, j)
	if len(r.Payload) <= smallPayload {
		return j.edit(&j.rec)
	}
	j.running = true
	go func() { j.done <- j.edit(&j.rec) }()
	return nil
}

// End emits what is left.
func (c *concurrent) End(emit Emit) error {
	for len(c.jobs) > 0 {
		if err := c.oldest(emit); err != nil {
			return err
		}
	}
	return nil
}

func (c *concurrent) job() *concurrentJob {
	if n := len(c.idle); n > 0 {
		j := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return j
	}
	return &concurrentJob{edit: c.newEdit(), done: make(chan error, 1)}
}

// oldest waits for the oldest record and emits it.
func (c *concurrent) oldest(emit Emit) error {
	j := c.jobs[0]
	c.jobs = append(c.jobs[:0], c.jobs[1:]...)
	if j.running {
		j.running = false
		if err := <-j.done; err != nil {
			return err
		}
	}
	if err := emit(&j.rec); err != nil {
		return err
	}
	c.idle = append(c.idle, j)
	return nil
}
