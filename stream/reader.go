package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	readBuffer = 64 << 10 // filled while small records come
	readHead   = 4 << 10  // filled after a large payload: less of the next one is copied
	readStep   = 64 << 10 // a buffer grows by what has arrived, from here
)

// Reader reads a stream and checks everything that can be checked without
// knowing the records' schemas. A record is returned only when its checksum was
// right, its metadata structurally sound and every reference in it to an object
// defined before, of the class it says. The memory of a Reader is bounded
// whatever the stream claims. Errors are sticky.
type Reader struct {
	r        io.Reader
	buf      []byte // buf[pos:end] was read and not consumed
	pos      int
	end      int
	big      bool // the last payload was large
	objects  objects
	header   *Header
	first    Record // the header record
	rec      Record
	head     head
	meta     []byte
	data     []byte
	get      func(t Type, n int) []byte
	known    func(Type) bool
	types    map[string]Type // interned names
	check    checker
	ref      func(id uint32, class []byte, at span) error
	sum      uint32
	checksum checksum
	count    uint64
	offset   int64 // consumed
	err      error
}

// NewReader reads magic, version and header. It refuses a framing it does not
// know; features that concern the content are for the caller to check, with
// Header().CheckFeatures: a filter passes them on.
func NewReader(r io.Reader) (*Reader, error) {
	s := &Reader{r: r, buf: make([]byte, readBuffer), types: make(map[string]Type)}
	s.ref = func(id uint32, class []byte, _ span) error { return s.objects.checkRef(id, class) }
	var prologue [prologueSize]byte
	if n, err := s.readFull(prologue[:]); err != nil {
		if string(prologue[:min(n, len(magic))]) != magic[:min(n, len(magic))] {
			err = ErrNotStream
		}
		if n == 0 && errors.Is(err, ErrTruncated) {
			err = fmt.Errorf("%w: it is empty", ErrTruncated)
		}
		return nil, s.place(err)
	}
	if string(prologue[:len(magic)]) != magic {
		return nil, s.place(ErrNotStream)
	}
	if v := binary.LittleEndian.Uint32(prologue[len(magic):]); v != Version {
		return nil, s.place(fmt.Errorf("%w %d: this program reads version %d", ErrVersion, v, Version))
	}
	s.offset = int64(prologueSize)
	s.sum = s.checksum.update(0, prologue[:])
	rec, err := s.record()
	if err != nil {
		return nil, s.place(err)
	}
	if rec.Type != TypeHeader {
		return nil, s.place(fmt.Errorf("%w: the first record is no header", ErrOrder))
	}
	if s.header, err = parseHeader(rec); err != nil {
		return nil, s.place(err)
	}
	s.first = *rec.Clone()
	s.took(rec)
	return s, nil
}

// Header returns the decoded header.
func (r *Reader) Header() *Header { return r.header }

// HeaderRecord returns the header record as it was read. It stays valid.
func (r *Reader) HeaderRecord() *Record { return &r.first }

// RequireKnown makes Next refuse a record of a type that known does not know,
// with ErrUnknownType, or skip it if it is optional. Types of the framing, link
// included, are always known. Filters do not call it: they pass everything on.
func (r *Reader) RequireKnown(known func(Type) bool) { r.known = known }

// SetBuffers lets the caller provide the memory for payloads. get is called with
// the type and the exact size of a payload that is about to be read (1 to
// MaxPayload bytes; neither has been verified yet) and returns a slice of at
// least that size, which the reader does not touch again after Next has
// returned, so that several payloads can be in use at once; or nil, for the
// reader's own buffer. When Next returns an error, a slice got for it is the
// caller's to reuse. A nil get goes back to the reader's own buffer.
func (r *Reader) SetBuffers(get func(t Type, n int) []byte) { r.get = get }

// Offset returns how many bytes of the stream have been consumed.
func (r *Reader) Offset() int64 { return r.offset }

