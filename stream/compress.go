package stream

import (
	"encoding/binary"
	"fmt"

	"github.com/pierrec/lz4/v4"
)

// lz4Head is the length of what precedes the lz4 block of a compressed payload:
// the raw length, little-endian.
const lz4Head = 4

// Data returns the record's payload as the producer had it: decompressed, if it
// travels compressed. An uncompressed one is returned as it is, not copied.
// Errors are *FormatError and wrap ErrCompression.
func (r *Record) Data() ([]byte, error) { return r.DataInto(nil) }

// DataInto is Data with a buffer for decompression to use: it is used when its
// capacity is enough. An uncompressed payload is returned as it is.
func (r *Record) DataInto(buf []byte) ([]byte, error) {
	if r.Flags&FlagLZ4 == 0 {
		return r.Payload, nil
	}
	n, err := checkLZ4(r.Payload)
	if err != nil {
		return nil, r.fail(err)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	got, err := lz4.UncompressBlock(r.Payload[lz4Head:], buf)
	if err != nil {
		return nil, r.fail(fmt.Errorf("%w: %w", ErrCompression, err))
	}
	if got != n {
		return nil, r.fail(fmt.Errorf("%w: it gives %d bytes and claims %d", ErrCompression, got, n))
	}
	return buf, nil
}

// DataSize returns the length of what Data returns, in bytes, without
// decompressing.
func (r *Record) DataSize() (int, error) {
	if r.Flags&FlagLZ4 == 0 {
		return len(r.Payload), nil
	}
	n, err := checkLZ4(r.Payload)
	if err != nil {
		return 0, r.fail(err)
	}
	return n, nil
}

// LZ4 compresses and decompresses the payloads of records. It keeps buffers and
// is not for concurrent use.
type LZ4 struct {
	c   lz4.Compressor
	buf []byte
}

// Compress replaces the record's payload by its lz4 form and sets FlagLZ4,
// unless it is compressed already or would not shrink: then the record stays as
// it was. The new payload is valid until the next call.
func (z *LZ4) Compress(r *Record) error {
	if r.Flags&FlagLZ4 != 0 || len(r.Payload) <= lz4Head || len(r.Payload) > MaxPayload || r.Type.framing() {
		return nil
	}
	if cap(z.buf) < MaxPayload {
		z.buf = make([]byte, MaxPayload)
	}
	// Room for no more than a result that is smaller than the payload.
	room := z.buf[:len(r.Payload)-1]
	binary.LittleEndian.PutUint32(room, uint32(len(r.Payload)))
	n, err := z.c.CompressBlock(r.Payload, room[lz4Head:])
	if err != nil || n == 0 {
		return nil //nolint:nilerr // the only error is that it does not fit: it would not shrink
	}
	r.Payload = room[:lz4Head+n]
	r.Flags |= FlagLZ4
	return nil
}

// Decompress replaces a compressed payload by its raw form and clears FlagLZ4.
// The new payload is valid until the next call.
func (z *LZ4) Decompress(r *Record) error {
	if r.Flags&FlagLZ4 == 0 {
		return nil
	}
	data, err := r.DataInto(z.buf)
	if err != nil {
		return err
	}
	z.buf = data[:cap(data)]
	r.Payload = data
	r.Flags &^= FlagLZ4
	return nil
}
