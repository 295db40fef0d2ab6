package object

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/stream"
)

// pathState is a file that is opened by its path; one without a path fails.
type pathState struct{ Path string }

// earlyPlan is a plan of independent files with one of another kind in the middle, which notes how many pool descriptors there were
// before it.
func earlyPlan(t *testing.T, n int) (*Plan, *int) {
	dir := t.TempDir()
	kind := NewFileKind("file.test", nil, nil, func(_ *Restorer, _ stream.Ref, s *pathState) (int, error) {
		if s.Path == "" {
			return -1, errors.New("no path")
		}
		return unix.Open(s.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}).Independent()
	file := kind.AsKind()
	before := -1
	other := NewKind("other", func(r *Restorer, _ stream.Ref, _ *struct{}) error {
		before = len(r.extra)
		return nil
	})
	p := &Plan{}
	for i := range n {
		path := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if i == n/2 {
			p.Objects = append(p.Objects, Object{Type: "other", State: &struct{}{}, kind: &other})
		}
		p.Objects = append(p.Objects, Object{Type: "file.test", Ref: stream.Ref{ID: uint32(i + 1), Class: "file"}, State: &pathState{path}, kind: &file})
	}
	return p, &before
}

// openHere lists the descriptors of this process that lead to files of the plan, with their names.
func openHere(t *testing.T, p *Plan) map[int]string {
	t.Helper()
	dir := filepath.Dir(p.Objects[0].State.(*pathState).Path)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for _, e := range entries {
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(link, dir+"/") {
			fd, _ := strconv.Atoi(e.Name())
			out[fd] = filepath.Base(link)
		}
	}
	return out
}

func TestOpenEarly(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		t.Run(fmt.Sprintf("elsewhere=%v", elsewhere), func(t *testing.T) {
			const n = 500
			p, before := earlyPlan(t, n)
			r := &Restorer{Plan: p, PoolBase: 1000, Elsewhere: elsewhere}
			if got := r.openEarly(); (got == nil) != elsewhere {
				t.Fatalf("elsewhere %v, but opened early: %v", elsewhere, got != nil)
			} else {
				got.end()
			}
			if err := r.MakeObjects(); err != nil {
				t.Fatal(err)
			}
			if *before != n/2 {
				t.Errorf("%d files were in the pool before the object in the middle, want %d", *before, n/2)
			}
			have := openHere(t, p)
			if len(have) != n {
				t.Errorf("%d descriptors for %d files", len(have), n)
			}
			for i := range n {
				fd, err := r.File(stream.Ref{ID: uint32(i + 1)})
				if err != nil || fd != 1000+i || have[fd] != strconv.Itoa(i) {
					t.Fatalf("file %d: descriptor %d (%v) leads to %q", i, fd, err, have[fd])
				}
			}
			r.Close()
			if have := openHere(t, p); len(have) != 0 {
				t.Errorf("open after the end: %v", have)
			}
		})
	}
}

// TestOpenEarlyFails: the error is that of the first object in the order of the stream, and what was opened ahead of it is closed.
func TestOpenEarlyFails(t *testing.T) {
	const n = 300
	p, _ := earlyPlan(t, n)
	for _, i := range []int{100, 130, 200} {
		p.Objects[i].State.(*pathState).Path = ""
	}
	r := &Restorer{Plan: p, PoolBase: 1000}
	err := r.MakeObjects()
	if err == nil || !strings.Contains(err.Error(), p.Objects[100].String()) {
		t.Errorf("error %v, want that of %s", err, &p.Objects[100])
	}
	r.Close()
	for end := time.Now().Add(time.Second); len(openHere(t, p)) > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if have := openHere(t, p); len(have) != 0 {
		t.Errorf("open after the error: %v", have)
	}
}
