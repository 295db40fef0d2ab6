// Package stream reads, writes, checks and edits the stream that the crpipe
// commands pass through pipes. The format is specified by cr-stream(5); this
// page is about the Go side.
//
// # Writing
//
// NewWriter begins a stream with its header, Put writes records, End completes
// it:
//
//	w, err := stream.NewWriter(os.Stdout, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: 4096})
//	file := w.NewRef()
//	err = w.Put("file.regular", file, &regularState{Path: "/etc/passwd"}, nil)
//	err = w.Put("mm", w.NewRef(), &mmState{Exe: stream.Ref{ID: file, Class: "file"}}, nil)
//	err = w.End()
//
// Errors are sticky, so a producer may check only now and then. One that fails
// calls Fail, and every reader downstream stops with its text. A stream without
// End or Fail is truncated to whoever reads it: dying is noticed too.
//
// # State structs
//
// The metadata of a record is a struct whose fields have tags:
//
//	type eventfdState struct {
//		Count uint64     `msgpack:"count"`
//		Flags uint32     `msgpack:"flags,omitempty"`
//		Owner stream.Ref `msgpack:"owner,omitempty"`
//	}
//
// Encoding is deterministic: fields in their order, each value in its shortest
// form, a nil slice like an empty one. Go maps are refused, and so is every field
// that would be lost without a word: without a tag, or not exported. Decoding is
// strict in the same spirit: see Record.Decode. A field that a later version adds
// needs omitempty, so that older streams can be read; older programs refuse newer
// streams that use it, because it could be state that they would lose.
//
// Each value is written and read by msgpack/v5, by its primitives. What walks over
// Go types and value trees is this package's own, since v5's walker stores 300 in
// a uint8 as 44, nil in an int as 0 and -1 in a uint32 as 4294967295, all without
// an error: in a restore each would be a silent loss. And v5 is kept from hostile
// input, for which it was not made: a block is decoded only after the structural
// checker, which uses nothing of v5, has found that its claims hold.
//
// # Reading
//
// NewReader reads the header; Next returns record after record, each checked as
// far as that is possible without knowing its schema: checksum, structure of the
// metadata, references to objects defined before and of the right class. io.EOF
// comes only after a right end record and the proof that nothing follows. So a
// loop that ends with io.EOF has seen a whole and sound stream, and one that
// must not act on less (a restore) waits for it. A restore also calls
// RequireKnown and Header.CheckFeatures, which refuse what it does not know.
//
// Input is taken for hostile. Nothing is allocated for a length that was only
// claimed, decoding has a budget, nesting has a limit, and words from the stream
// are made printable before they are part of an error's text.
//
// What a record and its buffers cost: a payload is read once, straight into its
// buffer, and summed once; the buffers are reused. SetBuffers gives the reader
// other memory to read into, for a restore with several payloads in use.
//
// # Errors
//
// A *FormatError says where in the stream which rule is broken, a *RemoteError
// what a producer upstream said; BadStream tells both from errors of the
// underlying reader. A *WriteError is the Writer's: a broken rule (a bug, or an
// edit that left a reference dangling), or an error of the destination. Each
// rule has its sentinel for errors.Is.
//
// # Filters
//
// Filter joins the standard reader and writer by Steps. A step that emits a
// record as it came has it copied byte for byte. See CompressStep, RenumberStep
// and Concurrent. To edit metadata without its schema, Record.Value gives a tree
// of values and SetMeta takes it back; WalkRefs and RewriteRefs find and replace
// references. ToJSON and FromJSON convert to and from lines of JSON without loss,
// Describe makes one line for people, Check a summary.
//
// # Compatibility
//
// A change of the framing is a new Version, or a feature whose name begins with
// "stream." in the header's list, which every reader must know. New record types
// and fields need neither: a mandatory type that is unknown is refused by name.
package stream
