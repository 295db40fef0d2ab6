package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// FSState is what fs_struct holds: root directory, working directory and umask. Processes and threads that share
// it (CLONE_FS) refer to the same record. Paths are seen from the root of the mount namespace, both of them. A directory of /proc that is
// about a process is refused.
type FSState struct {
	Root string `msgpack:"root,omitempty"`
	Cwd  string `msgpack:"cwd,omitempty"`

	// In place of the paths, where they have been removed.
	RemovedRoot stream.Ref `msgpack:"removed_root,omitempty"`
	RemovedCwd  stream.Ref `msgpack:"removed_cwd,omitempty"`

	Umask uint32 `msgpack:"umask"`

	rootFD int `msgpack:"-"` // at restore: in the pool; -1 when it is the caller's own
	cwdFD  int `msgpack:"-"`
}

const fsRecord stream.Type = "fs"

type fsKey struct {
	id kernelview.ID
	of *object.Process
}

// DumpFS adds the root, working directory and umask of p, and those of its threads that have their own, unless a task
// that shares them was there before, and notes the records.
func DumpFS(d *object.Dumper, p *object.Process) error {
	for i, t := range p.Threads {
		switch {
		case i == 0:
			if err := dumpFS(d, p); err != nil {
				return err
			}
		case differs(p, t, func(v *kernelview.Thread) kernelview.Maybe[kernelview.ID] { return v.FS }):
			q := t.AsProcess()
			if err := dumpFS(d, q); err != nil {
				return err
			}
			t.FS = q.FS
		}
	}
	return nil
}

func dumpFS(d *object.Dumper, p *object.Process) error {
	key := fsKey{of: p}
	if v := p.Leader().View; v != nil {
		if id, ok := v.FS.Get(); ok && id != 0 {
			key = fsKey{id: id}
		}
	}
	var err error
	p.FS, err = d.Once(key, func() (stream.Ref, error) {
		s := &FSState{}
		for _, dir := range []struct {
			name string
			to   *string
			gone *stream.Ref
		}{{"root", &s.Root, &s.RemovedRoot}, {"cwd", &s.Cwd, &s.RemovedCwd}} {
			if *dir.to, *dir.gone, err = dumpDirectoryOf(d, p, dir.name); err != nil {
				d.Refuse(err)
			}
		}
		umask := p.Leader().Status.Umask
		if umask < 0 {
			return stream.Ref{}, p.Error("umask", fmt.Errorf("the kernel does not show it"))
		}
		s.Umask = uint32(umask)
		return d.Add(fsRecord, s), nil
	})
	return err
}

// dumpDirectoryOf returns the path of the process's root or working directory, name being "root" or "cwd", or what it is.
func dumpDirectoryOf(d *object.Dumper, p *object.Process, name string) (string, stream.Ref, error) {
	seen, err := placesOf(d)
	if err != nil {
		return "", stream.Ref{}, err
	}
	key, known := placeKeyOf(p, name)
	if path, met := seen[key]; known && met {
		return path, stream.Ref{}, nil
	}
	path, removed, err := lookAtDirectory(d, p, name)
	if known && err == nil && removed.IsZero() {
		seen[key] = path
	}
	return path, removed, err
}

// placeKey is a directory, and by whom it is seen.
type placeKey struct {
	vantage
	place kernelview.Place
}

// placeKeyOf is not known of a process that has called chroot(2): what it sees depends on its ancestors.
func placeKeyOf(p *object.Process, name string) (placeKey, bool) {
	from := vantageOf(p)
	s, err := sightOf(p)
	if err != nil || s.root != "/" || from == (vantage{}) {
		return placeKey{}, false
	}
	place := p.Leader().View.Cwd
	if name == "root" {
		place = p.Leader().View.Root
	}
	return placeKey{from, place.V}, place.Known
}

type placesKey struct{}

// placesOf are the directories of the tree's processes that have been looked at.
func placesOf(d *object.Dumper) (map[placeKey]string, error) {
	return object.Memo(d, placesKey{}, func() (map[placeKey]string, error) { return map[placeKey]string{}, nil })
}

func lookAtDirectory(d *object.Dumper, p *object.Process, name string) (string, stream.Ref, error) {
	f, err := object.MeetMapped(p, procfs.Path(p.Leader().TID, name), &kernelview.File{})
	if err != nil {
		return "", stream.Ref{}, err
	}
	what := name + " -> " + f.Link
	path, removed, err := dumpPlace(d, f)
	if err != nil {
		return "", removed, p.Error(what, err)
	}
	if removed.IsZero() && fsType(f) == unix.PROC_SUPER_MAGIC {
		if about, err := aboutProcess(d, p, path, &f.Stat); err != nil || about {
			return "", removed, p.Error(what, object.Unsupportedf("a directory of a process in /proc cannot be checkpointed"))
		}
	}
	return path, removed, nil
}

// Same says whether two records say the same.
func (s *FSState) Same(o *FSState) bool {
	return s.Root == o.Root && s.Cwd == o.Cwd && s.RemovedRoot == o.RemovedRoot && s.RemovedCwd == o.RemovedCwd && s.Umask == o.Umask
}

func restoreFS(r *object.Restorer, _ stream.Ref, s *FSState) error {
	if s.Umask&^0o777 != 0 {
		return object.BadImagef("umask %#o is impossible", s.Umask)
	}
	s.rootFD = -1
	if s.Root != "/" {
		fd, err := poolDirectory(r, s.Root, s.RemovedRoot)
		if err != nil {
			return fmt.Errorf("opening root directory %s: %w", clip(s.Root), err)
		}
		s.rootFD = fd
	}
	fd, err := poolDirectory(r, s.Cwd, s.RemovedCwd)
	if err != nil {
		return fmt.Errorf("opening working directory %s: %w", clip(s.Cwd), err)
	}
	s.cwdFD = fd
	return nil
}

func poolDirectory(r *object.Restorer, path string, removed stream.Ref) (int, error) {
	if !removed.IsZero() {
		m, err := object.Recall[removedDirectory](r, removed)
		if err != nil {
			return -1, err
		}
		return m.fd, nil
	}
	pinned, _, err := pin(path, unix.S_IFDIR, false)
	if err != nil {
		return -1, err
	}
	return r.Pool(pinned.Disown())
}

// FSCalls appends the calls by which a task that has the pool open takes its root, working directory and umask. They
// must be run before TableCalls, which closes the pool.
func FSCalls(_ *object.Restorer, b *tracee.Batch, s *FSState) error {
	n := b.Sys()
	if s.rootFD >= 0 {
		b.Call(n.Fchdir, s.rootFD).Note("root directory %s", clip(s.Root))
		b.Call(n.Chroot, ".").Note("root directory %s", clip(s.Root))
	}
	b.Call(n.Fchdir, s.cwdFD).Note("working directory %s", clip(s.Cwd))
	b.Call(n.Umask, s.Umask)
	return nil
}

// FSKind is the record of a root, working directory and umask.
var FSKind = object.NewKind(fsRecord, restoreFS)
