package tasks

import (
	"bytes"
	"testing"
)

func TestParseCPUList(t *testing.T) {
	for list, want := range map[string][]byte{
		"0":       {1},
		"0-1":     {3},
		"0-3,8":   {0x0f, 1},
		"1,3,5-7": {0xea},
	} {
		if got, err := parseCPUList(list); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: %x, %v, want %x", list, got, err, want)
		}
	}
	for _, list := range []string{"", "a", "0-", "-1", "1-x", "99999999999"} {
		if got, err := parseCPUList(list); err == nil {
			t.Errorf("%q: %x", list, got)
		}
	}
}
