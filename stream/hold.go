package stream

// held is what a Writer keeps for later.
type held struct {
	records []Record
	limit   int
	size    int // bytes of metadata and payloads
	chunk   func() []byte
	free    []byte // what is left of the last chunk
	metas   []byte // and of the memory for metadata
	first   func() error
}

// Hold has the writer keep the records that it is given from here on, until
// [Writer.Release], or until they would be more than limit bytes. Then first
// writes what has to come before them, and they follow. So a source that must
// stand still while it is copied need not stand still while the copy is
// encoded, checked and written.
//
// chunk returns memory to keep them in, of any content and size but not empty,
// which belongs to the writer until Release has returned or Fail was called.
func (w *Writer) Hold(limit int, chunk func() []byte, first func() error) {
	w.held = &held{limit: limit, chunk: chunk, first: first}
}

// Holding reports whether nothing of what is kept has been written.
func (w *Writer) Holding() bool { return w.held != nil }

// Release writes what is kept.
func (w *Writer) Release() error {
	h := w.held
	if h == nil {
		return w.err
	}
	w.held = nil
	if w.err != nil {
		return w.err
	}
	if err := h.first(); err != nil {
		return w.stick(err)
	}
	for i := range h.records {
		if err := w.put(&h.records[i]); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps a copy of a record, if there is room.
func (w *Writer) hold(r *Record) bool {
	h := w.held
	n := len(r.Meta) + len(r.Payload)
	if h.size+n > h.limit {
		return false
	}
	h.size += n
	kept := *r
	kept.Meta = keep(&h.metas, r.Meta, func() []byte { return make([]byte, heldMetas) })
	kept.Payload = keep(&h.free, r.Payload, h.chunk)
	h.records = append(h.records, kept)
	return true
}

// heldMetas is how much memory metadata gets at a time: of pages it is a dozen bytes each.
const heldMetas = 4 << 10

// keep copies b into what is left of a piece of memory, or into a new one.
func keep(free *[]byte, b []byte, more func() []byte) []byte {
	if len(*free) < len(b) {
		if *free = more(); len(*free) < len(b) {
			*free = make([]byte, len(b))
		}
	}
	n := copy(*free, b)
	kept := (*free)[:n:n]
	*free = (*free)[n:]
	return kept
}
