package kernelview

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

// The cache file holds a layout:
//
//	magic    8 bytes "crkview\n"
//	key     32 bytes SHA-256 of format, architecture, build id, processor and
//	        what is wanted
//	fields   counted by what is wanted: kind, bit, bits (1 byte each), offset,
//	         size, count, element (4 bytes each)
//	symbols  known (1 byte), offset (8 bytes)
//	facts    known (1 byte), value (8 bytes)
//	crc      4 bytes, CRC-32C of all before
//
// all little-endian. Its length follows from what is wanted, so there is no
// length in it to be believed.
const (
	cacheMagic    = "crkview\n"
	cacheFormat   = 1
	cacheKeySize  = sha256.Size
	cacheField    = 3 + 4*4
	cacheSymbol   = 1 + 8
	cacheFact     = 1 + 8
	maxStructSize = 1 << 20 // no offset or size in a kernel structure is larger
)

var errCache = errors.New("no valid cache")

func sumOf(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// cacheKey names everything a cached layout depends on.
func cacheKey(buildID []byte) [cacheKeySize]byte {
	b := fmt.Appendf(make([]byte, 0, 32<<10), "%d %s %x %x\n", cacheFormat, runtime.GOARCH, buildID, processor())
	for _, names := range [][]string{fieldPaths, symbolNames, factNames[:]} {
		for _, n := range names {
			b = append(append(b, n...), '\n')
		}
	}
	return sha256.Sum256(b)
}

func cacheSize() int {
	return len(cacheMagic) + cacheKeySize + len(fieldPaths)*cacheField +
		len(symbolNames)*cacheSymbol + int(factCount)*cacheFact + 4
}

func encodeLayout(l *layout, key [cacheKeySize]byte) []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, cacheSize()), cacheMagic...)
	b = append(b, key[:]...)
	for _, f := range l.fields {
		b = append(b, f.kind, f.bit, f.bits)
		for _, v := range []uint32{f.offset, f.size, f.count, f.element} {
			b = le.AppendUint32(b, v)
		}
	}
	known := func(b []byte, k bool) []byte {
		if k {
			return append(b, 1)
		}
		return append(b, 0)
	}
	for _, s := range l.symbols {
		b = le.AppendUint64(known(b, s.known), s.offset)
	}
	for _, x := range l.facts {
		b = le.AppendUint64(known(b, x.known), x.value)
	}
	return le.AppendUint32(b, sumOf(b))
}

// decodeLayout accepts only what encodeLayout made for the same key, and only
// values that can be true of a structure.
func decodeLayout(b []byte, key [cacheKeySize]byte) (*layout, error) {
	le := binary.LittleEndian
	if len(b) != cacheSize() || string(b[:len(cacheMagic)]) != cacheMagic {
		return nil, errCache
	}
	body := b[:len(b)-4]
	if sumOf(body) != le.Uint32(b[len(body):]) {
		return nil, errCache
	}
	if !bytes.Equal(body[len(cacheMagic):len(cacheMagic)+cacheKeySize], key[:]) {
		return nil, errCache
	}
	rest := body[len(cacheMagic)+cacheKeySize:]
	l := &layout{fields: make([]location, len(fieldPaths)), symbols: make([]symbolPlace, len(symbolNames))}
	for i := range l.fields {
		f := location{
			kind: rest[0], bit: rest[1], bits: rest[2],
			offset: le.Uint32(rest[3:]), size: le.Uint32(rest[7:]),
			count: le.Uint32(rest[11:]), element: le.Uint32(rest[15:]),
		}
		if !f.plausible() {
			return nil, errCache
		}
		l.fields[i] = f
		rest = rest[cacheField:]
	}
	for i := range l.symbols {
		l.symbols[i] = symbolPlace{known: rest[0] == 1, offset: le.Uint64(rest[1:])}
		if rest[0] > 1 || l.symbols[i].offset >= 1<<31 {
			return nil, errCache
		}
		rest = rest[cacheSymbol:]
	}
	for i := range l.facts {
		l.facts[i] = fact{known: rest[0] == 1, value: le.Uint64(rest[1:])}
		if rest[0] > 1 {
			return nil, errCache
		}
		rest = rest[cacheFact:]
	}
	l.prepare()
	return l, nil
}

