package files_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/files/filestest"
	"crpipe/engine/object"
	"crpipe/stream"
)

// external restores one external file and returns what its descriptor leads to and its flags.
func external(t *testing.T, state stream.Map, with func(r *object.Restorer)) (link string, flags int, err error) {
	t.Helper()
	image := filestest.Write(t, func(w *stream.Writer) error { return w.Put("file.external", 1, state, nil) })
	r, err := filestest.Restore(t, image, with)
	if err != nil {
		return "", 0, err
	}
	fd, err := r.File(ref(1, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if link, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
		t.Fatal(err)
	}
	if flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
		t.Fatal(err)
	}
	return link, flags, nil
}

func TestStandIns(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/fd/1")
	if err != nil {
		t.Fatal(err)
	}
	state := func(access int, standard ...any) stream.Map {
		return m("name", "pipe:[4711]", "flags", access, "mode", unix.S_IFIFO|0o600, "standard", standard)
	}
	give := func(key string, f *os.File) func(*object.Restorer) {
		return func(r *object.Restorer) { r.Inherit = map[string]int{key: int(f.Fd())} }
	}
	for _, c := range []struct {
		title string
		state stream.Map
		with  func(*object.Restorer)
		link  string
		flags int // access mode and O_NONBLOCK
		want  string
	}{
		{"by name", state(unix.O_RDONLY), give("pipe:[4711]", r), name, unix.O_RDONLY, ""},
		{"by word", state(unix.O_RDONLY, 0), give("stdin", r), name, unix.O_RDONLY, ""},
		{"by number", state(unix.O_WRONLY, 2), give("2", w), name, unix.O_WRONLY, ""},
		{"not by another's word", state(unix.O_WRONLY, 2), give("stdout", w), "/dev/null", unix.O_WRONLY, ""},
		{"the wrong way", state(unix.O_WRONLY, 1), give("stdout", r), "", 0, "open for the other direction"},
		{"closed", state(unix.O_WRONLY, 1), func(r *object.Restorer) { r.Inherit = map[string]int{"stdout": 590} }, "", 0, "looking at descriptor 590"},
		{"negative", state(unix.O_WRONLY, 1), func(r *object.Restorer) { r.Inherit = map[string]int{"stdout": -1} }, "", 0, "descriptor -1 cannot stand in"},
		{"null", state(unix.O_RDONLY, 0), nil, "/dev/null", unix.O_RDONLY, ""},
		{"null for both", state(unix.O_RDWR|unix.O_NONBLOCK, 0, 1), nil, "/dev/null", unix.O_RDWR | unix.O_NONBLOCK, ""},
		{"own", state(unix.O_WRONLY, 1), func(r *object.Restorer) { r.Wait = true }, own, -1, ""},
		{"no standard one", state(unix.O_WRONLY), func(r *object.Restorer) { r.Wait = true }, "", 0, "nothing was given in its place"},
	} {
		t.Run(c.title, func(t *testing.T) {
			link, flags, err := external(t, c.state, c.with)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want one with %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if link != c.link || c.flags >= 0 && flags&(unix.O_ACCMODE|unix.O_NONBLOCK) != c.flags {
				t.Errorf("%s with flags %#o, want %s with %#o", link, flags, c.link, c.flags)
			}
		})
	}
}

// A socket as stdin leads out of the tree when its other end was made there; a pair made inside does not.
func TestStandardSockets(t *testing.T) {
	view := filestest.View(t)
	c := filestest.Start(t, "sockets")
	got := refused(t, filestest.Look(t, filestest.Dumper(t, view, c.PID)))
	if len(got) != 3 || len(got[1]) == 0 || len(got[2]) == 0 || len(got[30]) == 0 {
		t.Errorf("refused %v, want 1 and 2, which are a pair, and 30, a pipe that is no standard descriptor any more", got)
	}

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	c = filestest.Start(t, "idle", fmt.Sprintf("%s=%d", filestest.StdinVariable, pair[1]))
	if err := unix.Close(pair[1]); err != nil {
		t.Fatal(err)
	}
	text := filestest.Describe(t, filestest.Dump(t, filestest.Dumper(t, view, c.PID)), nil)
	if !strings.Contains(text, `file.external {name="socket:[`) {
		t.Errorf("stdin is not external\n%s", text)
	}
}

// A terminal is not saved: standard descriptors on it, and whatever else is open on it, are external.
func TestTerminal(t *testing.T) {
	view := filestest.View(t)
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs a pseudo-terminal: %v", err)
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty := fmt.Sprintf("/dev/pts/%d", n)
	c := filestest.Start(t, "terminal", "TTY="+tty)
	image := filestest.Dump(t, filestest.Dumper(t, view, c.PID))
	text := filestest.Describe(t, image, nil)
	want := fmt.Sprintf(`file.external {name=%q flags=32770 mode=%d terminal=true standard=[`+"\n  2]}", tty, unix.S_IFCHR|0o600)
	if !strings.Contains(text, want) && !strings.Contains(text, strings.Replace(want, fmt.Sprint(unix.S_IFCHR|0o600), fmt.Sprint(unix.S_IFCHR|0o620), 1)) {
		t.Errorf("%s is missing in\n%s", want, text)
	}
	if n := strings.Count(text, fmt.Sprintf("file.external {name=%q", tty)); n != 2 {
		t.Errorf("%d open files on the terminal are external, want 2: 2 and 20\n%s", n, text)
	}
	if !strings.Contains(text, `file.external {name="/dev/tty" `) {
		t.Errorf("/dev/tty is not external\n%s", text)
	}
}
