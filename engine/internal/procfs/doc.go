// Package procfs reads what /proc says of a task. Every file has a pure
// parser over bytes (ParseStat, ParseMaps, ...) and a small reader that fills
// one reused buffer and parses it (ReadStat, ReadMaps, ...). The layouts are
// those of proc(5) and its split pages (proc_pid_stat(5), ...); the writers
// are fs/proc/array.c, fs/proc/task_mmu.c and the show_fdinfo functions of
// each kind of file.
//
// The parsers are strict about what they understand and keep what they do not
// know (Status.Other, Fdinfo.Other), so that a caller can refuse state that
// nobody handles. Nothing they return refers to the bytes they were given.
package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrFormat is matched by every error about the content of a file.
var ErrFormat = errors.New("unexpected format")

func badFormat(what string, text []byte) error {
	const most = 80
	if len(text) > most {
		text = text[:most]
	}
	return fmt.Errorf("%w: %s in %q", ErrFormat, what, text)
}

// IsGone reports whether an error of a reader means that the task no longer
// exists: open says ENOENT, a read of an already open file ESRCH.
func IsGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}

// cutLine returns the first line of b without its newline, and the rest.
func cutLine(b []byte) (line, rest []byte) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// nextField returns the first word of b, separated by blanks and tabs, and
// what follows it.
func nextField(b []byte) (word, rest []byte) {
	i := 0
	for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	j := i
	for j < len(b) && b[j] != ' ' && b[j] != '\t' {
		j++
	}
	return b[i:j], b[j:]
}

// parseUint reads all of b as a number without sign, in base 8, 10 or 16,
// without allocating. bits bounds its value.
func parseUint(b []byte, base uint64, bits uint) (uint64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	limit := ^uint64(0) >> (64 - bits)
	last := limit / base // one more digit fits behind anything up to this
	var v uint64
	for _, c := range b {
		var d uint64
		switch {
		case c >= '0' && c <= '9':
			d = uint64(c - '0')
		case c >= 'a' && c <= 'f':
			d = uint64(c-'a') + 10
		case c >= 'A' && c <= 'F':
			d = uint64(c-'A') + 10
		default:
			return 0, false
		}
		if d >= base || v > last || v*base > limit-d {
			return 0, false
		}
		v = v*base + d
	}
	return v, true
}

// parseInt reads all of b as a decimal number with an optional minus.
func parseInt(b []byte, bits uint) (int64, bool) {
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	v, ok := parseUint(b, 10, 64)
	limit := uint64(1) << (bits - 1)
	switch {
	case !ok:
		return 0, false
	case negative && v <= limit:
		return -int64(v), true
	case !negative && v < limit:
		return int64(v), true
	}
	return 0, false
}

// parseIntFull is parseInt for the host's int.
func parseIntFull(b []byte) (int, bool) {
	v, ok := parseInt(b, strconv.IntSize)
	return int(v), ok
}

// hexBytes decodes pairs of hexadecimal digits.
func hexBytes(b []byte) ([]byte, bool) {
	if len(b)%2 != 0 {
		return nil, false
	}
	out := make([]byte, 0, len(b)/2)
	for i := 0; i < len(b); i += 2 {
		v, ok := parseUint(b[i:i+2], 16, 8)
		if !ok {
			return nil, false
		}
		out = append(out, byte(v))
	}
	return out, true
}

// parseDevice reads "major:minor" in the given base, as st_dev is printed by
// maps and locks (hexadecimal) and mountinfo (decimal).
func parseDevice(b []byte, base uint64) (major, minor uint32, ok bool) {
	a, c, found := bytes.Cut(b, []byte{':'})
	if !found {
		return 0, 0, false
	}
	ma, ok1 := parseUint(a, base, 32)
	mi, ok2 := parseUint(c, base, 32)
	return uint32(ma), uint32(mi), ok1 && ok2
}

// unescapeOctal undoes mangle_path (fs/seq_file.c): backslash and three octal
// digits stand for one byte. Only codes below 0400 are codes.
func unescapeOctal(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) {
			if v, ok := parseUint(b[i+1:i+4], 8, 8); ok {
				out = append(out, byte(v))
				i += 3
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}
