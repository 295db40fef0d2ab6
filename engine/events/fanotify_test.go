package events_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/events"
	"crpipe/engine/files/filestest"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

func (s *setup) group(fd int, flags, eventFlags uint) {
	s.put(fd)(unix.FanotifyInit(flags, eventFlags))
}

func (s *setup) mark(fd int, flags uint, mask uint64, path string) {
	if err := unix.FanotifyMark(fd, flags|unix.FAN_MARK_ADD, mask, unix.AT_FDCWD, path); err != nil {
		s.fail(fmt.Errorf("mark %#x, %#x of %s: %w", flags, mask, path, err))
	}
}

// fanotifyProgram has groups of every class and way of reporting, and marks of every sort, nothing of which has happened.
func fanotifyProgram() error {
	s, dir := &setup{}, os.Getenv("DIR")
	s.fail(os.MkdirAll(dir+"/a/b", 0o755))
	s.fail(os.Mkdir(dir+"/c", 0o755))
	for _, name := range []string{"/file", "/other", "/third", "/cleared", "/gone"} {
		s.fail(os.WriteFile(dir+name, []byte("text"), 0o644))
	}
	s.fail(os.Symlink("nowhere", dir+"/link"))
	s.put(19)(unix.Open(dir+"/gone", unix.O_RDONLY, 0))
	s.fail(os.Remove(dir + "/gone"))

	s.group(20, unix.FAN_CLASS_NOTIF, unix.O_RDONLY)
	s.mark(20, 0, unix.FAN_MODIFY|unix.FAN_ONDIR|unix.FAN_EVENT_ON_CHILD, dir)
	s.mark(20, 0, unix.FAN_CLOSE_WRITE, dir+"/file")
	s.mark(20, unix.FAN_MARK_IGNORED_MASK, unix.FAN_MODIFY, dir+"/file")
	s.mark(20, unix.FAN_MARK_IGNORED_MASK|unix.FAN_MARK_IGNORED_SURV_MODIFY, unix.FAN_CLOSE_WRITE, dir+"/other")
	s.mark(20, unix.FAN_MARK_DONT_FOLLOW, unix.FAN_MODIFY, dir+"/link")
	s.mark(20, 0, unix.FAN_MODIFY, "/proc/self/fd/19")
	s.mark(20, unix.FAN_MARK_MOUNT, unix.FAN_OPEN_EXEC, "/dev")
	s.mark(20, unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN_EXEC, "/sys")
	s.group(21, unix.FAN_CLASS_CONTENT|unix.FAN_NONBLOCK|unix.FAN_CLOEXEC|unix.FAN_UNLIMITED_QUEUE|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDWR|unix.O_NOATIME|unix.O_CLOEXEC)
	s.mark(21, 0, unix.FAN_OPEN_PERM|unix.FAN_ACCESS_PERM|unix.FAN_OPEN_EXEC, dir+"/third")
	s.group(22, unix.FAN_CLASS_PRE_CONTENT|unix.FAN_NONBLOCK, unix.O_RDONLY)
	_, err := unix.FcntlInt(22, unix.F_SETFL, unix.O_APPEND)
	s.fail(err)
	s.mark(22, 0, unix.FAN_OPEN_EXEC_PERM|unix.FAN_EVENT_ON_CHILD, dir+"/a/b")
	s.group(23, unix.FAN_REPORT_DFID_NAME_TARGET|unix.FAN_REPORT_PIDFD, unix.O_RDONLY)
	s.mark(23, unix.FAN_MARK_EVICTABLE, unix.FAN_CREATE|unix.FAN_ONDIR, dir+"/c")
	s.mark(23, unix.FAN_MARK_IGNORE_SURV, unix.FAN_CREATE|unix.FAN_ONDIR|unix.FAN_EVENT_ON_CHILD, dir+"/a")
	s.mark(23, 0, unix.FAN_RENAME|unix.FAN_DELETE_SELF|unix.FAN_ONDIR, dir+"/a/b")
	s.mark(23, unix.FAN_MARK_FILESYSTEM, unix.FAN_FS_ERROR, "/dev")
	s.mark(23, unix.FAN_MARK_IGNORE_SURV, unix.FAN_CREATE, dir+"/a/b") // taken back: its flags stay
	s.fail(unix.FanotifyMark(23, unix.FAN_MARK_REMOVE|unix.FAN_MARK_IGNORE_SURV, unix.FAN_CREATE, unix.AT_FDCWD, dir+"/a/b"))
	s.group(24, unix.FAN_REPORT_FID|unix.FAN_REPORT_TID, unix.O_RDONLY)
	s.mark(24, 0, unix.FAN_ATTRIB|unix.FAN_DELETE_SELF, dir+"/other")
	s.mark(24, unix.FAN_MARK_IGNORE, unix.FAN_MODIFY, dir+"/file")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // which ends with the goroutine
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 1, 1, 1); e != 0 {
			s.fail(e)
		}
		s.group(25, unix.FAN_REPORT_FID, unix.O_RDONLY)
		s.mark(25, 0, unix.FAN_CREATE|unix.FAN_ONDIR, "/usr")
	}()
	<-done
	if fd, err := unix.FanotifyInit(unix.FAN_REPORT_MNT, 0); err == nil { // Linux 6.14
		s.put(26)(fd, nil)
		const attach, detach = 0x1000000, 0x2000000 // FAN_MNT_ATTACH, FAN_MNT_DETACH
		s.mark(26, unix.FAN_MARK_MNTNS, attach|detach, "/proc/self/ns/mnt")
	}
	s.group(27, unix.FAN_REPORT_FD_ERROR|unix.FAN_ENABLE_AUDIT, unix.O_RDONLY)
	s.mark(27, unix.FAN_MARK_IGNORED_MASK, unix.FAN_OPEN, dir+"/cleared")
	s.fail(os.WriteFile(dir+"/cleared", []byte("x"), 0o644)) // whose mark then is empty
	event := make([]byte, 4096)
	_, err = unix.Read(20, event)
	s.fail(err)
	s.fail(unix.Close(int(binary.NativeEndian.Uint32(event[16:])))) // fd of struct fanotify_event_metadata
	return s.err
}

