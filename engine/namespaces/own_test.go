package namespaces

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What no dump writes is refused before anything is done.
func TestOwnHostile(t *testing.T) {
	for name, m := range map[string]Mount{
		"unknown":          {Point: "/x", Root: "/", Flags: "rw", Make: "magic"},
		"from nowhere":     {Point: "/x", Root: "/", Flags: "rw", Make: makeBind},
		"from a relative":  {Point: "/x", Root: "/", Flags: "rw", Make: makeBind, From: "etc"},
		"not made":         {Point: "/x", Root: "/", Flags: "rw", From: "/etc"},
		"a disk":           {Point: "/x", Root: "/", Flags: "rw", Make: makeNew, Type: "ext4", Source: "/dev/vda"},
		"an overlay":       {Point: "/x", Root: "/", Flags: "rw", Make: makeNew, Type: "overlay", Options: "lowerdir=/"},
		"NUL":              {Point: "/x", Root: "/", Flags: "rw", Make: makeNew, Type: "tmpfs", Options: "size=1\x00"},
		"flags":            {Point: "/x", Root: "/", Flags: "rw,magic", Make: makeNew, Type: "tmpfs"},
		"hidden":           {Point: "/x", Root: "/", Flags: "rw", Make: makeNew, Type: "tmpfs", Hidden: true},
		"a way out":        {Point: "/x", Root: "/", Flags: "rw", Make: makeNew, Type: "tmpfs", Dirs: []Dir{{Path: "../etc"}}},
		"an absolute path": {Point: "/x", Root: "/", Flags: "rw", Make: makeNew, Type: "tmpfs", Dirs: []Dir{{Path: "/etc"}}},
		"a mode":           {Point: "/x", Root: "/", Flags: "rw", Make: makeNew, Type: "tmpfs", Dirs: []Dir{{Path: "a", Mode: 0o100644}}},
		"dirs of a bind":   {Point: "/x", Root: "/", Flags: "rw", Make: makeBind, From: "/etc", Type: "tmpfs", Dirs: []Dir{{Path: "a"}}},
	} {
		if err := (&Mounts{Mounts: []Mount{m}}).checkOwn(); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

func TestByDepth(t *testing.T) {
	list := byDepth(parse(t, `10 1 8:1 / / rw - ext4 a rw
11 14 0:5 / /x/y rw - tmpfs b rw
12 12 0:6 / /self rw - tmpfs c rw
14 10 0:8 / /x rw - tmpfs e rw
15 16 0:9 / /loop rw - tmpfs f rw
16 15 0:10 / /loop rw - tmpfs g rw
`))
	at := func(id int) int {
		for i := range list {
			if list[i].ID == id {
				return i
			}
		}
		return -1
	}
	if len(list) != 6 || at(14) > at(11) || at(10) > at(14) {
		t.Errorf("%+v", list)
	}
}

func TestOnlyDirs(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"b", "b/c", "a"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o751); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Chmod(filepath.Join(root, "b"), 0o1770); err != nil {
		t.Fatal(err)
	}
	dirs, err := onlyDirs(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range dirs {
		got = append(got, d.Path)
	}
	if !slices.Equal(got, []string{".", "a", "b", "b/c"}) || dirs[2].Mode != 0o1770 {
		t.Errorf("%+v", dirs)
	}
	if err := os.Symlink("a", filepath.Join(root, "b", "s")); err != nil {
		t.Fatal(err)
	}
	if dirs, err := onlyDirs(root); err == nil {
		t.Errorf("a symbolic link passes: %+v", dirs)
	}
}
