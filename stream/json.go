package stream

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"
)

// The JSON form of a stream is one object a line: header, records, end. It
// loses nothing: FromJSON makes of ToJSON's output the stream it came from, byte
// for byte. cr-stream(5) specifies it.

// ToJSON writes the stream read from r to w in its JSON form. When the stream is
// bad, the output ends with a line for an error record that says so, and the
// error is returned.
func ToJSON(r io.Reader, w io.Writer) error {
	out := bufio.NewWriterSize(w, writeBuffer)
	err := toJSON(r, out)
	if err != nil {
		state := errorState{Text: err.Error()}
		var remote *RemoteError
		if errors.As(err, &remote) {
			state = errorState{Text: remote.Text, Errno: int32(remote.Errno), Object: remote.Object}
		}
		if line, err := errorLine(state); err == nil {
			_, _ = out.Write(line) // a sticky error: Flush returns it
		}
	}
	if flushErr := out.Flush(); flushErr != nil && err == nil {
		err = fmt.Errorf("writing JSON: %w", flushErr)
	}
	return err
}

func errorLine(state errorState) ([]byte, error) {
	state.Text, state.Object = clip(state.Text, maxErrorText), clip(state.Object, maxErrorText)
	meta, err := EncodeMeta(&state)
	if err != nil {
		return nil, err
	}
	return appendJSON(nil, &Record{Type: TypeError, Meta: meta})
}

func toJSON(r io.Reader, w *bufio.Writer) error {
	in, err := NewReader(r)
	if err != nil {
		return err
	}
	rec := in.HeaderRecord()
	var line []byte
	for {
		if line, err = appendJSON(line[:0], rec); err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		if rec, err = in.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	end := in.rec // Next left the place behind it
	meta, err := EncodeMeta(&endState{Count: in.count - 1, Sum: in.sum})
	if err != nil {
		return err
	}
	end.Type, end.Meta = TypeEnd, meta
	if line, err = appendJSON(line[:0], &end); err != nil {
		return err
	}
	if _, err := w.Write(line); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// JSON returns the record's line of the JSON form, without the newline.
func (r *Record) JSON() ([]byte, error) {
	line, err := appendJSON(nil, r)
	if err != nil {
		return nil, err
	}
	return line[:len(line)-1], nil
}

// appendJSON appends the line of a record.
func appendJSON(b []byte, r *Record) ([]byte, error) {
	if err := CheckMeta(r.Meta); err != nil {
		return nil, r.fail(err)
	}
	b = append(b, '{')
	if r.Type == TypeHeader {
		b = append(b, `"version":`...)
		b = strconv.AppendUint(b, Version, 10)
		b = append(b, ',')
	}
	b = append(b, `"type":"`...)
	b = append(b, r.Type...) // its bytes need no escape
	b = append(b, '"')
	if r.Ref != 0 {
		b = append(b, `,"ref":`...)
		b = strconv.AppendUint(b, uint64(r.Ref), 10)
	}
	if r.Flags&FlagOptional != 0 {
		b = append(b, `,"optional":true`...)
	}
	if r.Flags&FlagLZ4 != 0 {
		b = append(b, `,"lz4":true`...)
	}
	b = append(b, `,"meta":`...)
	b, err := appendJSONMeta(b, r.Meta)
	if err != nil {
		return nil, r.fail(err)
	}
	short, err := shortest(r.Meta)
	if err != nil {
		return nil, r.fail(err)
	}
	if !bytes.Equal(short, r.Meta) {
		b = append(b, `,"raw":"`...)
		b = base64.StdEncoding.AppendEncode(b, r.Meta)
		b = append(b, '"')
	}
	if len(r.Payload) > 0 {
		b = append(b, `,"payload":"`...)
		b = base64.StdEncoding.AppendEncode(b, r.Payload)
		b = append(b, '"')
	}
	return append(b, "}\n"...), nil
}

// json appends the next value of checked metadata as JSON.
func (d *decoder) json(b []byte) ([]byte, error) {
	t, err := d.next()
	if err != nil {
		return b, err
	}
	switch t.kind {
	case kindNil:
		b = append(b, "null"...)
	case kindBool:
		b = strconv.AppendBool(b, t.num == 1)
	case kindUint:
		b = strconv.AppendUint(b, t.num, 10)
	case kindInt:
		b = strconv.AppendInt(b, int64(t.num), 10)
	case kindFloat32:
		b = append(b, `{"$float32":"`...)
		b = appendFloatText(b, float64(math.Float32frombits(uint32(t.num))), t.num, 32)
		b = append(b, `"}`...)
	case kindFloat64:
		b = append(b, `{"$float64":"`...)
		b = appendFloatText(b, math.Float64frombits(t.num), t.num, 64)
		b = append(b, `"}`...)
	case kindString:
		if utf8.Valid(t.data) {
			return appendJSONString(b, t.data), nil
		}
		b = append(b, `{"$string":"`...)
		b = base64.StdEncoding.AppendEncode(b, t.data)
		b = append(b, `"}`...)
	case kindBytes:
		b = append(b, `{"$bytes":"`...)
		b = base64.StdEncoding.AppendEncode(b, t.data)
		b = append(b, `"}`...)
	case kindRef:
		b = append(b, `{"$ref":[`...)
		b = strconv.AppendUint(b, t.num, 10)
		b = append(b, `,"`...)
		b = append(b, t.data...)
		b = append(b, `"]}`...)
	case kindArray:
		b = append(b, '[')
		for i := uint64(0); i < t.num; i++ {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = d.json(b); err != nil {
				return b, err
			}
		}
		b = append(b, ']')
	case kindMap:
		b = append(b, '{')
		for i := uint64(0); i < t.num; i++ {
			if i > 0 {
				b = append(b, ',')
			}
			key, err := d.next()
			if err != nil {
				return b, err
			}
			b = appendJSONString(b, key.data)
			b = append(b, ':')
			if b, err = d.json(b); err != nil {
				return b, err
			}
		}
		b = append(b, '}')
	}
	return b, nil
}

// appendJSONMeta appends checked metadata as JSON.
func appendJSONMeta(b, meta []byte) ([]byte, error) {
	d := newDecoder(meta)
	defer d.done()
	return d.json(b)
}

// appendFloatText appends the shortest text that names this float and no other;
// of a NaN, all bits.
func appendFloatText(b []byte, f float64, bits uint64, size int) []byte {
	if math.IsNaN(f) {
		return fmt.Appendf(b, "nan:%0*x", size/4, bits)
	}
	return strconv.AppendFloat(b, f, 'g', -1, size)
}

// appendJSONString appends valid UTF-8 as a JSON string. DEL and C1 control
// characters are escaped too: the form is made to be looked at.
func appendJSONString(b, s []byte) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < 0x20 || c == 0x7f:
			b = fmt.Appendf(b, `\u%04x`, c)
		case c == 0xc2 && s[i+1] < 0xa0: // U+0080 to U+009F
			b = fmt.Appendf(b, `\u%04x`, s[i+1])
			i++
		default:
			b = append(b, c)
		}
		i++
	}
	return append(b, '"')
}
