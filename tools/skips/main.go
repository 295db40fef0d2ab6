// Skips reads the output of go test -json, shows what failed, lists every test
// that was skipped and why, and ends with go test's own closing lines.
//
// With -may-skip FILE a skip that no line of the file allows is a failure. A
// line of the file is a regular expression for PACKAGE.TEST, then a reason;
// lines beginning with # and empty ones do not count.
//
// With -failed FILE the failed tests are written there, one "PACKAGE PATTERN"
// a line, to be run again by go test -run PATTERN PACKAGE. PATTERN is "." where
// a package failed as a whole (it did not build, or never ended).
//
// Usage:
//
//	go test -json ./... | go run ./tools/skips [-only] [-may-skip FILE] [-failed FILE]
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// event is a line of test2json's output (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // instead of Package in the output of a build
	Test       string
	Output     string
}

type skip struct{ name, reason string }

// result collects a whole run.
type result struct {
	output  map[string]*strings.Builder // of the running tests, by package and test
	skipped []skip
	closing []string // "ok  pkg 0.1s" and the like
	started map[string]bool
	ended   map[string]bool
	failed  bool
	again   map[string][]string // failed tests by package; "" is the package's own failure
	running map[string]int      // tests that have begun and not ended, by package
	cut     map[string]bool     // packages whose tests were cut short by a panic or the like
}

func main() {
	only := flag.Bool("only", false, "print only the skipped tests")
	maySkip := flag.String("may-skip", "", "file of tests that may be skipped; any other skip is a failure")
	failed := flag.String("failed", "", "file for the failed tests, to be run again")
	flag.Parse()
	ok, err := run(os.Stdin, os.Stdout, *only, *maySkip, *failed)
	if err != nil {
		fmt.Fprintf(os.Stderr, "skips: %v\n", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, only bool, maySkip, failed string) (bool, error) {
	var allowed []*regexp.Regexp
	if maySkip != "" {
		var err error
		if allowed, err = readAllowed(maySkip); err != nil {
			return false, err
		}
	}
	r := &result{output: map[string]*strings.Builder{}, started: map[string]bool{}, ended: map[string]bool{}, again: map[string][]string{}, running: map[string]int{}, cut: map[string]bool{}}
	progress := out
	if only {
		progress = io.Discard
	}
	if err := r.read(in, progress); err != nil {
		return false, err
	}
	for pkg := range r.started {
		if !r.ended[pkg] {
			r.failed = true
			fmt.Fprintf(out, "%s: its tests never ended\n", pkg)
		}
	}
	if failed != "" {
		if err := os.WriteFile(failed, []byte(r.rerun()), 0o644); err != nil {
			return false, err
		}
	}
	if len(r.started) == 0 {
		return false, errors.New("no test was run")
	}
	sort.Slice(r.skipped, func(i, j int) bool { return r.skipped[i].name < r.skipped[j].name })
	if len(r.skipped) > 0 {
		fmt.Fprintf(out, "\n%d skipped:\n", len(r.skipped))
	}
	for _, s := range r.skipped {
		mark := ""
		if maySkip != "" && !matches(allowed, s.name) {
			mark, r.failed = "MUST RUN: ", true
		}
		fmt.Fprintf(out, "  %s%s: %s\n", mark, s.name, s.reason)
	}
	if only {
		return true, nil
	}
	fmt.Fprintln(out)
	for _, line := range r.closing {
		fmt.Fprint(out, line)
	}
	if r.failed {
		fmt.Fprintln(out, "FAIL")
	}
	return !r.failed, nil
}

func (r *result) read(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			// The go command itself speaks plain text.
			fmt.Fprintln(out, lines.Text())
			continue
		}
		r.take(e, out)
	}
	return lines.Err()
}

func (r *result) take(e event, out io.Writer) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "build-fail":
		r.failed = true
	case "start":
		r.started[e.Package] = true
	case "run":
		r.running[e.Package]++
	case "output":
		if cutShort.MatchString(e.Output) {
			r.cut[e.Package] = true
		}
		if e.Test == "" && isClosing(e.Output) {
			r.closing = append(r.closing, e.Output)
			return
		}
		if r.output[key] == nil {
			r.output[key] = &strings.Builder{}
		}
		r.output[key].WriteString(e.Output)
	case "pass", "skip", "fail":
		text := ""
		if b := r.output[key]; b != nil {
			text = b.String()
		}
		delete(r.output, key)
		if e.Test == "" {
			r.started[e.Package], r.ended[e.Package] = true, true
			fmt.Fprintf(out, "%s %s\n", e.Action, e.Package)
		} else {
			r.running[e.Package]--
		}
		switch e.Action {
		case "fail":
			r.failed = true
			r.again[e.Package] = append(r.again[e.Package], e.Test)
			fmt.Fprint(out, text)
		case "skip":
			if e.Test != "" {
				r.skipped = append(r.skipped, skip{e.Package + "." + e.Test, reason(text)})
			}
		}
	}
}

// cutShort is what a test binary says when it ends before all of its tests have.
var cutShort = regexp.MustCompile(`^(panic|fatal error|SIG[A-Z]+|signal): `)

// rerun names what to run again. A package's own failure comes last, after those of its tests; a test's after those of its
// subtests.
func (r *result) rerun() string {
	var lines []string
	for pkg, tests := range r.again {
		if r.cut[pkg] || r.running[pkg] > 0 || !r.ended[pkg] { // what came behind never ran
			lines = append(lines, pkg+" .")
			continue
		}
		whole := true
		for _, test := range tests {
			if test == "" {
				continue
			}
			whole = false
			if slices.ContainsFunc(tests, func(other string) bool { return strings.HasPrefix(other, test+"/") }) {
				continue
			}
			lines = append(lines, pkg+" "+pattern(test))
		}
		if whole {
			lines = append(lines, pkg+" .")
		}
	}
	for pkg := range r.started {
		if !r.ended[pkg] {
			lines = append(lines, pkg+" .")
		}
	}
	sort.Strings(lines)
	return strings.Join(append(slices.Compact(lines), ""), "\n")
}

// pattern is what -run takes for exactly one test: an anchored expression for each part of its name.
func pattern(test string) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

var closing = regexp.MustCompile(`^(ok  |FAIL|---|\?   )\t`)

func isClosing(line string) bool { return closing.MatchString(line) }

// where is the place that t.Skip prints before its reason.
var where = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)

// reason takes the text of t.Skip out of a test's output.
func reason(output string) string {
	var parts []string
	for _, line := range strings.Split(output, "\n") {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "=== ") || strings.HasPrefix(trimmed, "--- ") {
			continue
		}
		parts = append(parts, strings.TrimSpace(where.ReplaceAllString(line, "")))
	}
	if len(parts) == 0 {
		return "no reason given"
	}
	return strings.Join(parts, "; ")
}

func readAllowed(path string) ([]*regexp.Regexp, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []*regexp.Regexp
	for number, line := range strings.Split(string(data), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, why, _ := strings.Cut(line, " ")
		if strings.TrimSpace(why) == "" {
			return nil, fmt.Errorf("%s:%d: no reason after %s", path, number+1, pattern)
		}
		re, err := regexp.Compile("^(?:" + pattern + ")$")
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number+1, err)
		}
		out = append(out, re)
	}
	return out, nil
}

func matches(list []*regexp.Regexp, name string) bool {
	for _, re := range list {
		if re.MatchString(name) {
			return true
		}
	}
	return false
}
