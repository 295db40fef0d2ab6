package stream

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Limits of a record. A reader refuses more before it allocates anything.
const (
	MaxPayload = 1 << 20 // bytes of payload, compressed or not
	MaxMeta    = 1 << 20 // bytes of metadata
	MaxType    = 20      // bytes of a type name
)

// Version is the format version this package reads and writes.
const Version = 1

// magic opens every stream. Like PNG's it holds a byte with the high bit set,
// both kinds of line ends and a DOS end-of-file, so that a channel that is not
// binary-safe is noticed at once.
const magic = "\x89CRS\r\n\x1a\n"

const (
	prologueSize = len(magic) + 4
	headSize     = 40
	crcOffset    = headSize - 4
)

// Type is the name of a record type on the wire: 1 to 20 bytes of [a-z0-9.-],
// the first a letter. What precedes its first dot is its class.
type Type string

// Types that belong to the framing itself.
const (
	TypeHeader Type = "header" // first record of every stream
	TypeLink   Type = "link"   // ties objects defined earlier; defines nothing
	TypeError  Type = "error"  // the producer failed; nothing follows
	TypeEnd    Type = "end"    // last record of a complete stream
)

// Class returns what precedes the first dot: "file" for "file.eventfd".
// References are checked against the class of the record that defines them.
func (t Type) Class() string {
	class, _, _ := strings.Cut(string(t), ".")
	return class
}

// Valid reports whether t can be written.
func (t Type) Valid() bool {
	if len(t) < 1 || len(t) > MaxType || !isLetter(t[0]) {
		return false
	}
	for i := 1; i < len(t); i++ {
		if !isClassByte(t[i]) && t[i] != '.' {
			return false
		}
	}
	return true
}

// framing reports whether t is one that only the framing may write.
func (t Type) framing() bool { return t == TypeHeader || t == TypeError || t == TypeEnd }

func isLetter(c byte) bool    { return 'a' <= c && c <= 'z' }
func isClassByte(c byte) bool { return isLetter(c) || '0' <= c && c <= '9' || c == '-' }

func validClass[S string | []byte](class S) bool {
	if len(class) < 1 || len(class) > MaxType || !isLetter(class[0]) {
		return false
	}
	for i := 1; i < len(class); i++ {
		if !isClassByte(class[i]) {
			return false
		}
	}
	return true
}

// Flags of a record. Bits that are not named here must be zero.
type Flags uint16

const (
	FlagOptional Flags = 1 << 0 // a reader that does not know the type may skip the record
	FlagLZ4      Flags = 1 << 1 // the payload is compressed: u32 raw length, then one lz4 block

	knownFlags = FlagOptional | FlagLZ4
)

// Record is one record as it travels. Meta and Payload of a record that a
// Reader returned are valid until its next Next; Clone keeps them.
type Record struct {
	Type    Type
	Flags   Flags
	Ref     uint32 // the object this record defines, 0 for none
	Meta    []byte // one msgpack value, structurally checked
	Payload []byte // as on the wire: see Data
	Index   uint64 // number of the record in its stream, the header being 0
	Offset  int64  // byte offset of the record in its stream

	checked *byte // the first of Meta when a Reader has checked that
}

// Clone returns a copy that shares no memory with r.
func (r *Record) Clone() *Record {
	c := *r
	c.checked = nil
	c.Meta = slices.Clone(r.Meta)
	c.Payload = slices.Clone(r.Payload)
	return &c
}

// String names the record for messages: "record 12 (file.eventfd #7) at byte 4711".
func (r *Record) String() string { return place(r.Index, r.Offset, r.Type, r.Ref) }

// Size returns the record's size on the wire in bytes.
func (r *Record) Size() int64 { return int64(headSize + len(r.Meta) + len(r.Payload)) }

// Decode stores the metadata in the struct that v points to. It is strict: a
// field of the metadata that the struct lacks is an error (it could be state
// that would be lost), and so are a field that the struct has without omitempty
// and the metadata lacks, a value of another kind, a number that does not fit
// and a null where no pointer or Ref takes it. Errors are *FormatError and wrap
// ErrMetadata.
func (r *Record) Decode(v any) error {
	decode := DecodeMeta
	if len(r.Meta) > 0 && r.checked == &r.Meta[0] {
		decode = func(meta []byte, v any) error { return decodeMeta(meta, v, false) }
	}
	if err := decode(r.Meta, v); err != nil {
		return r.fail(err)
	}
	return nil
}

// Value returns the metadata as a tree of values; see DecodeValue.
func (r *Record) Value() (any, error) {
	v, err := DecodeValue(r.Meta)
	if err != nil {
		return nil, r.fail(err)
	}
	return v, nil
}

// SetMeta replaces the metadata by the encoding of v: a struct, a value tree or
// Raw.
func (r *Record) SetMeta(v any) error {
	meta, err := EncodeMeta(v)
	if err != nil {
		return fmt.Errorf("encoding metadata of %s: %w", r, err)
	}
	r.Meta = meta
	return nil
}

// fail places err, which is about the record, in the stream.
func (r *Record) fail(err error) error {
	return &FormatError{Index: r.Index, Offset: r.Offset, Type: r.Type, Ref: r.Ref, Err: err}
}

// putHead writes the fixed header of the record but its checksum to head.
func (r *Record) putHead(head *[headSize]byte) {
	*head = [headSize]byte{}
	copy(head[:MaxType], r.Type)
	binary.LittleEndian.PutUint16(head[20:], uint16(r.Flags))
	binary.LittleEndian.PutUint32(head[24:], r.Ref)
	binary.LittleEndian.PutUint32(head[28:], uint32(len(r.Meta)))
	binary.LittleEndian.PutUint32(head[32:], uint32(len(r.Payload)))
}

// head is the fixed header of a record as read, before anything is believed.
type head struct {
	raw      [headSize]byte
	metaLen  uint32
	dataLen  uint32
	crc      uint32
	reserved uint16
}

func (h *head) parse() {
	h.reserved = binary.LittleEndian.Uint16(h.raw[22:])
	h.metaLen = binary.LittleEndian.Uint32(h.raw[28:])
	h.dataLen = binary.LittleEndian.Uint32(h.raw[32:])
	h.crc = binary.LittleEndian.Uint32(h.raw[36:])
}

// typeName returns the name field without its NUL padding; ok is false when the
// padding or the name is malformed.
func (h *head) typeName() (name []byte, ok bool) {
	name = h.raw[:MaxType]
	for len(name) > 0 && name[len(name)-1] == 0 {
		name = name[:len(name)-1]
	}
	return name, Type(name).Valid()
}

// checkLZ4 checks the frame of a compressed payload and returns its raw length.
func checkLZ4(payload []byte) (int, error) {
	if len(payload) < 5 {
		return 0, fmt.Errorf("%w: %d bytes are too few", ErrCompression, len(payload))
	}
	n := binary.LittleEndian.Uint32(payload)
	if n == 0 || n > MaxPayload {
		return 0, fmt.Errorf("%w: it claims %d raw bytes, the limit is %d", ErrCompression, n, MaxPayload)
	}
	return int(n), nil
}
