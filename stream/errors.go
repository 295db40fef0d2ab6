package stream

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What can be wrong with a stream. Errors of a Reader wrap one of these in a
// *FormatError that says where; errors of a Writer that was asked to break a
// rule wrap one in a *WriteError. Test with errors.Is.
var (
	ErrNotStream      = errors.New("not a crpipe stream")
	ErrVersion        = errors.New("unknown format version")
	ErrTruncated      = errors.New("the stream ends too early")
	ErrTrailing       = errors.New("bytes follow the end record")
	ErrCorrupt        = errors.New("checksum mismatch")
	ErrLength         = errors.New("length over the limit")
	ErrMalformed      = errors.New("malformed record")
	ErrMetadata       = errors.New("malformed metadata")
	ErrReserved       = errors.New("reserved bits are set")
	ErrOrder          = errors.New("record out of order")
	ErrUnknownFeature = errors.New("unknown required feature")
	ErrUnknownType    = errors.New("unknown mandatory record type")
	ErrZeroRef        = errors.New("object number is not positive")
	ErrDuplicateRef   = errors.New("object number is defined twice")
	ErrForwardRef     = errors.New("reference to an object that no earlier record defines") // forward or dangling: one pass cannot tell
	ErrWrongClass     = errors.New("reference to an object of another class")
	ErrCompression    = errors.New("malformed compressed payload")
)

// FormatError is an error of the stream being read, with its place.
type FormatError struct {
	Index  uint64 // number of the record, the header being 0
	Offset int64  // byte offset of the record's first byte
	Type   Type   // empty when it could not be read
	Ref    uint32 // object the record defines; 0 for none
	Err    error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("bad stream: %s: %s", place(e.Index, e.Offset, e.Type, e.Ref), Printable(e.Err.Error()))
}

func (e *FormatError) Unwrap() error { return e.Err }

// WriteError is an error of a Writer: a broken rule, or what the underlying
// writer said.
type WriteError struct {
	Index  uint64
	Offset int64
	Type   Type
	Ref    uint32
	Err    error
}

func (e *WriteError) Error() string {
	return fmt.Sprintf("writing %s: %s", place(e.Index, e.Offset, e.Type, e.Ref), Printable(e.Err.Error()))
}

func (e *WriteError) Unwrap() error { return e.Err }

// RemoteError is what a producer upstream said in an error record.
type RemoteError struct {
	Text   string // for people; one or more lines
	Errno  int    // Linux error number of the producer's architecture, 0 for none
	Object string // what it was about, as a person would look for it; may be empty
}

func (e *RemoteError) Error() string {
	text := Printable(e.Text)
	if e.Object != "" && !strings.Contains(e.Text, e.Object) {
		text = Printable(e.Object) + ": " + text
	}
	return "upstream failed: " + text
}

// BadStream reports whether err says that a stream read was bad or carried an
// error record: what the commands end with status 4 for. An error of the
// underlying reader (EIO, say) is not one.
func BadStream(err error) bool {
	var format *FormatError
	var remote *RemoteError
	return errors.As(err, &format) || errors.As(err, &remote)
}

func place(index uint64, offset int64, t Type, ref uint32) string {
	var b strings.Builder
	fmt.Fprintf(&b, "record %d", index)
	switch {
	case t != "" && ref != 0:
		fmt.Fprintf(&b, " (%s #%d)", t, ref)
	case t != "":
		fmt.Fprintf(&b, " (%s)", t)
	}
	fmt.Fprintf(&b, " at byte %d", offset)
	return b.String()
}

// Printable returns s with every control character, unprintable rune and
// invalid byte escaped, so that text out of a stream cannot drive a terminal.
// Newlines and tabs stay.
func Printable(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || !printable(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case printable(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += n
	}
	return b.String()
}

func printable(r rune) bool { return r == '\n' || r == '\t' || unicode.IsPrint(r) }
