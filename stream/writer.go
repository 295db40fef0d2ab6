package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

const (
	writeBuffer = 64 << 10 // small records gather here
	bigPayload  = 8 << 10  // from here on a payload is written from where it lies
)

// VectorWriter is what a Writer's destination may implement to take a record's
// head and its payload in one call (writev(2)). It writes all of all buffers or
// returns an error.
type VectorWriter interface {
	WriteVector(bufs ...[]byte) error
}

// Writer writes a stream. It enforces the rules that a Reader checks, so that
// what it writes, a Reader accepts. Small records are buffered; a large payload
// is handed to the destination from where it lies, uncopied, within Put. Errors
// are sticky: after one, only Fail still does something.
type Writer struct {
	w        io.Writer
	vec      VectorWriter // w, if it is one
	buf      []byte       // not written yet
	objects  objects
	next     uint32 // candidate for NewRef
	sum      uint32
	checksum checksum
	count    uint64
	offset   int64
	check    checker
	enc      *encoder
	define   Record // what Put hands to put
	head     [headSize]byte
	held     *held // what Release writes
	ref      func(id uint32, class []byte, at span) error
	err      error // what the next call returns
	ioErr    error // set when bytes were lost: nothing more can be written
	done     bool  // the last record is written
}

// NewWriter begins a stream: it writes magic, version and the header record to
// its buffer. Requires is sorted.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Requires = append([]string(nil), h.Requires...)
	h.Require()
	meta, err := EncodeMeta(&h)
	if err != nil {
		return nil, fmt.Errorf("encoding header: %w", err)
	}
	return NewWriterFrom(w, &Record{Type: TypeHeader, Meta: meta})
}

// NewWriterFrom begins a stream with a header record taken from another, byte
// for byte.
func NewWriterFrom(w io.Writer, header *Record) (*Writer, error) {
	s := &Writer{w: w, next: 1, buf: make([]byte, 0, writeBuffer), enc: newEncoder()}
	s.vec, _ = w.(VectorWriter)
	s.ref = func(id uint32, class []byte, _ span) error { return s.objects.checkRef(id, class) }
	if header.Type != TypeHeader {
		return nil, s.fail(header, fmt.Errorf("%w: a stream begins with a header, not %q", ErrOrder, header.Type))
	}
	if _, err := parseHeader(header); err != nil {
		return nil, s.fail(header, err)
	}
	s.buf = append(s.buf, magic...)
	s.buf = binary.LittleEndian.AppendUint32(s.buf, Version)
	s.offset = int64(prologueSize)
	s.sum = s.checksum.update(0, s.buf)
	if err := s.put(header); err != nil {
		return nil, err
	}
	return s, nil
}

// NewRef returns an object number that is not in use. Numbers count from 1, past
// any that copied records have defined.
func (w *Writer) NewRef() uint32 {
	id := max(w.next, w.objects.max+1)
	if id > MaxRef {
		w.stick(fmt.Errorf("%w: no object number is left", ErrLength))
		return 0
	}
	w.next = id + 1
	return id
}

// Put writes a record. ref is the object that it defines, from NewRef, or 0.
// meta is what EncodeMeta takes. The payload is not kept: its buffer can be
// reused as soon as Put returns.
func (w *Writer) Put(t Type, ref uint32, meta any, payload []byte) error {
	return w.PutFlags(t, 0, ref, meta, payload)
}

// PutFlags is Put with flags: FlagOptional for a record that a reader without
// knowledge of its type may skip, FlagLZ4 for a payload that is compressed
// already.
func (w *Writer) PutFlags(t Type, flags Flags, ref uint32, meta any, payload []byte) error {
	if w.err != nil {
		return w.err
	}
	r := &w.define
	r.Type, r.Flags, r.Ref, r.Payload = t, flags, ref, payload
	var err error
	r.Meta, err = w.enc.appendMeta(r.Meta[:0], meta)
	if err == nil {
		err = w.Copy(r)
	} else {
		err = w.stick(w.fail(r, fmt.Errorf("encoding metadata: %w", err)))
	}
	r.Payload = nil
	return err
}

// Copy writes a record as it is, byte for byte.
func (w *Writer) Copy(r *Record) error {
	if w.err != nil {
		return w.err
	}
	if r.Type.framing() {
		return w.stick(w.fail(r, fmt.Errorf("%w: a %s record is not put", ErrOrder, r.Type)))
	}
	if w.held != nil {
		if w.hold(r) {
			return nil
		}
		this := *r
		this.Meta = append([]byte(nil), r.Meta...) // else that of what comes first
		if err := w.Release(); err != nil {
			return err
		}
		r = &this
	}
	return w.put(r)
}

// Link writes a link record, which ties objects that earlier records define:
// how cycles are closed.
func (w *Writer) Link(meta any) error { return w.Put(TypeLink, 0, meta, nil) }

