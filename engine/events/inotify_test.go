package events_test

import (
	"errors"
	"math"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/events"
	"crpipe/engine/files/filestest"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

func (s *setup) add(fd int, path string, mask uint32, want int) {
	wd, err := unix.InotifyAddWatch(fd, path, mask)
	s.fail(err)
	if err == nil && wd != want {
		s.fail(errors.New("a watch has another number: " + path))
	}
}

// setNextWD is INOTIFY_IOC_SETNEXTWD.
const setNextWD = unix.TUNSETIFF&^0xffff | 'I'<<8

// inotifyProgram has instances whose queues are empty.
func inotifyProgram() error {
	s, dir := &setup{}, os.Getenv("DIR")
	s.fail(os.MkdirAll(dir+"/a/b", 0o755))
	for _, name := range []string{"/file", "/a/other"} {
		s.fail(os.WriteFile(dir+name, []byte("text"), 0o644))
	}
	s.fail(os.Link(dir+"/file", dir+"/a/hard"))
	s.fail(os.Symlink("nowhere", dir+"/link"))
	s.put(20)(unix.InotifyInit1(unix.IN_NONBLOCK))
	s.put(21)(unix.InotifyInit1(unix.IN_CLOEXEC))
	s.add(20, dir, unix.IN_ALL_EVENTS, 1)
	s.add(20, dir+"/file", unix.IN_MODIFY|unix.IN_ONESHOT, 2)
	s.fail(unix.IoctlSetInt(20, setNextWD, 1<<30))
	s.add(20, dir+"/a/b", unix.IN_CREATE|unix.IN_EXCL_UNLINK, 1<<30)
	s.add(20, dir+"/link", unix.IN_DELETE_SELF|unix.IN_DONT_FOLLOW, 1<<30+1)
	s.fail(unix.IoctlSetInt(20, setNextWD, 7))
	s.add(20, dir+"/a/hard", unix.IN_OPEN, 2) // the same inode: the same watch
	s.add(20, dir+"/a/other", unix.IN_OPEN|unix.IN_MASK_ADD, 7)
	s.fail(unix.IoctlSetInt(20, setNextWD, math.MaxInt32))
	_, err := unix.FcntlInt(21, unix.F_SETFL, unix.O_APPEND)
	s.fail(err)
	return s.err
}

func TestInotify(t *testing.T) {
	view := filestest.View(t)
	dir := t.TempDir()
	t.Setenv("DIR", dir)
	first, second := roundTrip(t, "inotify", func(typ stream.Type, field string) bool {
		return view.Source() != kernelview.SourceBPF && typ == "inotify"
	})
	text := filestest.Describe(t, first, nil)
	for _, want := range []string{"flags=2048", "flags=1024", "wd=1 mask=4095 path=\"" + dir + "\"", "wd=1073741824 mask=67109120 path=\"" + dir + "/a/b\"",
		"wd=1073741825 mask=1024 path=\"" + dir + "/link\" mode=41471", "wd=7 mask=", "wd=2 mask=32 ", "/a/other"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if view.Source() == kernelview.SourceBPF && !strings.Contains(filestest.Describe(t, second, nil), "next=2147483647") {
		t.Errorf("the number of the next watch is lost:\n%s", text)
	}
}

// heldInotifyProgram has what must be refused.
func heldInotifyProgram() error {
	s, dir := &setup{}, os.Getenv("DIR")
	for _, name := range []string{"/gone", "/file"} {
		s.fail(os.WriteFile(dir+name, nil, 0o644))
	}
	s.put(20)(unix.InotifyInit1(0))
	s.add(20, dir, unix.IN_CREATE, 1)
	s.fail(os.WriteFile(dir+"/new", nil, 0o644)) // an event
	s.put(21)(unix.InotifyInit1(0))
	s.put(22)(unix.Open(dir+"/gone", unix.O_PATH, 0))
	s.add(21, dir+"/gone", unix.IN_MODIFY, 1)
	s.fail(os.Remove(dir + "/gone"))
	s.put(23)(unix.InotifyInit1(0))
	s.add(23, "/proc/self/status", unix.IN_MODIFY, 1)
	s.fail(os.Mkdir(dir+"/sub", 0o755)) // where a file is read by the dump
	s.fail(os.WriteFile(dir+"/sub/open", []byte("text"), 0o644))
	s.put(24)(unix.InotifyInit1(0))
	s.put(25)(unix.Open(dir+"/sub/open", unix.O_RDWR, 0))
	s.fail(os.Remove(dir + "/sub/open"))
	s.add(24, dir+"/sub", unix.IN_CREATE|unix.IN_ACCESS, 1)
	s.put(26)(unix.InotifyInit1(0))
	s.add(26, dir+"/sub", unix.IN_ALL_EVENTS|unix.IN_EXCL_UNLINK, 1) // which does not hear of it
	s.put(27)(unix.InotifyInit1(0))
	s.add(27, "/proc/self/fd/25", unix.IN_OPEN, 1)
	return s.err
}

func TestInotifyRefused(t *testing.T) {
	view := filestest.View(t)
	dir := t.TempDir()
	c := filestest.Start(t, "heldinotify", "DIR="+dir)
	err := filestest.Look(t, restored(filestest.Dumper(t, view, c.PID)))
	var refused object.Refusals
	if !errors.As(err, &refused) || len(refused) != 5 || refused.Pass() || !refused[:1].Pass() || refused.ExitCode() != object.ExitUnsupported {
		t.Fatalf("refused %v, want five", err)
	}
	for _, want := range []string{
		"fd 20 -> anon_inode:inotify: it has events that were not read yet",
		"fd 21 -> anon_inode:inotify: its watch 1 is of something to which no path leads",
		"fd 24 -> anon_inode:inotify: it watches who opens or reads " + dir + "/sub/open (deleted)",
		"fd 27 -> anon_inode:inotify: it watches who opens or reads " + dir + "/sub/open (deleted)",
		"fd 23 -> anon_inode:inotify: its watch 1 is of a file of proc(5)",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is missing in\n%s", want, err)
		}
	}
}

func TestHostileInotify(t *testing.T) {
	dir := t.TempDir()
	ref := func(n uint32, class string) stream.Ref { return stream.Ref{ID: n, Class: class} }
	m := func(kv ...any) stream.Map {
		var out stream.Map
		for i := 0; i < len(kv); i += 2 {
			out = append(out, stream.Field{Name: kv[i].(string), Value: kv[i+1]})
		}
		return out
	}
	watch := func(wd int64, mask uint64, path string, mode uint64) stream.Map {
		return m("wd", wd, "mask", mask, "path", path, "mode", mode)
	}
	for _, c := range []struct {
		name    string
		next    int64
		flags   uint64
		twice   bool
		nobody  bool
		watches []any
		want    string
	}{
		{name: "next", next: -1, want: "is to be number -1"},
		{name: "flags", flags: unix.O_RDWR, want: "do not belong here"},
		{name: "creating", flags: unix.O_CREAT, want: "do not belong here"},
		{name: "two files", twice: true, want: "the same inotify instance"},
		{name: "no file", nobody: true, want: "no open file is"},
		{name: "negative", watches: []any{watch(-1, 2, dir, unix.S_IFDIR)}, want: "watch -1"},
		{name: "zero", watches: []any{watch(0, 2, dir, unix.S_IFDIR)}, want: "watch 0"},
		{name: "twice", watches: []any{watch(1, 2, dir, unix.S_IFDIR), watch(1, 2, "/", unix.S_IFDIR)}, want: "one too many"},
		{name: "mask", watches: []any{watch(1, unix.IN_MASK_ADD, dir, unix.S_IFDIR)}, want: "impossible"},
		{name: "relative", watches: []any{watch(1, 2, "etc", unix.S_IFDIR)}, want: "not an absolute path"},
		{name: "NUL", watches: []any{watch(1, 2, "/etc\x00", unix.S_IFDIR)}, want: "NUL"},
		{name: "another type", watches: []any{watch(1, 2, dir, unix.S_IFREG)}, want: "it was a regular file when it was dumped"},
		{name: "one inode", watches: []any{watch(1, 2, dir, unix.S_IFDIR), watch(2, 2, dir+"/.", unix.S_IFDIR)}, want: "another watch of the same instance"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := filestest.Write(t, func(w *stream.Writer) error {
				err := w.Put("inotify", 1, m("next", c.next), nil)
				if !c.nobody {
					err = errors.Join(err, w.Put("file.inotify", 2, m("inotify", ref(1, "inotify"), "flags", c.flags), nil))
				}
				if c.twice {
					err = errors.Join(err, w.Put("file.inotify", 3, m("inotify", ref(1, "inotify"), "flags", c.flags), nil))
				}
				if c.watches != nil {
					err = errors.Join(err, w.Put("link.inotify", 0, m("inotify", ref(1, "inotify"), "watches", c.watches), nil))
				}
				return err
			})
			r, err := filestest.Restore(t, image, nil)
			if err == nil {
				err = events.StartWatches(r.Restorer)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
