package files_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/files/filestest"
	"crpipe/engine/object"
	"crpipe/stream"
)

type rec struct {
	typ  stream.Type
	meta stream.Map
}

func m(pairs ...any) stream.Map {
	var out stream.Map
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, stream.Field{Name: pairs[i].(string), Value: pairs[i+1]})
	}
	return out
}

// attributes are those of a small deleted file.
func attributes(size any, more ...any) []any {
	return append([]any{"mode", 0o600, "uid", os.Getuid(), "gid", os.Getgid(), "size", size, "atime", 0, "mtime", 0}, more...)
}

func ref(id uint32, class string) stream.Ref { return stream.Ref{ID: id, Class: class} }

// pipeOf is an ordinary pipe.
func pipeOf(size any, more ...any) rec {
	a := append([]any{"size", size}, "mode", 0o600, "uid", os.Getuid(), "gid", os.Getgid(), "atime", 0, "mtime", 0)
	return rec{"pipe", m(append(a, more...)...)}
}

// restore restores records, which get the references 1, 2, ..., and data of the first.
func restore(t *testing.T, recs []rec, data *object.Data, payload []byte) (*filestest.Restored, error) {
	t.Helper()
	image := filestest.Write(t, func(w *stream.Writer) error {
		for i, r := range recs {
			if err := w.Put(r.typ, uint32(i+1), r.meta, nil); err != nil {
				return err
			}
		}
		if data != nil {
			return w.Put(object.TypeData, 0, data, payload)
		}
		return nil
	})
	r, err := filestest.Restore(t, image, nil)
	if err == nil {
		err = r.Fill()
	}
	return r, err
}