// Next returns the next record. At the end it returns io.EOF, but only after a
// right end record and the proof that nothing follows it. An error record of the
// producer is returned as a *RemoteError. All else that can be wrong with the
// stream is a *FormatError; an error of the underlying reader is wrapped.
func (r *Reader) Next() (*Record, error) {
	for {
		if r.err != nil {
			return nil, r.err
		}
		rec, err := r.record()
		if err != nil {
			r.err = r.place(err)
			return nil, r.err
		}
		switch rec.Type {
		case TypeHeader:
			r.err = r.place(fmt.Errorf("%w: a second header", ErrOrder))
			return nil, r.err
		case TypeError:
			r.err = r.remote(rec)
			return nil, r.err
		case TypeEnd:
			r.err = r.finish(rec)
			return nil, r.err
		}
		if err := r.checkRefs(rec); err != nil {
			r.err = r.place(err)
			return nil, r.err
		}
		skip := false
		if r.known != nil && rec.Type != TypeLink && !r.known(rec.Type) {
			if rec.Flags&FlagOptional == 0 {
				r.err = r.place(fmt.Errorf("%w %q", ErrUnknownType, rec.Type))
				return nil, r.err
			}
			skip = true
		}
		r.took(rec)
		if !skip {
			return rec, nil
		}
	}
}

// record reads one record and checks all that its own bytes tell.
func (r *Reader) record() (*Record, error) {
	rec := &r.rec
	*rec = Record{Index: r.count, Offset: r.offset}
	if _, err := r.readFull(r.head.raw[:]); err != nil {
		return nil, err
	}
	h := &r.head
	h.parse()
	// Before the checksum can be verified the lengths must be believed: they
	// are limited, and memory grows only with what arrives.
	if h.metaLen > MaxMeta {
		return nil, fmt.Errorf("%w: %d bytes of metadata, the limit is %d", ErrLength, h.metaLen, MaxMeta)
	}
	if h.dataLen > MaxPayload {
		return nil, fmt.Errorf("%w: %d bytes of payload, the limit is %d", ErrLength, h.dataLen, MaxPayload)
	}
	name, nameOK := h.typeName()
	crc := r.checksum.update(0, h.raw[:crcOffset])
	var err error
	if r.meta, err = r.readGrow(r.meta, int(h.metaLen)); err != nil {
		return nil, err
	}
	rec.Meta = r.meta
	crc = r.checksum.update(crc, rec.Meta)
	if nameOK {
		rec.Type = r.intern(name)
	}
	if rec.Payload, err = r.readPayload(rec.Type, int(h.dataLen)); err != nil {
		return nil, err
	}
	r.big = h.dataLen >= readBuffer/2
	if crc = r.checksum.update(crc, rec.Payload); crc != h.crc {
		return nil, fmt.Errorf("%w: it says %08x, its bytes give %08x", ErrCorrupt, h.crc, crc)
	}
	if !nameOK {
		return nil, fmt.Errorf("%w: type %q", ErrMalformed, h.raw[:MaxType])
	}
	if h.reserved != 0 {
		return nil, fmt.Errorf("%w: %#x", ErrReserved, h.reserved)
	}
	rec.Flags = Flags(binary.LittleEndian.Uint16(h.raw[20:]))
	rec.Ref = binary.LittleEndian.Uint32(h.raw[24:])
	return rec, checkFraming(rec.Type, rec.Flags, rec.Ref, rec.Payload)
}

// intern returns the Type of that name without allocating for one seen before.
func (r *Reader) intern(name []byte) Type {
	if t, ok := r.types[string(name)]; ok {
		return t
	}
	t := Type(name)
	if len(r.types) < 1<<12 {
		r.types[string(t)] = t
	}
	return t
}

// checkRefs checks the metadata, the references in it and the object that the
// record defines.
func (r *Reader) checkRefs(rec *Record) error {
	if err := r.check.check(rec.Meta, r.ref); err != nil {
		return err
	}
	rec.checked = &rec.Meta[0] // a value takes a byte at least
	if rec.Ref != 0 {
		return r.objects.checkDefine(rec.Ref, rec.Type)
	}
	return nil
}

// took counts a record that was found right.
func (r *Reader) took(rec *Record) {
	if rec.Ref != 0 {
		r.objects.define(rec.Ref, rec.Type)
	}
	r.sum = r.checksum.update(r.sum, r.head.raw[:])
	r.count++
	r.offset += rec.Size()
}

