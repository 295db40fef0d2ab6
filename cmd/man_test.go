package cmd_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crpipe/cmd/internal/cli"
	"crpipe/stream"

	"golang.org/x/sys/unix"
)

func pages(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("../man/*.[157]")
	if err != nil || len(list) < len(commands)+1 {
		t.Fatalf("manual pages: %v, %v", list, err)
	}
	return list
}

func readPage(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// section returns the lines of a section of a page.
func section(lines []string, name string) []string {
	start := slices.Index(lines, ".Sh "+name)
	if start < 0 {
		return nil
	}
	rest := lines[start+1:]
	for i, line := range rest {
		if strings.HasPrefix(line, ".Sh ") {
			return rest[:i]
		}
	}
	return rest
}

func TestManLint(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		t.Skip("mandoc is not installed")
	}
	for _, page := range pages(t) {
		if out, err := exec.Command("mandoc", "-Tlint", "-W", "warning", page).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// Every page has the table of statuses as package cli has it, but cr-stream(5),
// which is about a format.
func TestManStatuses(t *testing.T) {
	var want []string
	for _, s := range cli.Statuses {
		want = append(want, fmt.Sprintf(".It %d", s.Status), s.Text)
	}
	for _, page := range pages(t) {
		if strings.HasSuffix(page, ".5") {
			continue
		}
		var got []string
		for _, line := range section(readPage(t, page), "EXIT STATUS") {
			if line == ".El" {
				break
			}
			if !strings.HasPrefix(line, ".Bl") {
				got = append(got, line)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: EXIT STATUS\n%s\nwant\n%s", page, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// helpFlag matches the flags at the beginning of a line of --help.
var helpFlag = regexp.MustCompile(`^ +(?:(-\w), +)?(--[\w-]+)`)

// helpFlags gives all flags that a command's help shows, those of its verbs too.
func helpFlags(t *testing.T, command string, verb ...string) map[string]bool {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(dir, command), append(verb, "--help")...).Output()
	if err != nil {
		t.Fatalf("%s --help: %v", command, err)
	}
	flags := map[string]bool{}
	inVerbs := false
	for _, line := range strings.Split(string(out), "\n") {
		if m := helpFlag.FindStringSubmatch(line); m != nil {
			flags[m[2]] = true
			if m[1] != "" {
				flags[m[1]] = true
			}
		}
		if line == "Commands:" {
			inVerbs = true
		} else if fields := strings.Fields(line); inVerbs && len(fields) > 1 && strings.HasPrefix(line, "  ") {
			flags["verb "+fields[0]] = true
			for flag := range helpFlags(t, command, fields[0]) {
				flags[flag] = true
			}
		}
	}
	return flags
}

// manFlag matches one flag in the entry of an option list.
var manFlag = regexp.MustCompile(`Fl (-?[\w-]+)`)

func TestManFlags(t *testing.T) {
	for _, command := range commands {
		help := helpFlags(t, command)
		man := map[string]bool{}
		for _, line := range section(readPage(t, "../man/"+command+".1"), "DESCRIPTION") {
			if verb, ok := strings.CutPrefix(line, ".It Cm "); ok {
				man["verb "+verb] = true
			}
			if !strings.HasPrefix(line, ".It Fl ") {
				continue
			}
			for _, m := range manFlag.FindAllStringSubmatch(line, -1) {
				man["-"+m[1]] = true
			}
		}
		for flag := range help {
			if !man[flag] {
				t.Errorf("%s(1) lacks %s", command, flag)
			}
		}
		for flag := range man {
			if !help[flag] {
				t.Errorf("%s(1) has %s, --help has not", command, flag)
			}
		}
	}
}

// examples turns the EXAMPLES of a page into one bash script. Each literal block
// is run as it stands; `.\" run: COMMAND` is run without being shown, and a block
// after `.\" not run: REASON` is left out.
func examples(t *testing.T, page string) string {
	t.Helper()
	var script strings.Builder
	inBlock, skip := false, false
	for _, line := range section(readPage(t, page), "EXAMPLES") {
		switch {
		case strings.HasPrefix(line, ".Bd -literal"):
			inBlock = true
		case line == ".Ed":
			inBlock, skip = false, false
		case inBlock && !skip:
			if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
				t.Errorf("%s: a macro inside of an example: %s", page, line)
			}
			line = strings.NewReplacer(`\e`, `\`, `\-`, `-`, `\(aq`, `'`, `\&`, ``).Replace(line)
			script.WriteString(line + "\n")
		case strings.HasPrefix(line, `.\" run: `):
			script.WriteString(strings.TrimPrefix(line, `.\" run: `) + "\n")
		case strings.HasPrefix(line, `.\" not run: `):
			skip = true
		}
	}
	return script.String()
}

// A job counts in a file that it holds open as descriptor 9. Whatever else the
// tests may have been given, a pipe of a CI runner say, is not the job's.
const exampleJob = `for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -le 2 ] || eval "exec $fd>&-"; done
exec 9>count; i=0; while :; do i=$((i+1)); echo $i >&9; sleep 0.05; done`

// stand-ins for the programs of examples that lead to other machines.
var standIns = map[string]string{
	"ssh": "#!/bin/sh\nshift; exec sh -c \"$*\"\n",
	"age": "#!/bin/sh\nexec cat\n",
}

func TestManExamples(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("examples dump and restore processes: needs root")
	}
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages(t) {
		script := examples(t, page)
		if script == "" {
			continue
		}
		t.Run(filepath.Base(page), func(t *testing.T) { runExamples(t, dir, script) })
	}
}

func runExamples(t *testing.T, dir, script string) {
	work, fakes := t.TempDir(), t.TempDir()
	for name, text := range standIns {
		if err := os.WriteFile(filepath.Join(fakes, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var waitedFor atomic.Int64
	reapOrphans(t, &waitedFor)
	job := startJob(t, work)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-x", "-c", script)
	command.Dir = work
	command.Env = append(os.Environ(), "PATH="+dir+":"+fakes+":"+os.Getenv("PATH"),
		"job="+strconv.Itoa(job), "KEY=key")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	command.WaitDelay = 5 * time.Second
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	waitedFor.Store(int64(command.Process.Pid))
	if err := command.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stream.Printable(string(out.Bytes()[max(0, out.Len()-4000):])))
	}
}

// startJob starts the job of the examples in its own session and waits until it
// counts. The test ends whatever is left of it; a restored one is known by the
// directory it works in. reapOrphans waits for both.
func startJob(t *testing.T, work string) int {
	t.Helper()
	job := exec.Command("bash", "-c", exampleJob)
	job.Dir = work
	job.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	pid := job.Process.Pid
	if err := job.Process.Release(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 500 {
			left := workingIn(work)
			if len(left) == 0 {
				return
			}
			for _, p := range left {
				_ = syscall.Kill(p, syscall.SIGKILL) // it may be gone by now
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("processes left: %v", workingIn(work))
	})
	for range 1000 {
		if info, err := os.Stat(filepath.Join(work, "count")); err == nil && info.Size() > 0 {
			return pid
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the job does not count")
	return 0
}

// reapOrphans waits for every orphan that an example leaves behind, at once: a
// restored job that is dumped and ended again would else stay a zombie, with its
// pid in use, for as long as init likes. The process spare is left to os/exec; it
// must not end before it is known here.
func reapOrphans(t *testing.T, spare *atomic.Int64) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var reaping sync.WaitGroup
	reaping.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			for _, pid := range children() {
				if int64(pid) != spare.Load() {
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it may still run
				}
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		reaping.Wait()
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) // it cannot fail, prctl(2)
	})
}

// children lists the children of this process, of all its threads.
func children() []int {
	files, _ := filepath.Glob("/proc/self/task/*/children")
	var out []int
	for _, file := range files {
		data, _ := os.ReadFile(file) // a thread that has just ended has none
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
	}
	return out
}

// workingIn lists the processes whose working directory is dir.
func workingIn(dir string) []int {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	var out []int
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != dir {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err == nil && pid > 0 && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}

// The pages that a page refers to exist: ours in man/, and of ours all are
// referred to.
func TestManReferences(t *testing.T) {
	ours := map[string]bool{}
	for _, page := range pages(t) {
		ours[filepath.Base(page)] = true
	}
	reference := regexp.MustCompile(`\bXr (cr-[a-z]+|crpipe) ([0-9])`)
	seen := map[string]bool{}
	for _, page := range pages(t) {
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			for _, m := range reference.FindAllStringSubmatch(lines.Text(), -1) {
				name := m[1] + "." + m[2]
				seen[name] = true
				if !ours[name] {
					t.Errorf("%s refers to %s, which does not exist", page, name)
				}
			}
		}
	}
	for name := range ours {
		if !seen[name] {
			t.Errorf("no page refers to %s", name)
		}
	}
}
