package object

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMatchPath(t *testing.T) {
	for _, one := range []struct {
		pattern, path string
		want          bool
	}{
		{"*", "/a/b", true},
		{"*.log", "/var/log/x.log", true},
		{"/var/*", "/var/log/x.log", true},
		{"/var/?/x", "/var/a/x", true},
		{"/var/[a-c]", "/var/d", false},
		{"x.log", "/var/log/x.log", false},
		{"/var/log/x.log", "/var/log/x.log", true},
		{"/var/\\*", "/var/*", true},
		{"/var/\\*", "/var/x", false},
		{"[", "[", false},
	} {
		if got := MatchPath([]string{"nothing", one.pattern}, one.path); got != one.want {
			t.Errorf("%s and %s: %v", one.pattern, one.path, got)
		}
	}
	if CheckPattern("*.log") != nil || CheckPattern("[") == nil {
		t.Error("a pattern is checked wrongly")
	}
}

func TestUnchanged(t *testing.T) {
	was := unix.NsecToTimespec(1234567890123456789)
	now := unix.Stat_t{Size: 10, Mtim: was}
	r := &Restorer{}
	for _, one := range []struct {
		name           string
		size, modified int64
		allow          []string
		want           string
	}{
		{"the same", 10, was.Nano(), nil, ""},
		{"grown", 9, was.Nano(), nil, "it has 10 bytes, 9 when it was dumped"},
		{"modified", 10, was.Nano() - 1, nil, "it was modified 2009-02-13 23:31:30.123456789 UTC"},
		{"allowed", 9, 1, []string{"/d*"}, ""},
		{"another allowed", 9, 1, []string{"/e*"}, "has changed"},
		{"never noted", 9, 0, nil, ""},
	} {
		r.AllowChanged = one.allow
		err := r.Unchanged("/dir/file", &now, one.size, one.modified)
		if (err == nil) != (one.want == "") || err != nil && !strings.Contains(err.Error(), one.want) {
			t.Errorf("%s: %v, want %q", one.name, err, one.want)
		}
	}
}
