package terminals_test

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/files/filestest"
	"crpipe/engine/object"
	family "crpipe/engine/terminals"
	"crpipe/stream"
)

func TestMain(m *testing.M) {
	filestest.Main(m, map[string]func() error{"random": randomProgram})
}

// open makes a pair, as master and slave, of which the second may be -1.
func open(far uint32, slave bool) (m, s int, err error) {
	var between []int
	for {
		if m, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err != nil {
			return -1, -1, err
		}
		n, err := unix.IoctlGetUint32(m, unix.TIOCGPTN)
		if err != nil {
			return -1, -1, err
		}
		if n < far {
			between = append(between, m)
			continue
		}
		for _, fd := range between {
			_ = unix.Close(fd)
		}
		if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil || !slave {
			return m, -1, err
		}
		s, err = unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		return m, s, err
	}
}

// randomProgram has a terminal in a random state.
func randomProgram() error {
	seed, err := strconv.ParseInt(os.Getenv("SEED"), 10, 64)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewSource(seed))
	m, s, err := open(300, true)
	if err != nil {
		return err
	}
	for _, fd := range []*int{&m, &s} { // where the test expects nothing else
		n, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD, 20)
		if err != nil {
			return err
		}
		_ = unix.Close(*fd)
		*fd = n
	}
	// The getters and setters of x/sys are enough here: speeds stay as they are.
	t, err := unix.IoctlGetTermios(s, unix.TCGETS)
	if err != nil {
		return err
	}
	yes := func(n int) bool { return r.Intn(n) == 0 }
	flip := func(flags *uint32, bits ...uint32) {
		for _, b := range bits {
			if yes(2) {
				*flags ^= b
			}
		}
	}
	flip(&t.Iflag, unix.IXON, unix.ICRNL, unix.INLCR, unix.IGNCR, unix.IUTF8, unix.ISTRIP, unix.IXANY)
	flip(&t.Oflag, unix.OPOST, unix.ONLCR, unix.OLCUC, unix.ONLRET, unix.XTABS)
	flip(&t.Lflag, unix.ICANON, unix.ECHO, unix.ECHOE, unix.ECHOK, unix.ECHOCTL, unix.IEXTEN, unix.NOFLSH)
	t.Lflag &^= unix.ISIG | unix.ECHOPRT
	if yes(8) {
		t.Lflag |= unix.EXTPROC
	}
	if yes(3) {
		t.Cc[unix.VEOL], t.Cc[unix.VEOL2] = 'x', 0xfe
	}
	if err := unix.IoctlSetTermios(s, unix.TCSETS, t); err != nil {
		return err
	}
	bytes := func(most int) []byte {
		b := make([]byte, r.Intn(most))
		for i := range b {
			switch r.Intn(6) {
			case 0:
				b[i] = byte(r.Intn(256))
			case 1:
				b[i] = "\n\r\004\026\tx\xfe"[r.Intn(7)]
			default:
				b[i] = byte('a' + r.Intn(26))
			}
		}
		return b
	}
	for range r.Intn(6) {
		switch r.Intn(8) {
		case 0:
			t.Lflag ^= unix.ICANON // lines without an end, and bytes with one
			err = unix.IoctlSetTermios(s, unix.TCSETS, t)
		case 1, 2, 3:
			_, err = unix.Write(m, bytes([]int{20, 300, 6000}[r.Intn(3)]))
		case 4, 5:
			_, err = unix.Write(s, bytes([]int{20, 300, 6000}[r.Intn(3)]))
		case 6:
			b := make([]byte, 100)
			_, err = unix.Read(s, b)
		case 7:
			b := make([]byte, 1000)
			_, err = unix.Read(m, b)
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	if yes(4) {
		if err := unix.IoctlSetInt(s, unix.TCXONC, unix.TCOOFF); err != nil {
			return err
		}
	}
	if yes(4) {
		if err := unix.IoctlSetPointerInt(m, unix.TIOCPKT, 1); err != nil {
			return err
		}
		if yes(2) {
			if err := unix.IoctlSetInt(s, unix.TCXONC, r.Intn(2)); err != nil {
				return err
			}
		}
	}
	if yes(4) {
		_ = unix.Close(s)
	}
	return unix.IoctlSetWinsize(m, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(r.Intn(100)), Col: uint16(r.Intn(1 << 16))})
}

// Whatever a terminal holds, one that was restored holds the same, as the kernel's own memory shows it.
func TestRandomTerminals(t *testing.T) {
	view := filestest.View(t)
	if m, _, err := open(0, false); err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	} else {
		_ = unix.Close(m)
	}
	kept := 0
	first := time.Now().UnixNano()
	if v := os.Getenv("CRPIPE_SEED"); v != "" {
		first, _ = strconv.ParseInt(v, 10, 64)
	}
	for seed := first; seed < first+60; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c := filestest.Start(t, "random", fmt.Sprintf("SEED=%d", seed))
			d := filestest.Dumper(t, view, c.PID)
			if err := filestest.Look(t, d); err != nil {
				if !strings.Contains(err.Error(), "dump it") && !strings.Contains(err.Error(), "cannot be checkpointed") {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			image := filestest.Write(t, d.WriteRecords)
			c.End(t)
			r, err := filestest.Restore(t, image, nil)
			if err != nil {
				t.Fatal(err)
			}
			again := filestest.Dump(t, filestest.Dumper(t, view, r.Task(t)))
			want, have := terminals(t, image), terminals(t, again)
			if want != have {
				at := 0
				for at < min(len(have), len(want)) && have[at] == want[at] {
					at++
				}
				from := max(0, at-200)
				t.Errorf("restored\n%.300s ... %.400s\n(%d) instead of\n%.300s ... %.400s (%d)", have, have[from:], len(have), want, want[from:], len(want))
			}
			kept++
		})
	}
	if kept < 30 {
		t.Errorf("only %d terminals of 60 were kept", kept)
	}
}