// remote returns the error that an error record carries.
func (r *Reader) remote(rec *Record) error {
	remote, err := remote(rec.Meta)
	if err != nil {
		return r.place(err)
	}
	return remote
}

// finish checks the end record and that nothing follows it.
func (r *Reader) finish(rec *Record) error {
	var end endState
	if err := DecodeMeta(rec.Meta, &end); err != nil {
		return r.place(err)
	}
	if short, err := EncodeMeta(&end); err != nil || string(short) != string(rec.Meta) {
		return r.place(fmt.Errorf("%w: it is not in its shortest form", ErrMetadata))
	}
	if end.Count != r.count {
		return r.place(fmt.Errorf("%w: %d records came, the end says %d", ErrCorrupt, r.count, end.Count))
	}
	if end.Sum != r.sum {
		return r.place(fmt.Errorf("%w: of the whole stream: the end says %08x, the records give %08x", ErrCorrupt, end.Sum, r.sum))
	}
	r.count++
	r.offset += rec.Size()
	*rec = Record{Index: r.count, Offset: r.offset}
	var more [1]byte
	switch n, err := r.readFull(more[:]); {
	case n > 0:
		return r.place(ErrTrailing)
	case !errors.Is(err, ErrTruncated):
		return r.place(err)
	}
	return io.EOF
}

// place says where in the stream err came up. An error of the underlying reader
// is not the stream's fault and stays apart.
func (r *Reader) place(err error) error {
	var read *readError
	if errors.As(err, &read) {
		return fmt.Errorf("reading %s: %w", place(r.rec.Index, r.rec.Offset, r.rec.Type, 0), read.err)
	}
	return &FormatError{Index: r.rec.Index, Offset: r.rec.Offset, Type: r.rec.Type, Ref: r.rec.Ref, Err: err}
}

// readError is an error of the underlying reader.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// readFull fills b. It returns how many bytes came and, if they are too few,
// ErrTruncated or a *readError.
func (r *Reader) readFull(b []byte) (int, error) {
	n := copy(b, r.buf[r.pos:r.end])
	r.pos += n
	for n < len(b) {
		if len(b)-n >= readHead { // straight to where it belongs
			m, err := r.read(b[n:])
			n += m
			if err != nil && n < len(b) {
				return n, err
			}
			continue
		}
		limit := len(r.buf)
		if r.big {
			limit = readHead
		}
		m, err := r.read(r.buf[:limit])
		r.pos, r.end = 0, m
		m = copy(b[n:], r.buf[:m])
		r.pos = m
		n += m
		if err != nil && n < len(b) {
			return n, err
		}
	}
	return n, nil
}

// read reads at least a byte into b or returns an error.
func (r *Reader) read(b []byte) (int, error) {
	for range 100 {
		n, err := r.r.Read(b)
		if n < 0 || n > len(b) {
			return 0, &readError{errors.New("the reader returned an impossible count")}
		}
		if n > 0 {
			return n, nil // an error will come again
		}
		if errors.Is(err, io.EOF) {
			return 0, ErrTruncated
		}
		if err != nil {
			return 0, &readError{err}
		}
	}
	return 0, &readError{io.ErrNoProgress}
}

// readGrow reads n bytes into b, which it grows no faster than they arrive.
func (r *Reader) readGrow(b []byte, n int) ([]byte, error) {
	b = b[:0]
	for len(b) < n {
		have := len(b)
		step := min(n, max(cap(b), 2*have, readStep))
		if step > cap(b) {
			grown := make([]byte, have, step)
			copy(grown, b)
			b = grown
		}
		b = b[:step]
		if _, err := r.readFull(b[have:]); err != nil {
			return b[:0], err
		}
	}
	return b, nil
}

func (r *Reader) readPayload(t Type, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if r.get != nil && t != "" {
		if b := r.get(t, n); b != nil {
			if len(b) < n {
				panic(fmt.Sprintf("stream: a buffer of %d bytes for a payload of %d", len(b), n))
			}
			_, err := r.readFull(b[:n:n])
			return b[:n:n], err
		}
	}
	var err error
	r.data, err = r.readGrow(r.data, n)
	return r.data, err
}