// Fail writes an error record and flushes: the stream says why it ends here, and
// every reader stops with that text. It works after a Put that broke a rule, not
// after the destination failed or the stream has ended. text must say something;
// errno is a Linux error number or 0; object names what failed, or is empty.
func (w *Writer) Fail(text string, errno int, object string) error {
	if w.ioErr != nil {
		return w.ioErr
	}
	if w.done {
		return w.err
	}
	w.held = nil
	if text == "" {
		text = "failed"
	}
	state := errorState{Text: clip(text, maxErrorText), Errno: int32(errno), Object: clip(object, maxErrorText)}
	meta, err := EncodeMeta(&state)
	if err != nil {
		return w.stick(err)
	}
	return w.last(&Record{Type: TypeError, Meta: meta})
}

// End writes the end record and flushes. Without it a stream counts as
// truncated.
func (w *Writer) End() error {
	if err := w.Release(); err != nil {
		return err
	}
	meta, err := EncodeMeta(&endState{Count: w.count, Sum: w.sum})
	if err != nil {
		return w.stick(err)
	}
	return w.last(&Record{Type: TypeEnd, Meta: meta})
}

// last writes the last record of the stream.
func (w *Writer) last(r *Record) error {
	w.err = nil
	if err := w.put(r); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	w.done = true
	w.err = w.fail(r, fmt.Errorf("%w: the stream has ended", ErrOrder))
	return nil
}

// Flush hands everything written so far to the destination.
func (w *Writer) Flush() error {
	if w.ioErr != nil {
		return w.ioErr
	}
	if len(w.buf) == 0 {
		return nil
	}
	n, err := w.w.Write(w.buf)
	if err == nil && n != len(w.buf) {
		err = io.ErrShortWrite
	}
	w.buf = w.buf[:0]
	return w.lost(err)
}

// Offset returns how many bytes the stream has so far, buffered ones included.
func (w *Writer) Offset() int64 { return w.offset }

// Count returns how many records the stream has so far, the header included.
func (w *Writer) Count() uint64 { return w.count }

// put checks a record against all rules but those of order and writes it.
func (w *Writer) put(r *Record) error {
	if err := w.checkRecord(r); err != nil {
		return w.stick(w.fail(r, err))
	}
	head := &w.head
	r.putHead(head)
	crc := w.checksum.update(0, head[:crcOffset])
	crc = w.checksum.update(crc, r.Meta)
	crc = w.checksum.update(crc, r.Payload)
	binary.LittleEndian.PutUint32(head[crcOffset:], crc)

	if len(w.buf)+headSize+len(r.Meta) > writeBuffer {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	w.buf = append(w.buf, head[:]...)
	w.buf = append(w.buf, r.Meta...)
	if err := w.payload(r.Payload); err != nil {
		return err
	}
	w.sum = w.checksum.update(w.sum, head[:])
	w.count++
	w.offset += r.Size()
	if r.Ref != 0 {
		w.objects.define(r.Ref, r.Type)
	}
	return nil
}

// payload writes what follows the buffered head and metadata.
func (w *Writer) payload(p []byte) error {
	switch {
	case len(p) < bigPayload && len(w.buf)+len(p) <= writeBuffer:
		w.buf = append(w.buf, p...)
		return nil
	case w.vec != nil:
		err := w.vec.WriteVector(w.buf, p)
		w.buf = w.buf[:0]
		return w.lost(err)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	n, err := w.w.Write(p)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	return w.lost(err)
}

func (w *Writer) checkRecord(r *Record) error {
	if !r.Type.Valid() {
		return fmt.Errorf("%w: type %.40q", ErrMalformed, string(r.Type))
	}
	if len(r.Payload) > MaxPayload {
		return fmt.Errorf("%w: %d bytes of payload, the limit is %d", ErrLength, len(r.Payload), MaxPayload)
	}
	if err := checkFraming(r.Type, r.Flags, r.Ref, r.Payload); err != nil {
		return err
	}
	if err := w.check.check(r.Meta, w.ref); err != nil {
		return err
	}
	if r.Ref != 0 {
		return w.objects.checkDefine(r.Ref, r.Type)
	}
	return nil
}

func (w *Writer) fail(r *Record, err error) error {
	return &WriteError{Index: w.count, Offset: w.offset, Type: r.Type, Ref: r.Ref, Err: err}
}

// stick makes err what the following calls return.
func (w *Writer) stick(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}

// lost notes that the destination failed with err, if it is not nil.
func (w *Writer) lost(err error) error {
	if err == nil {
		return nil
	}
	w.ioErr = &WriteError{Index: w.count, Offset: w.offset, Err: err}
	w.err = w.ioErr
	return w.ioErr
}

// clip shortens s to n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// parseHeader checks and decodes a header record.
func parseHeader(r *Record) (*Header, error) {
	err := WalkRefs(r.Meta, func(Ref) error { return fmt.Errorf("%w: %w", ErrForwardRef, errNoObject) })
	if err != nil {
		return nil, err
	}
	// Loose: a later version may add a field that only informs. What a reader
	// must understand is named in requires.
	h := new(Header)
	if err := decodeMeta(r.Meta, h, true); err != nil {
		return nil, err
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	err = h.CheckFeatures(func(name string) bool { return !strings.HasPrefix(name, framingFeature) })
	if err != nil {
		return nil, err
	}
	return h, nil
}
