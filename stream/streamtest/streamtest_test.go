package streamtest

import (
	"fmt"
	"strings"
	"testing"

	"crpipe/stream"
)

// recorder notes what a check reports instead of failing.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// The checks can fail: each reports what is missing.
func TestChecksReport(t *testing.T) {
	type wrong struct {
		Content string `msgpack:"content"`
		Extra   []struct {
			Deep uint8 `msgpack:"deep"`
		} `msgpack:"extra"`
	}
	for _, c := range []struct {
		schemas map[stream.Type]any
		want    []string
	}{
		{map[stream.Type]any{stream.TypeHeader: stream.Header{}}, nil},
		{map[stream.Type]any{stream.TypeHeader: &stream.Header{}}, nil},
		{map[stream.Type]any{"no-such": struct{}{}}, []string{`lacks the section ".Ss no-such"`, "no record of type no-such"}},
		{map[stream.Type]any{stream.TypeHeader: wrong{}}, []string{`".It Va deep"`, `".It Va extra"`, "golden stream: bad stream: record 0 (header)"}},
		{map[stream.Type]any{stream.TypeLink: struct{ X int }{}}, []string{"field X has no msgpack name", "golden stream"}},
	} {
		r := &recorder{TB: t}
		Schemas(r, c.schemas)
		if len(r.errors) != len(c.want) {
			t.Errorf("%v: reported %q", c.schemas, r.errors)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(r.errors[i], want) {
				t.Errorf("%v: reported %q, want %q", c.schemas, r.errors[i], want)
			}
		}
	}
}

func TestCompleteReports(t *testing.T) {
	r := &recorder{TB: t}
	Complete(r, "no-such")
	text := strings.Join(r.errors, "\n")
	for _, want := range []string{`lacks the section ".Ss no-such"`, "no record of type no-such"} {
		if !strings.Contains(text, want) {
			t.Errorf("reported %q, want %q", r.errors, want)
		}
	}
}

func TestFieldLines(t *testing.T) {
	section := []string{".It Va start , end Pq integers", ".It Va name", "text Va other", ".It Pq Va odd"}
	for name, want := range map[string]bool{"start": true, "end": true, "name": true, "integers": false, "other": false, "odd": true} {
		if documents(section, name) != want {
			t.Errorf("%s: documented is %v", name, !want)
		}
	}
}
