package stream

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ErrJSON says that a JSON form is malformed.
var ErrJSON = errors.New("malformed JSON form")

// maxLine bounds a line of the JSON form: metadata whose every byte is escaped
// to six, its raw form and a payload.
const maxLine = 6*MaxMeta + 2*MaxMeta + 2*MaxPayload

// FromJSON writes the stream whose JSON form is read from r to w. The lines may
// have been edited, removed or added; the end record is made anew, but its line
// must be there and be the last. A line whose "raw" no longer says what its
// "meta" says has been edited: then meta counts. Errors are reported as Filter
// does, those of the JSON as *FormatError whose Index is the number of the line,
// from 0, and Offset its first byte; they wrap ErrJSON.
func FromJSON(r io.Reader, w io.Writer) error {
	f := filter{w: w}
	err := fromJSON(r, &f)
	if err != nil {
		f.fail(err)
	}
	return err
}

func fromJSON(r io.Reader, f *filter) error {
	in := lineReader{r: bufio.NewReaderSize(r, readBuffer)}
	for {
		line, err := in.next()
		at := Record{Index: in.count - 1, Offset: in.start}
		if errors.Is(err, io.EOF) {
			at.Index, at.Offset = in.count, in.offset
			return at.fail(fmt.Errorf("%w: no line for the end record", ErrTruncated))
		}
		if err != nil {
			return err
		}
		rec, err := parseLine(line)
		if err != nil {
			return at.fail(fmt.Errorf("%w: %w", ErrJSON, err))
		}
		rec.Index, rec.Offset = at.Index, at.Offset
		switch rec.Type {
		case TypeEnd:
			return in.finish(f)
		case TypeError:
			remote, err := remote(rec.Meta)
			if err != nil {
				return rec.fail(err)
			}
			return remote
		}
		if err := f.emit(rec); err != nil {
			var write *WriteError
			if errors.As(err, &write) && (f.out == nil || f.out.ioErr == nil) {
				return rec.fail(write.Err) // a rule is broken by the line, not by us
			}
			return err
		}
	}
}

// lineReader reads lines of limited length.
type lineReader struct {
	r      *bufio.Reader
	line   []byte
	count  uint64 // lines read
	start  int64  // where the last one begins
	offset int64  // where the next one begins
}

// next returns the next line that is not blank, without its newline.
func (l *lineReader) next() ([]byte, error) {
	for {
		l.line = l.line[:0]
		var err error
		for {
			var part []byte
			part, err = l.r.ReadSlice('\n')
			if len(l.line)+len(part) > maxLine {
				at := Record{Index: l.count, Offset: l.offset}
				return nil, at.fail(fmt.Errorf("%w: a line has more than %d bytes", ErrLength, maxLine))
			}
			l.line = append(l.line, part...)
			if !errors.Is(err, bufio.ErrBufferFull) {
				break
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("reading JSON: %w", err)
		}
		l.start = l.offset
		l.offset += int64(len(l.line))
		if text := bytes.TrimSpace(l.line); len(text) > 0 {
			l.count++
			return text, nil
		}
		if err != nil {
			return nil, io.EOF
		}
		l.count++
	}
}

// finish checks that nothing follows the line of the end record, and writes it.
func (l *lineReader) finish(f *filter) error {
	switch _, err := l.next(); {
	case err == nil:
		at := Record{Index: l.count - 1, Offset: l.start}
		return at.fail(ErrTrailing)
	case !errors.Is(err, io.EOF):
		return err
	case f.out == nil:
		return new(Record).fail(fmt.Errorf("%w: the first line is no header", ErrOrder))
	}
	return f.out.End()
}

// parseLine returns the record that a line stands for. It uses the memory of
// line.
func parseLine(line []byte) (*Record, error) {
	if !utf8.Valid(line) {
		return nil, errors.New("it is not UTF-8")
	}
	line, payload, err := cutPayload(line)
	if err != nil {
		return nil, err
	}
	p := jsonParser{d: json.NewDecoder(bytes.NewReader(line))}
	p.d.UseNumber()
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	if _, err = p.d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	m, ok := v.(Map)
	if !ok {
		return nil, errors.New("it is not an object")
	}
	rec := new(Record)
	if err := p.fields(rec, m); err != nil {
		return nil, err
	}
	if len(payload) > 0 {
		if len(rec.Payload) > 0 {
			return nil, errors.New(`key "payload" occurs twice`)
		}
		rec.Payload = payload
	}
	return rec, nil
}

// cutPayload takes a payload that is the last member of a line out of it, as
// ToJSON writes it: most bytes of a stream are there, and the general parser
// takes twenty times as long. `,"payload":"` can only be the beginning of a
// member (in a string its quotes would have backslashes), and what closes the
// line after it can only close the object that it is a member of.
func cutPayload(line []byte) (rest, payload []byte, err error) {
	const begin, end = `,"payload":"`, `"}`
	if !bytes.HasSuffix(line, []byte(end)) {
		return line, nil, nil
	}
	body := line[:len(line)-len(end)]
	at := bytes.LastIndexByte(body, '"') + 1
	text := body[at:]
	if !bytes.HasSuffix(body[:at], []byte(begin)) || bytes.IndexByte(text, '\\') >= 0 {
		return line, nil, nil
	}
	n, err := base64.StdEncoding.Strict().Decode(text, text)
	if err != nil {
		return nil, nil, fmt.Errorf("member payload: %w", err)
	}
	i := at - len(begin)
	return append(line[:i:i], '}'), text[:n:n], nil
}

// fields fills the record from the members of a line.
func (p *jsonParser) fields(rec *Record, m Map) error {
	var raw []byte
	var version, ok bool
	for _, f := range m {
		ok = true
		switch f.Name {
		case "version":
			version = true
			if f.Value != uint64(Version) {
				return fmt.Errorf("version %v is unknown", f.Value)
			}
		case "type":
			var s string
			s, ok = f.Value.(string)
			rec.Type = Type(s)
		case "ref":
			var n uint64
			n, ok = f.Value.(uint64)
			if ok = ok && n <= MaxRef; ok {
				rec.Ref = uint32(n)
			}
		case "optional", "lz4":
			flag := FlagOptional
			if f.Name == "lz4" {
				flag = FlagLZ4
			}
			var set bool
			if set, ok = f.Value.(bool); set {
				rec.Flags |= flag
			}
		case "meta":
			meta, err := appendValue(nil, f.Value)
			if err != nil {
				return fmt.Errorf("member meta: %w", err)
			}
			rec.Meta = meta
		case "raw", "payload":
			var s string
			if s, ok = f.Value.(string); !ok {
				break
			}
			b, err := base64.StdEncoding.Strict().DecodeString(s)
			if err != nil {
				return fmt.Errorf("member %s: %w", f.Name, err)
			}
			if f.Name == "raw" {
				raw = b
			} else {
				rec.Payload = b
			}
		default:
			return fmt.Errorf("member %q is unknown", f.Name)
		}
		if !ok {
			return fmt.Errorf("member %s has the value %.40v", f.Name, f.Value)
		}
	}
	if len(rec.Meta) == 0 {
		return errors.New("member meta is missing")
	}
	if version != (rec.Type == TypeHeader) {
		return errors.New("member version belongs to the header")
	}
	if raw == nil || CheckMeta(raw) != nil {
		return nil
	}
	short, err := shortest(raw)
	if err != nil {
		return err
	}
	if bytes.Equal(short, rec.Meta) {
		rec.Meta = raw
	}
	return nil
}

// jsonParser makes value trees of JSON, in order and without rounding numbers.
type jsonParser struct{ d *json.Decoder }

// token returns the next token. An end within the line is not io.EOF: nobody must
// take it for the end of the stream.
func (p *jsonParser) token() (json.Token, error) {
	t, err := p.d.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return t, err
}

func (p *jsonParser) value(depth int) (any, error) {
	t, err := p.token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		return parseInteger(string(t))
	case json.Delim:
		if depth > MaxDepth+1 { // the line itself and a {"$ref": ...} add one each
			return nil, errDepth
		}
		if t == '[' {
			return p.array(depth)
		}
		return p.object(depth)
	}
	return t, nil // string, bool or nil
}