// A valid stream with states that no dump writes: each is refused with words that say why, nothing is opened that
// should not be, nothing blocks, nothing is left.
func TestHostileStates(t *testing.T) {
	dir := t.TempDir()
	file, fifo, missing := filepath.Join(dir, "file"), filepath.Join(dir, "fifo"), filepath.Join(dir, "missing")
	if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	regular := func(path string, flags, pos, size any) []rec {
		return []rec{{"file.regular", m("path", path, "flags", flags, "mode", unix.S_IFREG|0o644, "size", size, "pos", pos)}}
	}
	pipe := pipeOf(65536)
	inode := func(a ...any) rec { return rec{"inode", m(append([]any{"dir", dir}, a...)...)} }
	of := func(class string, offset uint64, packets ...uint32) *object.Data {
		return &object.Data{Of: ref(1, class), Offset: offset, Packets: packets}
	}
	for _, c := range []struct {
		name    string
		recs    []rec
		data    *object.Data
		payload string
		want    string
	}{
		{"truncate", regular(file, unix.O_RDWR|unix.O_TRUNC, 0, 8), nil, "", "open flags 01000 do not belong"},
		{"create", regular(missing, unix.O_RDWR|unix.O_CREAT, 0, 0), nil, "", "open flags 0100 do not belong"},
		{"exclusive", regular(missing, unix.O_RDWR|unix.O_EXCL, 0, 0), nil, "", "do not belong"},
		{"signals", regular(file, unix.O_RDWR|unix.O_ASYNC, 0, 8), nil, "", "do not belong"},
		{"tmpfile", regular(dir, unix.O_RDWR|unix.O_TMPFILE, 0, 8), nil, "", "do not belong"},
		{"as O_PATH", regular(file, unix.O_PATH, 0, 8), nil, "", "do not belong"},
		{"missing", regular(missing, 0, 0, 0), nil, "", "no such file"},
		{"relative", regular("etc/passwd", 0, 0, 0), nil, "", "not an absolute path"},
		{"no path", regular("", 0, 0, 0), nil, "", "not an absolute path"},
		{"NUL", regular("/etc/pass\x00wd", 0, 0, 0), nil, "", "NUL byte"},
		{"long", regular("/"+strings.Repeat("x", 5000), 0, 0, 0), nil, "", "too long"},
		{"negative position", regular(file, 0, -1, 8), nil, "", "position -1"},
		{"negative size", regular(file, 0, 0, -8), nil, "", "size -8"},
		{"shorter now", regular(file, 0, 9, 9), nil, "", "has 8 bytes now and was open at byte 9"},
		{"a FIFO as a file", regular(fifo, 0, 0, 0), nil, "", "is a FIFO now, it was a regular file"},
		{"a device as a file", regular("/dev/null", 0, 0, 0), nil, "", "is a character device now"},
		{"a directory as a file", regular(dir, 0, 0, 0), nil, "", "is a directory now"},
		{"a mode that is none", []rec{{"file.regular", m("path", file, "flags", 0, "mode", unix.S_IFIFO, "size", 0)}}, nil, "", "impossible"},
		{"a file as a directory", []rec{{"file.directory", m("path", file, "flags", 0)}}, nil, "", "is a regular file now"},
		{"a directory with O_CREAT", []rec{{"file.directory", m("path", dir, "flags", unix.O_CREAT)}}, nil, "", "do not belong"},
		{"O_PATH without O_PATH", []rec{{"file.path", m("path", fifo, "flags", 0, "mode", unix.S_IFIFO)}}, nil, "", "do not belong"},
		{"O_PATH of another type", []rec{{"file.path", m("path", fifo, "flags", unix.O_PATH, "mode", unix.S_IFREG)}}, nil, "", "is a FIFO now"},
		{"a disk as a device", []rec{{"file.device", m("path", "/dev/null", "flags", 0, "major", 8, "minor", 0)}}, nil, "", "8:0 does not belong"},
		{"memory as a device", []rec{{"file.device", m("path", "/dev/mem", "flags", 0, "major", 1, "minor", 1)}}, nil, "", "1:1 does not belong"},
		{"another device", []rec{{"file.device", m("path", "/dev/zero", "flags", 0, "major", 1, "minor", 3)}}, nil, "", "is character device 1:5 now"},
		{"a file as a device", []rec{{"file.device", m("path", file, "flags", 0, "major", 1, "minor", 3)}}, nil, "", "is a regular file now"},
		{"a file as a proc file", []rec{{"file.proc", m("path", file, "flags", 0)}}, nil, "", "not on a proc file system"},
		{"a proc file created", []rec{{"file.proc", m("path", "/proc/x", "flags", unix.O_CREAT)}}, nil, "", "do not belong"},
		{"an end of nothing", []rec{inode(attributes(0)...), {"file.pipe", m("pipe", ref(1, "inode"), "flags", 0)}}, nil, "", "not what is needed"},
		{"an end with O_TRUNC", []rec{pipe, {"file.pipe", m("pipe", ref(1, "pipe"), "flags", unix.O_TRUNC)}}, nil, "", "do not belong"},
		{"a pipe with a type", []rec{{"pipe", m("size", 4096, "mode", unix.S_IFREG, "uid", 0, "gid", 0, "atime", 0, "mtime", 0)}}, nil, "", "impossible"},
		{"an unknown write hint", []rec{{"file.regular", m("path", file, "flags", 0, "mode", unix.S_IFREG, "size", 8, "hint", 6)}}, nil, "", "write hint 6"},
		{"a file that has grown", []rec{{"file.regular", m("path", file, "flags", 0, "mode", unix.S_IFREG, "size", 7, "mtime", 1)}}, nil, "", "it has 8 bytes, 7 when"},
		{"a file that was modified", []rec{{"file.regular", m("path", file, "flags", 0, "mode", unix.S_IFREG, "size", 8, "mtime", 1)}}, nil, "", "1970-01-01 00:00:00.000000001"},
		{"unknown inode flags", []rec{inode(attributes(0, "iflags", 0x80000)...)}, nil, "", "inode flags 0x80000"},
		{"an unknown hint of an inode", []rec{inode(attributes(0, "hint", 200)...)}, nil, "", "write hint 200"},
		{"an empty pipe", []rec{pipeOf(0)}, nil, "", "0 bytes is impossible"},
		{"an odd pipe", []rec{pipeOf(5000)}, nil, "", "5000 bytes is impossible"},
		{"a huge pipe", []rec{pipeOf(uint32(1<<32 - 1))}, nil, "", "impossible"},
		{"too much in a pipe", []rec{pipeOf(4096)}, of("pipe", 0), strings.Repeat("x", 4097), "does not take its contents"},
		{"a hole in a pipe", []rec{pipe}, of("pipe", 5), "x", "do not follow byte 0"},
		{"a large packet", []rec{pipe}, of("pipe", 0, 5000), strings.Repeat("x", 5000), "packet of 5000 bytes"},
		{"an empty packet", []rec{pipe}, of("pipe", 0, 0, 1), "x", "packet of 0 bytes"},
		{"a packet too many", []rec{pipe}, of("pipe", 0, 1, 1), "x", "packet of 1 bytes does not fit"},
		{"a packet too few", []rec{pipe}, of("pipe", 0, 1), "xy", "belong to no packet"},
		{"a removed FIFO with contents", []rec{{"pipe.removed", m(append([]any{"dir", dir, "capacity", 4096}, attributes(5)...)...)}}, nil, "", "FIFO of 5 bytes"},
		{"a removed FIFO nowhere", []rec{{"pipe.removed", m(append([]any{"dir", "x", "capacity", 4096}, attributes(0)...)...)}}, nil, "", "not an absolute path"},
		{"a removed FIFO of no size", []rec{{"pipe.removed", m(append([]any{"dir", dir, "capacity", 0}, attributes(0)...)...)}}, nil, "", "0 bytes is impossible"},
		{"a file as a FIFO", []rec{{"pipe.fifo", m("path", file, "size", 4096)}}, nil, "", "is a regular file now"},
		{"a FIFO that is missing", []rec{{"pipe.fifo", m("path", missing, "size", 4096)}}, nil, "", "no such file"},
		{"contents of a FIFO that overflow", []rec{{"pipe.fifo", m("path", fifo, "size", 4096)}}, of("pipe", 0), strings.Repeat("x", 5000), "does not take"},
		{"a deleted file's type", []rec{inode("mode", unix.S_IFIFO|0o600, "uid", 0, "gid", 0, "size", 0, "atime", 0, "mtime", 0)}, nil, "", "impossible"},
		{"a deleted file of negative size", []rec{inode(attributes(-1)...)}, nil, "", "impossible"},
		{"a deleted file of no size at all", []rec{inode(attributes(int64(1<<63 - 1))...)}, nil, "", "setting size"},
		{"contents behind the end", []rec{inode(attributes(4)...)}, of("inode", 2), "abc", "behind the end"},
		{"contents far behind the end", []rec{inode(attributes(4)...)}, of("inode", 1<<63), "abc", "behind the end"},
		{"packets in a file", []rec{inode(attributes(4)...)}, of("inode", 0, 3), "abc", "behind the end"},
		{"a deleted file nowhere", []rec{{"inode", m(append([]any{"dir", "nowhere"}, attributes(0)...)...)}}, nil, "", "not an absolute path"},
		{"an attribute without a name", []rec{inode(attributes(0, "xattrs", []any{m("name", "", "value", []byte{})})...)}, nil, "", "no name of an extended attribute"},
		{"an attribute of no kind", []rec{inode(attributes(0, "xattrs", []any{m("name", "x.y", "value", []byte{1})})...)}, nil, "", "setting extended attribute"},
		{"a deleted file at -1", []rec{inode(attributes(0)...), {"file.deleted", m("inode", ref(1, "inode"), "flags", 0, "pos", -1)}}, nil, "", "position -1"},
		{"a deleted file truncated", []rec{inode(attributes(0)...), {"file.deleted", m("inode", ref(1, "inode"), "flags", unix.O_TRUNC)}}, nil, "", "do not belong"},
		{"a memfd with unknown seals", []rec{{"inode.memfd", m(append([]any{"name", "x", "seals", 1 << 20}, attributes(0)...)...)}}, nil, "", "impossible"},
		{"a memfd with NUL", []rec{{"inode.memfd", m(append([]any{"name", "x\x00y"}, attributes(0)...)...)}}, nil, "", "impossible"},
		{"a memfd with a long name", []rec{{"inode.memfd", m(append([]any{"name", strings.Repeat("x", 300)}, attributes(0)...)...)}}, nil, "", "making memfd"},
		{"an external that is not given", []rec{{"file.external", m("name", "/dev/ttyS9", "flags", 2, "mode", unix.S_IFCHR)}}, nil, "", "nothing was given in its place"},
		{"an external of a number", []rec{{"file.external", m("name", "x", "flags", 2, "mode", 0, "standard", []any{7})}}, nil, "", "7 is no standard descriptor"},
		{"a removed directory with a path for a name", []rec{{"directory.removed", m(append([]any{"dir", "/tmp", "name", "../x"}, attributes(0)...)...)}}, nil, "", "no name of a directory"},
		{"a removed directory that is its parent", []rec{{"directory.removed", m(append([]any{"dir", "/tmp", "name", ".."}, attributes(0)...)...)}}, nil, "", "no name of a directory"},
		{"a removed directory with contents", []rec{{"directory.removed", m(append([]any{"dir", "/tmp", "name", "x"}, attributes(1)...)...)}}, nil, "", "no name of a directory"},
		{"a removed directory at no path", []rec{{"directory.removed", m(append([]any{"dir", "tmp", "name", "x"}, attributes(0)...)...)}}, nil, "", "not an absolute path"},
		{"a relative root", []rec{{"fs", m("root", "x", "cwd", "/", "umask", 0)}}, nil, "", "not an absolute path"},
		{"a file as cwd", []rec{{"fs", m("root", "/", "cwd", file, "umask", 0)}}, nil, "", "is a regular file now"},
		{"a large umask", []rec{{"fs", m("root", "/", "cwd", "/", "umask", 0o1000)}}, nil, "", "umask 01000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := restore(t, c.recs, c.data, []byte(c.payload))
			r.Close()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
		})
	}
	leftovers(t, dir, "fifo", "file")
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// A FIFO that somebody uses is not mixed with the contents of the image.
func TestFIFOInUse(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.WriteString("used"); err != nil {
		t.Fatal(err)
	}
	_, err = restore(t, []rec{{"pipe.fifo", m("path", fifo, "size", 65536)}}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "is in use: it holds 4 bytes") {
		t.Errorf("error %v", err)
	}
}

