package kernelview

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// sampleLayout has a value of every kind.
func sampleLayout() *layout {
	l := &layout{fields: make([]location, len(fieldPaths)), symbols: make([]symbolPlace, len(symbolNames))}
	for i := range l.fields {
		at := uint32(8 * i)
		switch i % 5 {
		case 1:
			l.fields[i] = location{kind: locValue, offset: at, size: 4}
		case 2:
			l.fields[i] = location{kind: locValue, offset: at, size: 1, bit: 3, bits: 1}
		case 3:
			l.fields[i] = location{kind: locArray, offset: at, size: 24, count: 3, element: 8}
		case 4:
			l.fields[i] = location{kind: locPointer, offset: at, size: 8}
		}
	}
	for i := range l.symbols {
		l.symbols[i] = symbolPlace{known: i%2 == 0, offset: uint64(i%2^1) * 0x1000}
	}
	l.facts[3] = fact{known: true, value: 1 << 63}
	l.facts[4] = fact{known: true}
	l.prepare()
	return l
}

func TestCacheRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by", "us")
	key := cacheKey([]byte("some build"))
	if _, err := readCache(dir, key); err == nil {
		t.Fatal("read a cache that was never written")
	}
	l := sampleLayout()
	for range 2 { // the second replaces the first
		if err := writeCache(dir, key, l); err != nil {
			t.Fatal(err)
		}
		got, err := readCache(dir, key)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, l) {
			t.Error("read another layout than was written")
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("files left: %v %v", names, err)
	}
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory %v %v", st.Mode(), err)
	}
	if _, err := readCache(dir, cacheKey([]byte("other build"))); err == nil {
		t.Error("read the cache of another build")
	}
}

// TestCacheDamage flips every bit and cuts at every length.
func TestCacheDamage(t *testing.T) {
	key := cacheKey([]byte("some build"))
	good := encodeLayout(sampleLayout(), key)
	if _, err := decodeLayout(good, key); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := decodeLayout(bad, key); !errors.Is(err, errCache) {
				t.Fatalf("bit %d of byte %d is not noticed: %v", bit, i, err)
			}
		}
		if _, err := decodeLayout(good[:i], key); !errors.Is(err, errCache) {
			t.Fatalf("a cut at %d is not noticed: %v", i, err)
		}
	}
	if _, err := decodeLayout(append(bytes.Clone(good), 0), key); !errors.Is(err, errCache) {
		t.Fatalf("a byte too many is not noticed: %v", err)
	}
}

// TestCacheNotOurs refuses directories and files that others could have made.
func TestCacheNotOurs(t *testing.T) {
	key := cacheKey([]byte("some build"))
	l := sampleLayout()
	for _, x := range []struct {
		name  string
		spoil func(t *testing.T, dir, file string)
	}{
		{"directory writable by all", func(t *testing.T, dir, _ string) { check(t, os.Chmod(dir, 0o777)) }},
		{"directory writable by the group", func(t *testing.T, dir, _ string) { check(t, os.Chmod(dir, 0o770)) }},
		{"file writable by all", func(t *testing.T, _, file string) { check(t, os.Chmod(file, 0o666)) }},
		{"directory of another user", func(t *testing.T, dir, _ string) { chown(t, dir) }},
		{"file of another user", func(t *testing.T, _, file string) { chown(t, file) }},
		{"directory behind a symlink", func(t *testing.T, dir, _ string) {
			check(t, os.Rename(dir, dir+"x"))
			check(t, os.Symlink(dir+"x", dir))
		}},
		{"file behind a symlink", func(t *testing.T, _, file string) {
			check(t, os.Rename(file, file+"x"))
			check(t, os.Symlink(file+"x", file))
		}},
		{"file is a directory", func(t *testing.T, _, file string) {
			check(t, os.Remove(file))
			check(t, os.Mkdir(file, 0o700))
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			if err := writeCache(dir, key, l); err != nil {
				t.Fatal(err)
			}
			x.spoil(t, dir, filepath.Join(dir, cacheName(key)))
			if _, err := readCache(dir, key); err == nil {
				t.Error("it is trusted")
			}
		})
	}
	t.Run("written to a directory of others", func(t *testing.T) {
		dir := t.TempDir()
		check(t, os.Chmod(dir, 0o777))
		if err := writeCache(dir, key, l); err == nil {
			t.Error("it is written")
		}
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a file away")
	}
	check(t, os.Chown(path, 12345, 12345))
}

func TestGNUBuildID(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the samples are little-endian")
	}
	const xen = "040000000400000006000000" + "58656e00" + "11223344"
	const linux = "06000000" + "01000000" + "01010000" + "4c696e757800" + "0000" + "00000000"
	const gnu = "04000000" + "0a000000" + "03000000" + "474e5500" + "00112233445566778899" + "0000"
	for _, x := range []struct{ name, notes, want string }{
		{"alone", gnu, "00112233445566778899"},
		{"after others", xen + linux + gnu, "00112233445566778899"},
		{"missing", xen + linux, ""},
		{"empty", "", ""},
		{"cut", gnu[:len(gnu)-6], ""},
		{"huge sizes", "ffffffffffffffff03000000474e5500", ""},
	} {
		got, err := gnuBuildID(unhex(x.notes))
		if (err != nil) != (x.want == "") || hex.EncodeToString(got) != x.want {
			t.Errorf("%s: %x %v, want %s", x.name, got, err, x.want)
		}
	}
}

func FuzzDecodeLayout(f *testing.F) {
	key := cacheKey([]byte("some build"))
	good := encodeLayout(sampleLayout(), key)
	f.Add(good)
	f.Add([]byte{})
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		// Also with the sum made right, or nothing behind it would ever be reached.
		for _, b := range [][]byte{b, summed(b, key)} {
			l, err := decodeLayout(b, key)
			if err != nil {
				continue
			}
			// What is accepted encodes to the same bytes, and reading by it is safe.
			if !bytes.Equal(encodeLayout(l, key), b) {
				t.Error("another encoding of the same layout is accepted")
			}
			block := make([]byte, 100)
			for i := range l.fields {
				l.uint(block, field(i))
				l.bytes(block, field(i))
			}
		}
	})
}

// summed puts b between a right head and a right sum.
func summed(b []byte, key [cacheKeySize]byte) []byte {
	out := encodeLayout(sampleLayout(), key)
	head := len(cacheMagic) + cacheKeySize
	copy(out[head:len(out)-4], b)
	return binary.LittleEndian.AppendUint32(out[:len(out)-4], sumOf(out[:len(out)-4]))
}
