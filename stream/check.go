package stream

import (
	"cmp"
	"errors"
	"io"
	"slices"
)

// Summary is what Check found in a stream.
type Summary struct {
	Header  Header
	Records uint64 // header and end included
	Objects int
	Size    int64       // bytes of the stream
	Raw     int64       // what Size would be with no payload compressed
	Types   []TypeCount // by type name
}

// TypeCount is the share of one record type.
type TypeCount struct {
	Type       Type
	Records    uint64
	Compressed uint64 // of them
	Meta       int64  // bytes of metadata
	Payload    int64  // bytes of payload as it travels
	Raw        int64  // bytes of payload decompressed
}

// maxTypes is how many types Check counts apart; the rest is counted under "*".
// A stream of nothing but names must not fill memory.
const maxTypes = 1 << 12

// Check reads a whole stream and checks all that can be checked without knowing
// the records' schemas, compressed payloads included. What it returns beside an
// error is what came before it.
func Check(r io.Reader) (s Summary, err error) {
	in, err := NewReader(r)
	if err != nil {
		return s, err
	}
	s.Header = *in.Header()
	types := make(map[Type]*TypeCount)
	var buf []byte
	defer func() {
		for _, c := range types {
			s.Types = append(s.Types, *c)
		}
		slices.SortFunc(s.Types, func(a, b TypeCount) int { return cmp.Compare(a.Type, b.Type) })
		s.Objects = in.objects.count
		s.Records = in.count
		s.Size = in.offset
		s.Raw += s.Size
	}()
	for {
		rec, err := in.Next()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return s, err
		}
		name := rec.Type
		if types[name] == nil && len(types) >= maxTypes {
			name = "*"
		}
		c := types[name]
		if c == nil {
			c = &TypeCount{Type: name}
			types[name] = c
		}
		data, err := rec.DataInto(buf)
		if err != nil {
			return s, err
		}
		c.Records++
		c.Meta += int64(len(rec.Meta))
		c.Payload += int64(len(rec.Payload))
		c.Raw += int64(len(data))
		if rec.Flags&FlagLZ4 != 0 {
			buf = data
			c.Compressed++
			s.Raw += int64(len(data) - len(rec.Payload))
		}
	}
}