func needFanotify(t *testing.T) kernelview.View {
	view := filestest.View(t)
	if fd, err := unix.FanotifyInit(unix.FAN_REPORT_FD_ERROR, 0); err != nil {
		t.Skipf("fanotify of Linux 6.13: %v", err)
	} else {
		_ = unix.Close(fd) // only a question
	}
	return view
}

func TestFanotify(t *testing.T) {
	view := needFanotify(t)
	if view.Source() != kernelview.SourceBPF {
		t.Skip("only the kernel's memory tells the state of fanotify groups")
	}
	dir := t.TempDir()
	t.Setenv("DIR", dir)
	first, _ := roundTrip(t, "fanotify", nil)
	text := filestest.Describe(t, first, nil)
	for _, want := range []string{
		"init=0 eventflags=32768", "init=55 eventflags=", "init=10 eventflags=", "init=7808 ", "init=768 ", "init=512 eventflags=32768 unprivileged=true", "init=8192 ",
		"mask=1207959554 path=\"" + dir + "\"", "flags=512 mask=", "flags=64 ignored=8 ", "on=\"mount\" mask=4096 path=\"/dev\"", "on=\"filesystem\" mask=4096 path=\"/sys\"", "on=\"namespace\" mask=50331648",
		"path=\"" + dir + "/cleared\"", "flags=1024 ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

// heldFanotifyProgram has what must be refused.
func heldFanotifyProgram() error {
	s, dir := &setup{}, os.Getenv("DIR")
	for _, name := range []string{"/gone", "/file", "/asked"} {
		s.fail(os.WriteFile(dir+name, nil, 0o644))
	}
	s.group(20, unix.FAN_REPORT_FID, 0)
	s.mark(20, 0, unix.FAN_CREATE, dir)
	s.fail(os.WriteFile(dir+"/new", nil, 0o644)) // an event
	s.group(21, unix.FAN_REPORT_FID, 0)
	s.put(22)(unix.Open(dir+"/gone", unix.O_PATH, 0))
	s.mark(21, 0, unix.FAN_MODIFY, dir+"/gone")
	s.fail(os.Remove(dir + "/gone"))
	s.group(23, unix.FAN_REPORT_FID, 0)
	s.mark(23, 0, unix.FAN_MODIFY, "/proc/self/status")
	s.group(24, 0, 0)
	s.mark(24, unix.FAN_MARK_IGNORED_MASK, unix.FAN_MODIFY, dir+"/file")
	s.put(25)(unix.Open(dir+"/file", unix.O_WRONLY, 0))
	s.group(27, unix.FAN_CLASS_NOTIF, 0)
	s.mark(27, 0, unix.FAN_OPEN, dir+"/file")
	s.put(28)(unix.Open(dir+"/file", unix.O_RDONLY, 0))
	event := make([]byte, 24)
	_, err := unix.Read(27, event)
	s.fail(err)
	s.put(29)(int(binary.NativeEndian.Uint32(event[16:])), nil)
	s.group(26, unix.FAN_CLASS_CONTENT, 0)
	s.mark(26, 0, unix.FAN_OPEN_PERM, dir+"/asked")
	unix.CloseOnExec(26)
	_, err = syscall.ForkExec("/bin/cat", []string{"cat", dir + "/asked"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}}) // which waits until nobody is asked any more
	s.fail(err)
	_, err = unix.Read(26, event)
	s.fail(err)
	s.fail(unix.Close(int(binary.NativeEndian.Uint32(event[16:]))))
	return s.err
}

func TestFanotifyRefused(t *testing.T) {
	view := needFanotify(t)
	if view.Source() != kernelview.SourceBPF {
		t.Skip("only the kernel's memory tells the state of fanotify groups")
	}
	c := filestest.Start(t, "heldfanotify", "DIR="+t.TempDir())
	err := filestest.Look(t, restored(filestest.Dumper(t, view, c.PID)))
	var refused object.Refusals
	if !errors.As(err, &refused) || len(refused) != 6 || refused.Pass() || refused.ExitCode() != object.ExitUnsupported {
		t.Fatalf("refused %v, want six", err)
	}
	for _, want := range []string{
		"fd 20 -> anon_inode:[fanotify]: it has events that were not read yet",
		"fd 21 -> anon_inode:[fanotify]: it has a mark on something to which no path leads",
		"fd 23 -> anon_inode:[fanotify]: it has a mark on a file of proc(5)",
		"fd 24 -> anon_inode:[fanotify]: it ignores events of ",
		"/file: it is the file of an event of fanotify(7)",
		"fd 26 -> anon_inode:[fanotify]: processes wait for its answers",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is missing in\n%s", want, err)
		}
	}
}