// terminals writes down the pty records of an image.
func terminals(t *testing.T, image []byte) string {
	t.Helper()
	var out []string
	for _, line := range strings.Split(filestest.Describe(t, image, func(typ stream.Type, field string) bool {
		return field == "atime" || field == "mtime"
	}), "\n") {
		for _, part := range strings.Split(line, "file.") {
			if strings.HasPrefix(part, "pty") || strings.HasPrefix(part, "tty") {
				out = append(out, part)
			}
		}
	}
	return strings.Join(out, "\n")
}

// A number that somebody has is not taken from them; one that has hung up is made with another.
func TestNumberInUse(t *testing.T) {
	m, _, err := open(500, false)
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	defer unix.Close(m)
	n, err := unix.IoctlGetUint32(m, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	state := stream.Map{{Name: "path", Value: "/dev/ptmx"}, {Name: "index", Value: n}, {Name: "modes", Value: stream.Map{{Name: "cc", Value: make([]byte, 19)}}}}
	image := func(more ...stream.Field) []byte {
		return filestest.Write(t, func(w *stream.Writer) error { return w.Put("pty", 1, append(state, more...), nil) })
	}
	if _, err := filestest.Restore(t, image(), nil); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("/dev/pts/%d is in use", n)) {
		t.Errorf("error %v, want one that it is in use", err)
	}
	if _, err := filestest.Restore(t, image(stream.Field{Name: "hung_up", Value: true}), nil); err != nil {
		t.Error(err)
	}
}

// What stands in for a terminal that was outside must be one, for a session; a job does without.
func TestHostileOutside(t *testing.T) {
	cc := stream.Map{{Name: "cc", Value: make([]byte, 19)}}
	for _, c := range []struct {
		name string
		of   stream.Map
		want string
	}{
		{"a job", stream.Map{{Name: "name", Value: "/dev/pts/77"}, {Name: "modes", Value: cc}, {Name: "group", Value: 5}}, ""},
		{"no terminal", stream.Map{{Name: "name", Value: "/dev/pts/77"}, {Name: "modes", Value: cc}, {Name: "session", Value: 5}}, "session 5 had the controlling terminal /dev/pts/77, and no terminal was given"},
		{"no group", stream.Map{{Name: "name", Value: "/dev/pts/77"}, {Name: "modes", Value: cc}}, "session 0 with group 0"},
		{"negative", stream.Map{{Name: "name", Value: "/dev/pts/77"}, {Name: "modes", Value: cc}, {Name: "session", Value: -5}}, "session -5"},
		{"no characters", stream.Map{{Name: "name", Value: "/dev/pts/77"}, {Name: "modes", Value: stream.Map{{Name: "cc", Value: []byte{1}}}}, {Name: "group", Value: 5}}, "special characters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := filestest.Write(t, func(w *stream.Writer) error { return w.Put("terminal", 0, c.of, nil) })
			r, err := filestest.Restore(t, image, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = family.OutsideTerminals(r.Restorer); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// An image cannot have terminals made that there cannot be.
func TestHostileTerminals(t *testing.T) {
	m := func(kv ...any) stream.Map {
		var out stream.Map
		for i := 0; i < len(kv); i += 2 {
			out = append(out, stream.Field{Name: kv[i].(string), Value: kv[i+1]})
		}
		return out
	}
	modes := func(lflag int) stream.Map { return m("cc", make([]byte, 19), "lflag", lflag) }
	many := make([]byte, 5000)
	for _, c := range []struct {
		name string
		pty  stream.Map
		want string
	}{
		{"no characters", m("path", "/dev/ptmx", "modes", m("cc", []byte{1})), "special characters"},
		{"a number", m("path", "/dev/ptmx", "index", 1<<20, "modes", modes(0)), "the number 1048576"},
		{"a path", m("path", "/dev/null", "modes", modes(0)), "makes no pseudo-terminals"},
		{"much", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "input", many), "more than it can"},
		{"ends in no lines", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "input", []byte("ab"), "ends", []any{1}), "does not read lines"},
		{"ends behind", m("path", "/dev/ptmx", "index", 400, "modes", modes(unix.ICANON), "input", []byte("ab"), "ends", []any{2}), "the end of a line at byte 2 of 2"},
		{"many ends", m("path", "/dev/ptmx", "index", 400, "modes", modes(unix.ICANON), "input", []byte("abc"), "ends", []any{0, 1, 2}), "more than two"},
		{"column", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "column", int64(1)<<31), "more than it can"},
		{"held", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "held", true), "held and not stopped"},
		{"stopped by nothing", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "stopped", true), "stopped by a character which does not"},
		{"a group", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "group", 7), "session 0 with group 7"},
		{"a mode", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "mode", unix.S_IFCHR), "mode 020000"},
		{"status", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "status", 4), "packet status"},
		{"much output", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "unread", make([]byte, 60000)), "does not take its contents"},
		{"unopened", m("path", "/dev/ptmx", "index", 400, "modes", modes(0), "unopened", true, "input", []byte("a")), "in use before"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := filestest.Write(t, func(w *stream.Writer) error { return w.Put("pty", 1, c.pty, nil) })
			_, err := filestest.Restore(t, image, func(r *object.Restorer) { t.Cleanup(r.Close) })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
