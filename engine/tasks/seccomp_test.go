package tasks

import (
	"errors"
	"testing"

	"crpipe/engine/object"
	"crpipe/stream"
)

func TestFiltersCheck(t *testing.T) {
	if _, err := Filters(&object.Plan{}, []stream.Ref{{ID: 7, Class: "seccomp"}}); !errors.As(err, new(*object.BadImage)) {
		t.Errorf("a filter that is not there: %v", err)
	}
	for name, c := range map[string]struct {
		s  Thread
		ok bool
	}{
		"both": {Thread{SeccompStrict: true, Seccomp: []stream.Ref{{ID: 1, Class: "seccomp"}}}, false},
	} {
		if err := c.s.Check(nil); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