// A file of a control group that is gone is replaced by the same file of the group above.
func TestCgroupGone(t *testing.T) {
	const dir = "/sys/fs/cgroup/cpu"
	if _, err := os.Stat(dir + "/cpu.shares"); err != nil {
		t.Skipf("needs a cgroup v1 hierarchy of its own for cpu: %v", err)
	}
	for _, c := range []struct {
		cgroup     bool
		path, want string
	}{{true, dir + "/gone/gone/cpu.shares", dir + "/cpu.shares"}, {false, dir + "/gone/gone/cpu.shares", ""}, {true, dir + "/gone/cpu.nothing", ""}, {true, "/gone/cpu.shares", ""}} {
		r, err := restore(t, []rec{{"file.regular", m("path", c.path, "flags", 0, "mode", unix.S_IFREG|0o644, "size", 0, "cgroup", c.cgroup)}}, nil, nil)
		if c.want == "" {
			if !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: error %v", c.path, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fd, err := r.File(ref(1, "file"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); got != c.want {
			t.Errorf("%s: opened %s, %v", c.path, got, err)
		}
	}
}

// Tables that no process can have are refused before a task is touched.
func TestHostileTables(t *testing.T) {
	file := func(fd any) stream.Map { return m("fd", fd, "file", ref(1, "file")) }
	for _, c := range []struct {
		name    string
		entries []any
		lock    stream.Map
		want    string
	}{
		{"negative", []any{file(-1)}, nil, "descriptor -1"},
		{"twice", []any{file(3), file(3)}, nil, "descriptor 3 behind 3"},
		{"not in order", []any{file(4), file(3)}, nil, "descriptor 3 behind 4"},
		{"too high", []any{file(1 << 30)}, nil, "descriptor 1073741824"},
		{"nothing", []any{m("fd", 3, "file", stream.Ref{})}, nil, "leads to nothing"},
		{"no file", []any{m("fd", 3, "file", ref(2, "inode"))}, nil, "not an open file"},
		{"lock of nothing", []any{file(3)}, m("fd", 4, "kind", "posix"), "descriptor 4, which the table does not have"},
		{"lock of another kind", []any{file(3)}, m("fd", 3, "kind", "deleg"), `kind "deleg"`},
		{"lease of a part", []any{file(3)}, m("fd", 3, "kind", "lease", "start", 1), "a lock by lease of a part"},
		{"lock before the file", []any{file(3)}, m("fd", 3, "kind", "ofd", "start", -1), "0 bytes at -1"},
		{"lock too long", []any{file(3)}, m("fd", 3, "kind", "posix", "start", 1, "length", int64(math.MaxInt64)), "9223372036854775807 bytes at 1"},
		{"owner of nothing", []any{file(3)}, m("fd", 4, "kind", "thread"), "descriptor 4, which the table does not have"},
		{"owner of another kind", []any{file(3)}, m("fd", 3, "kind", "session", "id", 5), `kind "session"`},
		{"owner without a kind", []any{file(3)}, m("fd", 3, "kind", "", "id", 7), "number 7"},
		{"owner of number -1", []any{file(3)}, m("fd", 3, "kind", "group", "id", -1), "number -1"},
		{"owner with a signal too many", []any{file(3)}, m("fd", 3, "kind", "thread", "signal", 65), "signal 65"},
		{"owner of no user", []any{file(3)}, m("fd", 3, "kind", "group", "id", 7, "uid", uint32(math.MaxUint32)), "user 4294967295"},
		{"lock of a part by flock", []any{file(3)}, m("fd", 3, "kind", "flock", "length", 1), "flock of a part"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := m("entries", c.entries)
			if strings.HasPrefix(c.name, "owner") {
				table, c.lock = m("entries", c.entries, "owners", []any{c.lock}), nil
			}
			if c.lock != nil {
				table = m("entries", c.entries, "locks", []any{c.lock})
			}
			recs := []rec{
				{"file.device", m("path", "/dev/null", "flags", 0, "major", 1, "minor", 3)},
				{"inode.memfd", m(append([]any{"name", "x"}, attributes(0)...)...)},
				{"fdtable", table},
			}
			image := filestest.Write(t, func(w *stream.Writer) error {
				for i, r := range recs {
					if err := w.Put(r.typ, uint32(i+1), r.meta, nil); err != nil {
						return err
					}
				}
				return nil
			})
			r, err := filestest.Restore(t, image, func(r *object.Restorer) { r.PoolBase = 700 })
			if err == nil {
				err = files.TableCalls(r.Restorer, r.NewBatch(t), object.All[files.TableState](r.Plan)[0].State)
			}
			var bad *object.BadImage
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
