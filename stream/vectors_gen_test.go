package stream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
	"testing"
)

// build makes a stream of raw records without enforcing a rule. It appends a
// right end record unless end is false.
type build struct {
	t   testing.TB
	buf []byte
}

func newBuild(t testing.TB) *build {
	b := &build{t: t, buf: binary.LittleEndian.AppendUint32([]byte(magic), Version)}
	return b.rec("header", 0, 0, Map{{"content", "image"}, {"arch", "amd64"}, {"pagesize", 4096}}, nil)
}

func (b *build) rec(typ string, flags Flags, ref uint32, meta any, payload []byte) *build {
	b.t.Helper()
	m, err := EncodeMeta(meta)
	if err != nil {
		b.t.Fatal(err)
	}
	r := Record{Type: Type(typ), Flags: flags, Ref: ref, Meta: m, Payload: payload}
	var head [headSize]byte
	r.putHead(&head)
	b.buf = append(append(append(b.buf, head[:]...), m...), payload...)
	return b
}

// end returns the stream with a right end record and right checksums.
func (b *build) end() []byte {
	b.t.Helper()
	b.buf = fixSums(b.buf)
	state := endState{Sum: crc32.Update(0, castagnoli, b.buf[:prologueSize])}
	for pos := prologueSize; pos < len(b.buf); state.Count++ {
		h := b.buf[pos : pos+headSize]
		state.Sum = crc32.Update(state.Sum, castagnoli, h)
		pos += headSize + int(binary.LittleEndian.Uint32(h[28:])) + int(binary.LittleEndian.Uint32(h[32:]))
	}
	return fixSums(b.rec("end", 0, 0, &state, nil).buf)
}

func (b *build) open() []byte { return fixSums(b.buf) }

