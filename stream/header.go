package stream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What a stream holds.
const (
	ContentImage  = "image"  // processes: what cr-dump writes and cr-restore reads
	ContentTicket = "ticket" // stopped tasks: what cr-freeze and cr-restore write and cr-thaw reads
	ContentNone   = "none"   // nothing: the producer failed before it knew
)

// Header is the first record of a stream. It alone may differ between two dumps
// of the same state.
type Header struct {
	Content  string   `msgpack:"content"`            // ContentImage, ContentTicket, ...
	Arch     string   `msgpack:"arch,omitempty"`     // GOARCH name of the CPU the state belongs to
	PageSize int      `msgpack:"pagesize,omitempty"` // bytes; a power of two
	Kernel   string   `msgpack:"kernel,omitempty"`   // uname -r of the machine
	Producer string   `msgpack:"producer,omitempty"` // program and version that wrote the stream
	Requires []string `msgpack:"requires,omitempty"` // features a reader must know, sorted
}

// framingFeature begins the names of features that change the framing itself:
// a reader must know them even if it only passes records on. Version 1 has none.
const framingFeature = "stream."

// maxRequires is how many features a header may name.
const maxRequires = 256

// check reports what is wrong with a header.
func (h *Header) check() error {
	if h.Content == "" || len(h.Content) > 64 {
		return fmt.Errorf("%w: the header says content %.80q", ErrMalformed, h.Content)
	}
	if h.PageSize < 0 || h.PageSize > 1<<24 || h.PageSize&(h.PageSize-1) != 0 {
		return fmt.Errorf("%w: the header says page size %d", ErrMalformed, h.PageSize)
	}
	if len(h.Requires) > maxRequires {
		return fmt.Errorf("%w: the header requires %d features", ErrLength, len(h.Requires))
	}
	for i, name := range h.Requires {
		if !validFeature(name) {
			return fmt.Errorf("%w: the header requires the feature %.80q", ErrMalformed, name)
		}
		if i > 0 && h.Requires[i-1] >= name {
			return fmt.Errorf("%w: the features that the header requires are not in order", ErrMalformed)
		}
	}
	return nil
}

func validFeature(name string) bool {
	if len(name) < 1 || len(name) > 64 || !isLetter(name[0]) {
		return false
	}
	for i := range len(name) {
		if !isClassByte(name[i]) && name[i] != '.' {
			return false
		}
	}
	return true
}

// Require adds features to the header's list, which it keeps sorted and without
// duplicates.
func (h *Header) Require(names ...string) {
	h.Requires = append(h.Requires, names...)
	slices.Sort(h.Requires)
	h.Requires = slices.Compact(h.Requires)
}

// CheckFeatures returns an error that wraps ErrUnknownFeature and names every
// feature the header requires for which known is false.
func (h *Header) CheckFeatures(known func(name string) bool) error {
	var unknown []string
	for _, name := range h.Requires {
		if !known(name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrUnknownFeature, strings.Join(unknown, ", "))
}

// errorState is the metadata of an error record.
type errorState struct {
	Text   string `msgpack:"text"`
	Errno  int32  `msgpack:"errno,omitempty"`
	Object string `msgpack:"object,omitempty"`
}

// maxErrorText bounds text and object of an error record, in bytes.
const maxErrorText = 64 << 10

// remote decodes the metadata of an error record.
func remote(meta []byte) (*RemoteError, error) {
	if err := CheckMeta(meta); err != nil {
		return nil, err
	}
	var s errorState
	if err := decodeMeta(meta, &s, true); err != nil {
		return nil, err
	}
	if s.Text == "" {
		return nil, fmt.Errorf("%w: it does not say what failed", ErrMalformed)
	}
	return &RemoteError{Text: s.Text, Errno: int(s.Errno), Object: s.Object}, nil
}

// endState is the metadata of the end record. The reader takes it only in its
// shortest encoding, so that a stream has one form.
type endState struct {
	Count uint64 `msgpack:"count"` // records before this one, the header included
	Sum   uint32 `msgpack:"sum"`   // crc32c of the prologue and all record headers before this one
}

// checkFraming reports whether a record obeys the rules of its type's place:
// all but what depends on the records before it.
func checkFraming(t Type, flags Flags, ref uint32, payload []byte) error {
	if flags&^knownFlags != 0 {
		return fmt.Errorf("%w: flags %#x", ErrReserved, uint16(flags&^knownFlags))
	}
	if flags&FlagLZ4 != 0 {
		if _, err := checkLZ4(payload); err != nil {
			return err
		}
	}
	if t.framing() || t == TypeLink {
		switch {
		case ref != 0:
			return fmt.Errorf("%w: a %s record defines no object", ErrMalformed, t)
		case flags&FlagOptional != 0:
			return fmt.Errorf("%w: a %s record is not optional", ErrMalformed, t)
		case t.framing() && (flags != 0 || len(payload) > 0):
			return fmt.Errorf("%w: a %s record has no payload", ErrMalformed, t)
		}
	}
	return nil
}

var errNoObject = errors.New("a reference where none is allowed")
