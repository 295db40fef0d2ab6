package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"crpipe/stream"
)

// claimingError asks for a status and gives a hint.
type claimingError struct {
	text, hint string
	status     int
}

func (e *claimingError) Error() string { return e.text }
func (e *claimingError) ExitCode() int { return e.status }
func (e *claimingError) Hint() string  { return e.hint }

// listError is a list that claims a status for all that is in it.
type listError struct{ errs []error }

func (l *listError) Error() string   { return errors.Join(l.errs...).Error() }
func (l *listError) Unwrap() []error { return l.errs }
func (l *listError) ExitCode() int   { return StatusUnsupported }
func (l *listError) Hint() string    { return "of the list" }

func TestStatus(t *testing.T) {
	unsupported := &claimingError{"a", "", StatusUnsupported}
	missing := &claimingError{"b", "", StatusMissing}
	bad := &stream.FormatError{Err: stream.ErrTruncated}
	other := exec.Command("sh", "-c", "exit 4").Run()
	if runtime.GOOS == "windows" {
		other = errors.New("no sh")
	}
	for _, test := range []struct {
		name string
		err  error
		want int
	}{
		{"none", nil, 0},
		{"plain", errors.New("x"), 1},
		{"claimed", unsupported, 3},
		{"claimed inside", fmt.Errorf("dumping: %w", missing), 5},
		{"claimed inside one of two", fmt.Errorf("dumping: %w: %w", errors.New("x"), missing), 5},
		{"list", errors.Join(unsupported, unsupported), 3},
		{"list wrapped", fmt.Errorf("dumping: %w", errors.Join(unsupported, unsupported)), 3},
		{"list that disagrees", errors.Join(unsupported, missing), 5},
		{"list with a plain failure", errors.Join(unsupported, errors.New("x")), 1},
		{"the list itself claims", &listError{[]error{errors.New("x"), errors.New("y")}}, 3},
		{"bad stream", fmt.Errorf("reading: %w", bad), 4},
		{"producer failed", &stream.RemoteError{Text: "no"}, 4},
		{"read error inside a bad stream", &stream.FormatError{Err: &ioError{io.ErrUnexpectedEOF}}, 1},
		{"another program's status", fmt.Errorf("running: %w", other), 1},
		{"crash status is never chosen", &claimingError{"c", "", 2}, 1},
		{"usage", UsageError("x", "y"), 80},
		{"hinted", WithHint(unsupported, "z"), 3},
	} {
		if got := Status(test.err); got != test.want {
			t.Errorf("%s: status %d, want %d", test.name, got, test.want)
		}
	}
}

func TestStatusesAreComplete(t *testing.T) {
	seen := map[int]bool{}
	for _, s := range Statuses {
		if seen[s.Status] || s.Text == "" || !strings.HasSuffix(s.Text, ".") {
			t.Errorf("status %d: twice or not a sentence: %q", s.Status, s.Text)
		}
		seen[s.Status] = true
	}
	for _, s := range []int{StatusDone, StatusFailed, StatusUnsupported, StatusBadStream, StatusMissing, StatusUsage} {
		if !seen[s] {
			t.Errorf("status %d is not in the table", s)
		}
	}
	if seen[2] {
		t.Error("2 belongs to Go's runtime")
	}
}

func TestReport(t *testing.T) {
	a := &claimingError{"fd 7: cannot be dumped", "close it", 3}
	b := &claimingError{"fd 8: cannot be dumped", "close it", 3}
	for _, test := range []struct {
		name, want string
		err        error
	}{
		{"none", "", nil},
		{"quiet", "", fmt.Errorf("copying: %w", errQuiet)},
		{"plain", "cr-x: error: no\n", errors.New("no")},
		{"hint", "cr-x: error: fd 7: cannot be dumped\ncr-x: hint: close it\n", a},
		{"list, one hint", "cr-x: error: fd 7: cannot be dumped\ncr-x: error: fd 8: cannot be dumped\ncr-x: hint: close it\n", errors.Join(a, b)},
		{"list wrapped", "cr-x: error: pid 5: fd 7: cannot be dumped\ncr-x: error: pid 5: no\ncr-x: hint: close it\n", fmt.Errorf("pid 5: %w", errors.Join(a, errors.New("no")))},
		{"list in a list", "cr-x: error: 1\ncr-x: error: 2\ncr-x: error: 3\n", errors.Join(errors.New("1"), errors.Join(errors.New("2"), errors.New("3")))},
		{"two causes are one sentence", "cr-x: error: a: b\n", fmt.Errorf("%w: %w", errors.New("a"), errors.New("b"))},
		{"hint of the list", "cr-x: error: 1\ncr-x: error: 2\ncr-x: hint: of the list\n", &listError{[]error{errors.New("1"), errors.New("2")}}},
		{"escape sequences", "cr-x: error: pid 5 (\\x1b[2Jevil\\xff)\n", errors.New("pid 5 (\x1b[2Jevil\xff)")},
		{"several lines", "cr-x: error: one\ncr-x: error: two\n", errors.New("one\ntwo\n")},
		{"two hints in one", "cr-x: error: no\ncr-x: hint: one\ncr-x: hint: two\n", WithHint(errors.New("no"), "one\ntwo")},
	} {
		var out bytes.Buffer
		app := &App{Name: "cr-x", messages: &out}
		app.report(test.err)
		if out.String() != test.want {
			t.Errorf("%s:\n%swant:\n%s", test.name, out.String(), test.want)
		}
	}
}

