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

func TestKeyringCheck(t *testing.T) {
	for name, c := range map[string]struct {
		k  Keyring
		ok bool
	}{
		"anonymous":             {Keyring{Serial: 5}, true},
		"with the user's":       {Keyring{Serial: 5, UserLink: true}, true},
		"named":                 {Keyring{Serial: 5, Name: "x", Keys: true}, true},
		"anonymous, with keys":  {Keyring{Serial: 5, Keys: true}, false},
		"named, with a link":    {Keyring{Serial: 5, Name: "x", UserLink: true}, false},
		"of the kernel's names": {Keyring{Serial: 5, Name: ".x"}, false},
		"a zero in its name":    {Keyring{Serial: 5, Name: "x\x00y"}, false},
	} {
		if err := c.k.Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
