package stream

import (
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// Describe returns one line about the record, made from its metadata without
// knowing the schema, of at most width runes (0: no limit):
//
//	file.eventfd #7 count=3 flags=2 owner=task#4
//	pages mm=mm#3 start=0x7f1200000000 count=64 (262144 bytes, lz4 3512)
//
// Nothing in it can drive a terminal. Metadata that is not sound is described as
// such.
func (r *Record) Describe(width int) string {
	d := describer{limit: width}
	d.out = append(d.out, r.Type...)
	if r.Ref != 0 {
		d.out = append(d.out, " #"...)
		d.out = strconv.AppendUint(d.out, uint64(r.Ref), 10)
	}
	if r.Flags&FlagOptional != 0 {
		d.out = append(d.out, " (optional)"...)
	}
	var tail string
	if len(r.Payload) > 0 {
		tail = fmt.Sprintf(" (%d bytes)", len(r.Payload))
		if n, err := r.DataSize(); err == nil && r.Flags&FlagLZ4 != 0 {
			tail = fmt.Sprintf(" (%d bytes, lz4 %d)", n, len(r.Payload))
		}
	}
	if CheckMeta(r.Meta) != nil {
		return d.finish(" (malformed metadata)" + tail)
	}
	d.in = newDecoder(r.Meta)
	defer d.in.done()
	t := d.next()
	if t.kind == kindMap {
		for i := uint64(0); i < t.num && !d.full(); i++ {
			d.out = append(d.out, ' ')
			d.field()
		}
	} else {
		d.out = append(d.out, ' ')
		d.value(t)
	}
	return d.finish(tail)
}

// describer writes values of metadata that has been checked.
type describer struct {
	in    *decoder
	out   []byte
	limit int // runes
}

// full reports whether more would be cut off anyway; a rune has at most 4 bytes.
func (d *describer) full() bool { return d.limit > 0 && len(d.out) > 4*d.limit }

// next returns the next value; of metadata that was checked there is one.
func (d *describer) next() token {
	t, _ := d.in.next() // an error leaves nil
	return t
}

// field writes a field of a map.
func (d *describer) field() {
	key := d.next()
	if bare(key.data) {
		d.out = append(d.out, key.data...)
	} else {
		d.out = strconv.AppendQuote(d.out, string(key.data))
	}
	d.out = append(d.out, '=')
	d.value(d.next())
}

func (d *describer) value(t token) {
	switch t.kind {
	case kindNil:
		d.out = append(d.out, "null"...)
	case kindBool:
		d.out = strconv.AppendBool(d.out, t.num == 1)
	case kindUint:
		if t.num >= 1<<32 { // most likely an address or a mask
			d.out = append(d.out, "0x"...)
			d.out = strconv.AppendUint(d.out, t.num, 16)
		} else {
			d.out = strconv.AppendUint(d.out, t.num, 10)
		}
	case kindInt:
		d.out = strconv.AppendInt(d.out, int64(t.num), 10)
	case kindFloat32:
		d.out = strconv.AppendFloat(d.out, float64(math.Float32frombits(uint32(t.num))), 'g', -1, 32)
	case kindFloat64:
		d.out = strconv.AppendFloat(d.out, math.Float64frombits(t.num), 'g', -1, 64)
	case kindString:
		if bare(t.data) {
			d.out = append(d.out, t.data...)
		} else {
			d.out = strconv.AppendQuote(d.out, string(t.data))
		}
	case kindBytes:
		if len(t.data) <= 8 {
			d.out = hex.AppendEncode(append(d.out, "0x"...), t.data)
		} else {
			d.out = fmt.Appendf(d.out, "<%d bytes>", len(t.data))
		}
	case kindRef:
		d.out = append(d.out, t.data...)
		d.out = append(d.out, '#')
		d.out = strconv.AppendUint(d.out, t.num, 10)
	case kindArray, kindMap:
		d.container(t)
	}
}

func (d *describer) container(t token) {
	brackets := "[]"
	if t.kind == kindMap {
		brackets = "{}"
	}
	d.out = append(d.out, brackets[0])
	for i := uint64(0); i < t.num; i++ {
		if d.full() {
			return // whoever encloses it is full as well and asks for no more
		}
		if i > 0 {
			d.out = append(d.out, ' ')
		}
		if t.kind == kindMap {
			d.field()
		} else {
			d.value(d.next())
		}
	}
	d.out = append(d.out, brackets[1])
}

// bare reports whether a string needs no quotes.
func bare(s []byte) bool {
	for _, c := range s {
		switch {
		case isClassByte(c), 'A' <= c && c <= 'Z':
		case c == '_' || c == '.' || c == '/' || c == ':' || c == '@' || c == '+' || c == ',' || c == '%':
		default:
			return false
		}
	}
	return len(s) > 0
}

// finish appends tail and cuts what precedes it so that all fits the limit.
func (d *describer) finish(tail string) string {
	s := string(d.out)
	if d.limit <= 0 || utf8.RuneCountInString(s)+utf8.RuneCountInString(tail) <= d.limit {
		return s + tail
	}
	room := d.limit - utf8.RuneCountInString(tail) - 1
	if room < 1 { // no room for both
		room, tail = max(d.limit-1, 0), ""
	}
	n := 0
	for i := range s {
		if n == room {
			return s[:i] + "…" + tail
		}
		n++
	}
	return s + tail
}
