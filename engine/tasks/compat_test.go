package tasks

import (
	"testing"

	"crpipe/arch"
)

func TestCheckCompat(t *testing.T) {
	amd64, err := arch.For("amd64")
	if err != nil {
		t.Fatal(err)
	}
	arm64, err := arch.For("arm64")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		a  *arch.Arch
		s  Thread
		ok bool
	}{
		"nothing":                    {arm64, Thread{}, true},
		"segments":                   {amd64, Thread{TLS: []TLSEntry{{Entry: 12}, {Entry: 14}}, CompatRobust: 0xfffff000}, true},
		"segments elsewhere":         {arm64, Thread{TLS: []TLSEntry{{Entry: 12}}}, false},
		"a segment of the kernel's":  {amd64, Thread{TLS: []TLSEntry{{Entry: 2}}}, false},
		"a segment behind the last":  {amd64, Thread{TLS: []TLSEntry{{Entry: 15}}}, false},
		"segments out of order":      {amd64, Thread{TLS: []TLSEntry{{Entry: 13}, {Entry: 12}}}, false},
		"a segment twice":            {amd64, Thread{TLS: []TLSEntry{{Entry: 13}, {Entry: 13}}}, false},
		"a robust list beyond 4 GiB": {amd64, Thread{CompatRobust: 1 << 32}, false},
		"a robust list elsewhere":    {arm64, Thread{CompatRobust: 4096}, false},
	} {
		if err := c.s.checkCompat(c.a); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
