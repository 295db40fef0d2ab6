package main

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReport: what init and the jobs write becomes events of the right package, and neither a job that dies without a word nor a
// machine that does is taken for a success.
func TestReport(t *testing.T) {
	const good = "\x01begin 0\n=== RUN   TestA\n--- PASS: TestA (0.10s)\nPASS\n\x01end 0 0\n"
	for _, c := range []struct {
		name, port string
		failed     []string
		complete   bool
		want       []string // PACKAGE.TEST ACTION
	}{
		{"all is well", good + "\x01off\n", nil, true, []string{"one.TestA pass", "one. pass"}},
		{"killed in mid-line", "\x01begin 1\n=== RUN   TestB\nno newline\x01end 1 9\n\x01off\n", []string{"two"}, true, []string{"two. fail"}},
		{"the machine dies", good + "\x01begin 1\n=== RUN   TestB\n", nil, false, []string{"one.TestA pass", "one. pass"}},
		{"noise", "\x01begin 7\n\x01end x\n\x01off\n", nil, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			m := machine{packages: []string{"one", "two"}, events: &out}
			failed, complete, err := m.report(context.Background(), strings.NewReader(c.port), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(failed, c.failed) || complete != c.complete {
				t.Errorf("failed %q, complete %v", failed, complete)
			}
			var got []string
			for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
				var e struct{ Action, Package, Test string }
				if line == "" {
					continue
				}
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatal(err)
				}
				if e.Action == "pass" || e.Action == "fail" {
					got = append(got, e.Package+"."+e.Test+" "+e.Action)
				}
			}
			for _, w := range c.want {
				if !slices.Contains(got, w) {
					t.Errorf("no %q in %q", w, got)
				}
			}
			if !c.complete && slices.Contains(got, "two. pass") {
				t.Error("a package whose machine died passes")
			}
		})
	}
}
