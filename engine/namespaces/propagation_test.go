package namespaces

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

func parse(t *testing.T, text string) []procfs.Mount {
	t.Helper()
	list, err := procfs.ParseMountinfo([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestVisible(t *testing.T) {
	list := parse(t, `10 1 8:1 / / rw - ext4 a rw
11 10 0:5 / /a rw - tmpfs b rw
12 11 0:6 / /a/b rw - tmpfs c rw
13 11 0:7 / /a rw - tmpfs d rw
14 13 0:8 / /a/c rw - tmpfs e rw
15 10 0:9 / /aa rw - tmpfs f rw
16 10 0:10 / /x/y/z rw - tmpfs g rw
17 16 0:10 / /x/y/z/w rw - tmpfs g rw
`)
	want := []bool{true, false, false, true, true, true, true, true}
	if got := visible(list); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// What no kernel shows must end, too.
	visible(parse(t, "10 10 8:1 / / rw - ext4 a rw\n11 12 8:1 / / rw - ext4 a rw\n12 11 8:1 / / rw - ext4 a rw\n"))
	visible(nil)
}

func TestTags(t *testing.T) {
	for text, want := range map[string]tags{
		"1 0 8:1 / / rw - ext4 a rw":                                    {},
		"1 0 8:1 / / rw shared:3 - ext4 a rw":                           {peers: 3},
		"1 0 8:1 / / rw shared:3 master:4 propagate_from:2 - ext4 a rw": {peers: 3, master: 4},
		"1 0 8:1 / / rw unbindable - ext4 a rw":                         {unbindable: true},
	} {
		if got, err := tagsOf(&parse(t, text)[0]); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	if _, err := tagsOf(&parse(t, "1 0 8:1 / / rw mirrored:3 - ext4 a rw")[0]); err == nil {
		t.Error("an unknown tag passes")
	}
}

func TestFindOutside(t *testing.T) {
	list := parse(t, `10 1 8:1 / / rw - ext4 a rw
11 10 0:5 /d /a rw shared:3 - tmpfs b rw
12 10 0:5 / /b rw shared:3 master:4 - tmpfs b rw
13 10 0:6 / /c rw master:5 - tmpfs b rw
14 10 0:7 / /h rw shared:6 - tmpfs b rw
15 14 0:8 / /h rw - tmpfs b rw
`)
	for group, want := range map[int]Group{3: {Outside: "/b"}, 4: {}, 5: {Outside: "/c", Receives: true}, 6: {Outside: "/h"}, 7: {}} {
		m, receives := findOutside(group, list)
		got := Group{Receives: receives}
		if m != nil {
			got.Outside = m.Point
		}
		if got != want {
			t.Errorf("group %d: %+v, want %+v", group, got, want)
		}
	}
}

// What no dump writes is refused before anything is done.
func TestGroupsHostile(t *testing.T) {
	out := Group{Outside: "/x"}
	for name, s := range map[string]*Mounts{
		"no such group":     {Mounts: []Mount{{Point: "/", Peers: 1}}},
		"no such master":    {Mounts: []Mount{{Point: "/", Master: 1 << 31}}},
		"unbindable":        {Mounts: []Mount{{Point: "/", Peers: 1, Unbindable: true}}, Groups: []Group{out}},
		"from itself":       {Mounts: []Mount{{Point: "/", Peers: 1, Master: 1}}, Groups: []Group{out}},
		"relative":          {Mounts: []Mount{{Point: "/", Peers: 1}}, Groups: []Group{{Outside: "x"}}},
		"member of outside": {Mounts: []Mount{{Point: "/", Peers: 1}}, Groups: []Group{{Outside: "/x", Receives: true}}},
		"receives nowhere":  {Mounts: []Mount{{Point: "/", Master: 1}}, Groups: []Group{{Receives: true}}},
	} {
		if err := s.checkGroups(); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	// Two groups that receive from each other.
	s := &Mounts{Mounts: []Mount{{Point: "/", Root: "/", Peers: 1, Master: 2}, {Point: "/", Root: "/", Peers: 2, Master: 1}}, Groups: []Group{{}, {}}}
	if err := s.checkGroups(); err != nil {
		t.Fatal(err)
	}
	list, err := ownMounts()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Propagate(list, nil); err == nil {
		t.Error("groups that receive from each other were made")
	}
}

func TestHidden(t *testing.T) {
	groups := []Group{{Outside: "/x"}, {}, {Outside: "/y", Receives: true}}
	for name, c := range map[string]struct {
		mounts []Mount
		want   uintptr
		bad    bool
	}{
		"none":      {[]Mount{{Peers: 2}}, unix.MS_PRIVATE, false},
		"private":   {[]Mount{{Hidden: true}}, unix.MS_PRIVATE, false},
		"as before": {[]Mount{{Hidden: true}, {Hidden: true, Peers: 1}}, 0, false},
		"received":  {[]Mount{{Hidden: true, Master: 3}}, 0, false},
		"slave":     {[]Mount{{Hidden: true, Master: 1}}, unix.MS_SLAVE, false},
		"own":       {[]Mount{{Hidden: true, Peers: 2}}, 0, true},
		"mixed":     {[]Mount{{Point: "/a", Hidden: true, Peers: 1}, {Point: "/b", Hidden: true, Master: 1}}, 0, true},
	} {
		got, err := (&Mounts{Mounts: c.mounts, Groups: groups}).hidden()
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%s: %#x, %v", name, got, err)
		}
	}
}
