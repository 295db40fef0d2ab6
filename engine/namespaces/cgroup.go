package namespaces

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// Cgroup is the record of a cgroup namespace of the tree's own (cgroup_namespaces(7)): which cgroups its tasks see as the roots.
type Cgroup struct {
	Roots []CgroupRoot `msgpack:"roots,omitempty"`
}

// CgroupRoot is the root of the namespace in one hierarchy.
type CgroupRoot struct {
	Controllers string `msgpack:"controllers,omitempty"` // as in /proc/PID/cgroup; empty: version 2
	Path        string `msgpack:"path"`                  // as the caller of cr-dump sees it
}

// CgroupKind is the kind of record "ns.cgroup".
var CgroupKind = object.NewKind[Cgroup]("ns.cgroup", nil)

// DumpCgroup adds the record where the root is in another cgroup namespace than the caller. No call tells the roots of a namespace; but
// its own root is what the path of a task seen from outside has before that seen from inside.
func DumpCgroup(d *object.Dumper) error {
	own, err := ownNamespace(d, "cgroup")
	if err != nil || !own {
		return err
	}
	tid := d.Root.Leader().TID
	outside, err := procfs.ReadCgroups(tid)
	if err != nil {
		return err
	}
	var inside []procfs.Cgroup
	if err := within(d, "cgroup", unix.CLONE_NEWCGROUP, func() (err error) { inside, err = procfs.ReadCgroups(tid); return err }); err != nil {
		return refusal(d, err)
	}
	s := &Cgroup{}
	for i, o := range outside {
		if i >= len(inside) || inside[i].Controllers != o.Controllers {
			return d.Root.Error("", object.Unsupportedf("its cgroups change while they are looked at"))
		}
		root, ok := strings.CutSuffix(o.Path, strings.TrimSuffix(inside[i].Path, "/"))
		if !ok || strings.Contains(root, "/..") {
			d.Refuse(d.Root.Error("", &object.Unsupported{
				What: "is outside of the root of its own cgroup namespace (cgroup " + o.Path + ", seen as " + inside[i].Path + ")",
				Do:   "run cr-dump inside it (nsenter -C -t PID)"}))
			return nil
		}
		s.Roots = append(s.Roots, CgroupRoot{Controllers: o.Controllers, Path: path.Join("/", root)})
	}
	d.AddPlain(CgroupKind.Type, s)
	return nil
}

// Check refuses what no dump writes.
func (s *Cgroup) Check() error {
	seen := map[string]bool{}
	for _, r := range s.Roots {
		if !cleanPath(r.Path) || path.Clean(r.Path) != r.Path || seen[r.Controllers] {
			return object.BadImagef("a cgroup namespace with the root %q of %q", r.Path, r.Controllers)
		}
		seen[r.Controllers] = true
	}
	return nil
}