// parseInteger returns a number as uint64 or, if it is negative, as int64.
func parseInteger(s string) (any, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return n, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, fmt.Errorf(`number %s is no 64-bit integer (a float is {"$float64": "%s"})`, s, s)
	}
	if n == 0 { // -0
		return uint64(0), nil
	}
	return n, nil
}

func (p *jsonParser) array(depth int) (any, error) {
	list := []any{}
	for p.d.More() {
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := p.token()
	return list, err
}

func (p *jsonParser) object(depth int) (any, error) {
	m := Map{}
	seen := map[string]bool(nil)
	for p.d.More() {
		t, err := p.token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("key %v is no string", t)
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if len(m) < 16 {
			_, ok = m.Get(name)
		} else {
			if seen == nil {
				seen = make(map[string]bool, len(m))
				for _, f := range m {
					seen[f.Name] = true
				}
			}
			ok = seen[name]
			seen[name] = true
		}
		if ok {
			return nil, fmt.Errorf("key %q occurs twice", name)
		}
		m = append(m, Field{name, v})
	}
	if _, err := p.token(); err != nil {
		return nil, err
	}
	if len(m) == 1 && strings.HasPrefix(m[0].Name, "$") {
		return special(m[0])
	}
	return m, nil
}

// special returns what an object with a single key that begins with '$' stands
// for.
func special(f Field) (any, error) {
	if f.Name == "$ref" {
		if l, ok := f.Value.([]any); ok && len(l) == 2 {
			id, ok1 := l[0].(uint64)
			class, ok2 := l[1].(string)
			if ok1 && ok2 && id <= MaxRef {
				r := Ref{ID: uint32(id), Class: class}
				return r, r.check()
			}
		}
		return nil, errors.New("$ref is not [number, class]")
	}
	s, ok := f.Value.(string)
	if !ok {
		return nil, fmt.Errorf("%s is no string", f.Name)
	}
	switch f.Name {
	case "$bytes":
		return base64.StdEncoding.Strict().DecodeString(s)
	case "$string":
		b, err := base64.StdEncoding.Strict().DecodeString(s)
		return string(b), err
	case "$float32":
		bits, isNaN, err := parseFloatText(s, 32)
		if isNaN || err != nil {
			return math.Float32frombits(uint32(bits)), err
		}
		v, err := strconv.ParseFloat(s, 32)
		return float32(v), err
	case "$float64":
		bits, isNaN, err := parseFloatText(s, 64)
		if isNaN || err != nil {
			return math.Float64frombits(bits), err
		}
		return strconv.ParseFloat(s, 64)
	}
	return nil, fmt.Errorf("%q is unknown", f.Name)
}

// parseFloatText parses the text of a NaN; isNaN is false for another float.
func parseFloatText(s string, size int) (bits uint64, isNaN bool, err error) {
	hex, ok := strings.CutPrefix(s, "nan:")
	if !ok {
		return 0, false, nil
	}
	bits, err = strconv.ParseUint(hex, 16, size)
	return bits, true, err
}