func raw(t testing.TB, s string) Raw {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func generateVectors(t testing.TB) []vector {
	file, mm := Ref{1, "file"}, Ref{2, "mm"}
	name := Map{{"name", "/bin/true"}}
	small := func() *build {
		return newBuild(t).rec("file.regular", 0, 1, name, nil).rec("mm", 0, 2, Map{{"exe", file}, {"brk", uint64(0x55d0_0000_1000)}}, nil).
			rec("pages", 0, 0, Map{{"mm", mm}, {"start", uint64(0x7f00_0000_0000)}}, bytes.Repeat([]byte("page"), 16))
	}
	ok := small().end()
	cut := func(n int) []byte { return ok[:n] }
	flip := func(at int) []byte { c := bytes.Clone(ok); c[at] ^= 0x10; return c }
	meta := func(s string) []byte { return newBuild(t).rec("thing", 0, 0, raw(t, s), nil).end() }
	ref := func(id uint32, class string) string {
		b := binary.BigEndian.AppendUint32([]byte{codeExt8, byte(4 + len(class)), extRef}, id)
		return hex.EncodeToString(append(b, class...))
	}
	setHead := func(b []byte, from, at int, v ...byte) []byte { // in the record whose head begins at from
		b = bytes.Clone(b)
		copy(b[from+at:], v)
		return fixSums(b)
	}
	second := len(newBuild(t).buf)
	nested := func(n int) string { return strings.Repeat("91", n-1) + "90" }
	var z LZ4
	packed := &Record{Type: "pages", Payload: bytes.Repeat([]byte("abcd"), 1000)}
	if err := z.Compress(packed); err != nil || packed.Flags != FlagLZ4 {
		t.Fatal("lz4", err)
	}
	lz4 := func(length uint32, block []byte) []byte {
		p := append(binary.LittleEndian.AppendUint32(nil, length), block...)
		return newBuild(t).rec("pages", FlagLZ4, 0, nil, p).end()
	}
	block := bytes.Clone(packed.Payload[4:])
	header := func(m Map) []byte {
		b := &build{t: t, buf: binary.LittleEndian.AppendUint32([]byte(magic), Version)}
		return b.rec("header", 0, 0, m, nil).rec("thing", 0, 0, nil, nil).end()
	}
	return []vector{
		{"ok-small", "ok", "a file, an address space, a page run", "", ok},
		{"ok-empty", "ok", "header and end alone", "", newBuild(t).end()},
		{"ok-link", "ok", "a link ties two objects into a cycle", "", small().rec("link", 0, 0, Map{{"from", file}, {"to", mm}}, nil).end()},
		{"ok-lz4", "ok", "a compressed payload", "", newBuild(t).rec("pages", FlagLZ4, 0, nil, packed.Payload).end()},
		{"ok-unknown", "ok", "types and flags a filter does not know", "", small().rec("zz-future.9", FlagOptional, 3, name, []byte{1}).end()},
		{"ok-wide-ints", "ok", "metadata that is not in its shortest form", "", meta("82 a161 cf0000000000000001 a162 d9026869")},
		{"ok-all-codes", "ok", "each msgpack form there is", "", newBuild(t).rec("file.regular", 0, 1, nil, nil).rec("thing", 0, 0, raw(t,
			"dc0018 00 7f e0 ff c0 c2 c3 c40101 c5000101 c60000000101 ca7fc00001 cb3ff8000000000000 cc01 cd0001 ce00000001 cfffffffffffffffff d0ff d1ffff d2ffffffff d3ffffffffffffffff d901ff 9101 de0001a16101 "+ref(1, "file")), nil).end()},
		{"ok-bad-utf8", "ok", "strings are bytes: paths need not be UTF-8", "", meta("81 a161 a2fffe")},
		{"ok-depth-32", "ok", "as deep as allowed", "", meta(nested(32))},
		{"ok-sparse-refs", "ok", "object numbers in no order, the largest included", "", newBuild(t).rec("file.a", 0, MaxRef, nil, nil).rec("file.b", 0, 70000, nil, nil).
			rec("file.c", 0, 3, Map{{"a", Ref{MaxRef, "file"}}, {"b", Ref{70000, "file"}}}, nil).end()},
		{"ok-header-more", "ok", "a header field of a later version", "", header(Map{{"content", "image"}, {"host", "x"}})},
		{"error-record", "error", "the producer failed", "", newBuild(t).rec("error", 0, 0, &errorState{Text: "pid 7: gone", Errno: 3, Object: "pid 7"}, nil).open()},
		{"error-record-wide", "error", "an error record in a longer form", "", newBuild(t).rec("error", 0, 0, raw(t, "81 d90474657874 d901 78"), nil).open()},
		{"error-no-text", "metadata", "an error record that is no map", "", newBuild(t).rec("error", 0, 0, raw(t, "07"), nil).open()},
		{"not-empty", "truncated", "no byte at all", "", nil},
		{"not-text", "not-stream", "some text", "", []byte("hello, world: this is no stream\n")},
		{"not-crlf", "not-stream", "a channel that changed line ends", "", bytes.ReplaceAll(ok, []byte("\r\n"), []byte("\n"))},
		{"not-short", "not-stream", "short and no magic", "", []byte("hello")},
		{"version-2", "version", "another format version", "", append(append([]byte(magic), 2, 0, 0, 0), ok[prologueSize:]...)},
		{"truncated-magic", "truncated", "cut within the magic", "", cut(5)},
		{"truncated-header", "truncated", "cut within the header", "", cut(prologueSize + headSize + 3)},
		{"truncated-boundary", "truncated", "cut between records", "", cut(second)},
		{"truncated-end", "truncated", "cut within the end record", "", cut(len(ok) - 1)},
		{"truncated-no-end", "truncated", "no end record", "", small().open()},
		{"trailing-byte", "trailing", "a byte follows the end", "", append(bytes.Clone(ok), 0)},
		{"trailing-stream", "trailing", "a second stream follows", "", append(bytes.Clone(ok), ok...)},
		{"corrupt-meta", "corrupt", "a flipped bit in metadata", "", flip(second + headSize + 2)},
		{"corrupt-payload", "corrupt", "a flipped bit in a payload", "", flip(bytes.Index(ok, []byte("pagepage")) + 5)},
		{"corrupt-type", "corrupt", "a flipped bit in a type", "", flip(second)},
		{"corrupt-end-count", "corrupt", "a record was lost, its sums are right", "", func() []byte {
			i := bytes.Index(ok, []byte("pages\x00"))
			j := bytes.LastIndex(ok, []byte("end\x00"))
			return append(bytes.Clone(ok[:i]), ok[j:]...)
		}()},
		{"corrupt-end-count-only", "corrupt", "the end counts a record too many, its sum is right", "", func() []byte {
			end := records(ok)[len(records(ok))-1]
			b := bytes.Clone(ok)
			at := len(ok) - len(end) + headSize + 1 + 6 // the fixint after the key "count"
			b[at]++
			crc := crc32.Update(crc32.Checksum(b[len(ok)-len(end):][:crcOffset], castagnoli), castagnoli, b[len(ok)-len(end)+headSize:])
			binary.LittleEndian.PutUint32(b[len(ok)-len(end)+crcOffset:], crc)
			return b
		}()},
		{"malformed-end-wide", "metadata", "an end that is not in its shortest form", "", func() []byte {
			end := records(ok)[len(records(ok))-1]
			wide := append([]byte{0x82, codeStr8, 5}, end[headSize+2:]...)
			r := Record{Type: TypeEnd, Meta: wide}
			var head [headSize]byte
			r.putHead(&head)
			crc := crc32.Update(crc32.Checksum(head[:crcOffset], castagnoli), castagnoli, wide)
			binary.LittleEndian.PutUint32(head[crcOffset:], crc)
			return append(append(bytes.Clone(ok[:len(ok)-len(end)]), head[:]...), wide...)
		}()},
		{"corrupt-end-sum", "corrupt", "two records have changed places", "", func() []byte {
			b := newBuild(t).rec("note.a", 0, 0, Map{{"n", 1}}, nil).rec("note.b", 0, 0, Map{{"n", 2}}, nil).end()
			n := headSize + 4
			c := append(bytes.Clone(b[:second]), b[second+n:second+2*n]...)
			return append(append(c, b[second:second+n]...), b[second+2*n:]...)
		}()},
		{"hostile-meta-length", "hostile-length", "4 GiB of metadata claimed", "", setHead(ok, second, 28, 0xff, 0xff, 0xff, 0xff)},
		{"hostile-payload-length", "hostile-length", "1 MiB + 1 of payload claimed", "", setHead(ok, second, 32, 1, 0, 0x10, 0)},
		{"hostile-meta-claim", "truncated", "1 MiB of metadata claimed that does not come", "", setHead(cut(second+headSize), second, 28, 0, 0, 0x10, 0)},
		{"hostile-array", "metadata", "an array claims 4 G elements", "", meta("dd ffffffff")},
		{"hostile-map", "metadata", "a map claims 4 G elements", "", meta("df ffffffff")},
		{"hostile-bin", "metadata", "bytes claim 4 GiB", "", meta("c6 ffffffff")},
		{"hostile-str", "metadata", "a string claims 4 GiB", "", meta("db ffffffff")},
		{"hostile-depth", "metadata", "33 nested arrays", "", meta(nested(33))},
		{"hostile-depth-100k", "metadata", "100,000 nested arrays", "", meta(nested(100000))},
		{"meta-none", "metadata", "no metadata at all", "", newBuild(t).rec("thing", 0, 0, Raw{}, nil).end()},
		{"meta-two", "metadata", "two values", "", meta("80 80")},
		{"meta-c1", "metadata", "the code that is never used", "", meta("c1")},
		{"meta-ext", "metadata", "an extension that is not ours", "", meta("d7 02 0000000166696c65")},
		{"meta-ext-timestamp", "metadata", "a msgpack timestamp", "", meta("d6 ff 00000000")},
		{"meta-int-key", "metadata", "a key that is a number", "", meta("81 01 02")},
		{"meta-dup-key", "metadata", "a key occurs twice", "", meta("82 a161 01 a161 02")},
		{"meta-dup-key-many", "metadata", "a key occurs twice among many", "", func() []byte {
			s := "de 0020"
			for i := range 31 {
				s += "a1" + hex.EncodeToString([]byte{byte('A' + i)}) + "01"
			}
			return meta(s + "a14501")
		}()},
		{"meta-dollar-key", "metadata", "a key that begins with $", "", meta("81 a124 02")},
		{"meta-cut-number", "metadata", "ends within a number", "", meta("cd 01")},
		{"malformed-type-upper", "malformed", "a type in capitals", "", setHead(ok, second, 0, 'F')},
		{"malformed-type-hole", "malformed", "a NUL within the type", "", setHead(ok, second, 2, 0)},
		{"malformed-type-empty", "malformed", "no type", "", setHead(ok, second, 0, make([]byte, MaxType)...)},
		{"malformed-link-ref", "malformed", "a link that defines an object", "", newBuild(t).rec("link", 0, 1, nil, nil).end()},
		{"malformed-link-optional", "malformed", "a link that may be skipped", "", newBuild(t).rec("link", FlagOptional, 0, nil, nil).end()},
		{"malformed-end-payload", "malformed", "an end with a payload", "", func() []byte {
			return newBuild(t).rec("end", 0, 0, &endState{Count: 1, Sum: 1 << 31}, []byte{1}).open()
		}()},
		{"reserved-head", "reserved", "a reserved bit of the fixed header", "", setHead(ok, second, 22, 1)},
		{"reserved-flag", "reserved", "a flag nobody knows", "", setHead(ok, second, 21, 0x80)},
		{"order-no-header", "order", "begins with another record", "", (&build{t: t, buf: binary.LittleEndian.AppendUint32([]byte(magic), Version)}).rec("thing", 0, 0, nil, nil).end()},
		{"order-two-headers", "order", "two headers", "", newBuild(t).rec("header", 0, 0, Map{{"content", "image"}}, nil).end()},
		{"header-page-size", "malformed", "a page size that is no power of two", "", header(Map{{"content", "image"}, {"pagesize", 4097}})},
		{"header-no-content", "malformed", "a header that does not say what comes", "", header(Map{{"arch", "amd64"}})},
		{"header-requires-order", "malformed", "required features out of order", "", header(Map{{"content", "image"}, {"requires", []any{"b", "a"}}})},
		{"header-ref", "forward-ref", "a reference in the header", "", header(Map{{"content", "image"}, {"x", file}})},
		{"unknown-feature", "unknown-feature", "restore refuses it, a filter passes it on", "thing", header(Map{{"content", "image"}, {"requires", []any{"teleport"}}})},
		{"unknown-framing", "unknown-feature", "a feature of the framing concerns every reader", "", header(Map{{"content", "image"}, {"requires", []any{"stream.zip"}}})},
		{"unknown-type", "unknown-type", "restore refuses it, a filter passes it on", "file.regular mm", small().end()},
		{"unknown-optional", "ok", "restore skips it", "file.regular mm pages", small().rec("note", FlagOptional, 0, nil, nil).end()},
		{"ref-zero", "zero-ref", "a reference to object 0", "", meta("81 a161" + ref(0, "file"))},
		{"ref-negative", "zero-ref", "a reference to object -1", "", meta("81 a161" + ref(1<<32-1, "file"))},
		{"ref-negative-define", "zero-ref", "object -2147483648 is defined", "", newBuild(t).rec("file", 0, 1<<31, nil, nil).end()},
		{"ref-duplicate", "duplicate-ref", "object 1 is defined twice", "", newBuild(t).rec("file.a", 0, 1, nil, nil).rec("file.b", 0, 1, nil, nil).end()},
		{"ref-forward", "forward-ref", "object 1 is defined after its use", "", newBuild(t).rec("mm", 0, 2, Map{{"exe", file}}, nil).rec("file.a", 0, 1, nil, nil).end()},
		{"ref-self", "forward-ref", "object 1 refers to itself", "", newBuild(t).rec("file.epoll", 0, 1, Map{{"watch", file}}, nil).end()},
		{"ref-dangling", "dangling", "object 9 is never defined", "", small().rec("task", 0, 3, Map{{"fds", []any{Ref{9, "file"}}}}, nil).end()},
		{"ref-link-dangling", "dangling", "a link to object 9, which is never defined", "", small().rec("link", 0, 0, Map{{"to", Ref{9, "file"}}}, nil).end()},
		{"ref-wrong-class", "wrong-class", "object 1 is a file, not an mm", "", small().rec("task", 0, 3, Map{{"mm", Ref{1, "mm"}}}, nil).end()},
		{"ref-bad-class", "metadata", "a class with a dot", "", meta("81 a161" + ref(1, "file.a"))},
		{"ref-no-class", "metadata", "a reference without a class", "", meta("81 a161" + ref(1, ""))},
		{"lz4-zero", "compression", "claims no raw byte", "", lz4(0, block)},
		{"lz4-huge", "compression", "claims 4 GiB", "", lz4(1<<32-1, block)},
		{"lz4-short", "compression", "claims less than there is", "", lz4(3999, block)},
		{"lz4-long", "compression", "claims more than there is", "", lz4(4001, block)},
		{"lz4-garbage", "compression", "no lz4 block", "", lz4(4000, []byte{0xff, 0xff, 0xff, 0, 1})},
		{"lz4-empty", "compression", "a compressed nothing", "", newBuild(t).rec("pages", FlagLZ4, 0, nil, nil).end()},
	}
}