func (f location) plausible() bool {
	if f.kind >= locLast || f.offset > maxStructSize || f.size > maxStructSize {
		return false
	}
	if f.kind == locMissing {
		return f == location{}
	}
	if f.bits != 0 && (f.kind != locValue || f.bits > 63 || f.bit > 7 || f.size > 8 || uint32(f.bit)+uint32(f.bits) > 8*f.size) {
		return false
	}
	if f.kind == locArray {
		return uint64(f.count)*uint64(f.element) == uint64(f.size)
	}
	return f.count == 0 && f.element == 0
}

// cacheDir is where the cache is kept when Options do not say.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/crpipe", nil
	}
	if d := os.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "crpipe"), nil
	}
	if d := os.Getenv("HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, ".cache", "crpipe"), nil
	}
	return "", errors.New("there is no home directory")
}

// openCacheDir opens the directory if it belongs to this user and nobody else
// can write to it: offsets from a stranger would make root read what the
// stranger wants.
func openCacheDir(dir string, create bool) (int, error) {
	if create {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return -1, err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return -1, err
		}
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := onlyOurs(fd, unix.S_IFDIR); err != nil {
		_ = unix.Close(fd) // opened for reading only
		return -1, err
	}
	return fd, nil
}

func onlyOurs(fd int, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != kind || int(st.Uid) != unix.Geteuid() || st.Mode&0o022 != 0 {
		return errCache
	}
	return nil
}

func cacheName(key [cacheKeySize]byte) string {
	return "kernelview-" + hex.EncodeToString(key[:12])
}

// readCache returns the layout kept in dir, or an error for every reason not
// to trust what is there.
func readCache(dir string, key [cacheKeySize]byte) (*layout, error) {
	at, err := openCacheDir(dir, false)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	fd, err := unix.Openat(at, cacheName(key), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := onlyOurs(fd, unix.S_IFREG); err != nil {
		return nil, err
	}
	b := make([]byte, cacheSize()+1) // one that is longer is none of ours
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return nil, err
	}
	return decodeLayout(b[:n], key)
}

// writeCache keeps a layout in dir: whole or not at all.
func writeCache(dir string, key [cacheKeySize]byte, l *layout) error {
	at, err := openCacheDir(dir, true)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	name := cacheName(key)
	temp := fmt.Sprintf("%s.%d.tmp", name, os.Getpid())
	fd, err := unix.Openat(at, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EEXIST) {
		// What a process of the same number left when it was killed.
		if err := unix.Unlinkat(at, temp, 0); err != nil {
			return err
		}
		fd, err = unix.Openat(at, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), temp)
	_, err = f.Write(encodeLayout(l, key))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat(at, temp, at, name)
	}
	if err != nil {
		_ = unix.Unlinkat(at, temp, 0) // the first failure is what matters
	}
	return err
}

// buildID reads the GNU build id of the running kernel out of its ELF notes.
func buildID() ([]byte, error) {
	b, err := procfs.ReadFile("/sys/kernel/notes")
	if err != nil {
		return nil, err
	}
	return gnuBuildID(b)
}

// gnuBuildID walks ELF notes: name size, description size, type (4 bytes
// each), name and description each padded to 4 bytes. Xen's and Linux's own
// notes come first on some kernels.
func gnuBuildID(b []byte) ([]byte, error) {
	const typeBuildID = 3
	for len(b) >= 12 {
		nameSize := int64(binary.NativeEndian.Uint32(b))
		descSize := int64(binary.NativeEndian.Uint32(b[4:]))
		kind := binary.NativeEndian.Uint32(b[8:])
		descAt := 12 + (nameSize+3)&^3
		end := descAt + (descSize+3)&^3
		if end > int64(len(b)) {
			break
		}
		name := strings.TrimRight(string(b[12:12+nameSize]), "\x00")
		if name == "GNU" && kind == typeBuildID && descSize >= 8 {
			return b[descAt : descAt+descSize], nil
		}
		b = b[end:]
	}
	return nil, errors.New("there is no GNU build id in /sys/kernel/notes")
}