func newApp(t *testing.T) *App {
	t.Helper()
	return &App{Name: "cr-x", Context: context.Background(), messages: io.Discard}
}

// names lists a directory, hidden files too.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestOutputAppearsWhenComplete(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.cr")
	app := newApp(t)
	out, err := app.Output(path, Binary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("whole")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the name exists before the file is complete: %v", err)
	}
	if err := app.finish(nil); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil || string(content) != "whole" {
		t.Errorf("read %q, %v", content, err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("mode %v: an image is for its owner only", info.Mode())
	}
	if _, err := out.Write([]byte("x")); err == nil {
		t.Error("a complete output was written to")
	}
}

func TestOutputOfFailedRun(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.cr")
	if err := os.WriteFile(path, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	app := newApp(t)
	for _, name := range []string{path, filepath.Join(dir, "new.cr")} {
		out, err := app.Output(name, Binary)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
	}
	failure := errors.New("no")
	if err := app.finish(failure); err != failure {
		t.Errorf("finish turned the error into %v", err)
	}
	content, err := os.ReadFile(path)
	if err != nil || string(content) != "old" {
		t.Errorf("the old file now holds %q, %v", content, err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestOutputReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.cr")
	link := filepath.Join(dir, "link")
	dangling := filepath.Join(dir, "dangling")
	if err := os.WriteFile(path, []byte("a longer old content"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a.cr", link); err != nil {
		t.Skipf("making a symbolic link: %v", err)
	}
	if err := os.Symlink("later.cr", dangling); err != nil {
		t.Fatal(err)
	}
	app := newApp(t)
	for _, name := range []string{link, dangling} {
		out, err := app.Output(name, Binary)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("new")); err != nil {
			t.Fatal(err)
		}
		if err := out.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := out.Commit(); err != nil {
			t.Errorf("a second Commit: %v", err)
		}
	}
	for _, name := range []string{link, dangling} {
		if info, err := os.Lstat(name); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is a link no more: %v, %v", name, info.Mode(), err)
		}
		if content, err := os.ReadFile(name); err != nil || string(content) != "new" {
			t.Errorf("%s holds %q, %v", name, content, err)
		}
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o640 {
		t.Errorf("the mode of the replaced file is now %v, %v", info.Mode(), err)
	}
	if err := app.finish(nil); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 4 {
		t.Errorf("left behind: %v", got)
	}
}

func TestOutputErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := newApp(t).Output(dir, Binary); err == nil {
		t.Error("a directory was taken as output")
	}
	if _, err := newApp(t).Output(filepath.Join(dir, "none", "a.cr"), Binary); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("output in a directory that does not exist: %v", err)
	}
	if _, err := newApp(t).Input(filepath.Join(dir, "a.cr"), Binary); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("input that does not exist: %v", err)
	}
	if _, err := newApp(t).Input(dir, Binary); Status(err) != StatusUsage {
		t.Errorf("a directory as input: %v", err)
	}
}

func TestSameFileRefused(t *testing.T) {
	dir := t.TempDir()
	path, hard := filepath.Join(dir, "a.cr"), filepath.Join(dir, "b.cr")
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, hard); err != nil {
		t.Skipf("making a hard link: %v", err)
	}
	for _, order := range []string{"input first", "output first"} {
		app := newApp(t)
		var err error
		if order == "input first" {
			if _, err = app.Input(path, Binary); err != nil {
				t.Fatal(err)
			}
			_, err = app.Output(hard, Binary)
		} else {
			if _, err = app.Output(hard, Binary); err != nil {
				t.Fatal(err)
			}
			_, err = app.Input(path, Binary)
		}
		if Status(err) != StatusUsage || !strings.Contains(err.Error(), "both input and output") {
			t.Errorf("%s: %v", order, err)
		}
		_ = app.finish(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "kept" {
		t.Errorf("the file now holds %q, %v", content, err)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("left behind: %v", got)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 30: "1.0 GiB", 1<<64 - 1: "16.0 EiB",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestVersionText(t *testing.T) {
	defer func(old string) { Version = old }(Version)
	Version = "1.2.3"
	got := VersionText()
	if !strings.HasPrefix(got, "1.2.3 (") || !strings.Contains(got, runtime.Version()) {
		t.Errorf("VersionText() = %q", got)
	}
}