func TestHostileFanotify(t *testing.T) {
	needFanotify(t)
	dir := t.TempDir()
	ref := func(n uint32, class string) stream.Ref { return stream.Ref{ID: n, Class: class} }
	m := func(kv ...any) stream.Map {
		var out stream.Map
		for i := 0; i < len(kv); i += 2 {
			out = append(out, stream.Field{Name: kv[i].(string), Value: kv[i+1]})
		}
		return out
	}
	for _, c := range []struct {
		name   string
		init   uint64
		events uint64
		flags  uint64
		twice  bool
		nobody bool
		mark   stream.Map
		want   string
	}{
		{name: "init", init: 1 << 30, flags: unix.O_RDWR, want: "that do not exist"},
		{name: "class", init: unix.FAN_ALL_CLASS_BITS, flags: unix.O_RDWR, want: "flags 0xc"},
		{name: "event flags", events: unix.O_CREAT, flags: unix.O_RDWR, want: "event flags 0x40"},
		{name: "read only", flags: unix.O_RDONLY, want: "do not belong here"},
		{name: "creating", flags: unix.O_RDWR | unix.O_CREAT, want: "do not belong here"},
		{name: "two files", flags: unix.O_RDWR, twice: true, want: "the same fanotify group"},
		{name: "no file", flags: unix.O_RDWR, nobody: true, want: "no open file is"},
		{name: "mark flags", flags: unix.O_RDWR, mark: m("flags", unix.FAN_MARK_FLUSH, "mask", 2, "path", dir, "mode", unix.S_IFDIR), want: "impossible"},
		{name: "object", flags: unix.O_RDWR, mark: m("on", "everything", "mask", 2, "path", dir, "mode", unix.S_IFDIR), want: "impossible"},
		{name: "mask", flags: unix.O_RDWR, mark: m("mask", uint32(1<<31), "path", dir, "mode", unix.S_IFDIR), want: "invalid argument"},
		{name: "permission", flags: unix.O_RDWR, mark: m("mask", unix.FAN_OPEN_PERM, "path", dir, "mode", unix.S_IFDIR), want: "invalid argument"},
		{name: "relative", flags: unix.O_RDWR, mark: m("mask", 2, "path", "etc", "mode", unix.S_IFDIR), want: "not an absolute path"},
		{name: "another type", flags: unix.O_RDWR, mark: m("mask", 2, "path", dir, "mode", unix.S_IFREG), want: "it was a regular file when it was dumped"},
		{name: "no mount", flags: unix.O_RDWR, mark: m("on", "mount", "mask", 2, "path", dir, "mode", unix.S_IFDIR), want: "no mount point"},
		{name: "not as told", flags: unix.O_RDWR, mark: m("ignored", unix.FAN_ONDIR, "path", dir, "mode", unix.S_IFDIR), want: "does not let"},
		{name: "a mount that can be forgotten", flags: unix.O_RDWR, mark: m("on", "mount", "flags", unix.FAN_MARK_EVICTABLE, "mask", 2, "path", "/", "mode", unix.S_IFDIR), want: "invalid argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := filestest.Write(t, func(w *stream.Writer) error {
				err := w.Put("fanotify", 1, m("init", c.init, "eventflags", c.events), nil)
				if !c.nobody {
					err = errors.Join(err, w.Put("file.fanotify", 2, m("fanotify", ref(1, "fanotify"), "flags", c.flags), nil))
				}
				if c.twice {
					err = errors.Join(err, w.Put("file.fanotify", 3, m("fanotify", ref(1, "fanotify"), "flags", c.flags), nil))
				}
				if c.mark != nil {
					err = errors.Join(err, w.Put("link.fanotify", 0, m("fanotify", ref(1, "fanotify"), "marks", []any{c.mark}), nil))
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
