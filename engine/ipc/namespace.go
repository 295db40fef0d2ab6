package ipc

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// NamespaceState is the record of an IPC namespace of the tree's own (ipc_namespaces(7)): its limits, which sysctl(8) shows
// inside of it. What is in it follows in records of its own.
type NamespaceState struct {
	Settings []Setting `msgpack:"settings"`
}

// Setting is one file below /proc/sys.
type Setting struct {
	Name   string   `msgpack:"name"`
	Values []uint64 `msgpack:"values"`
}

// NamespaceKind is the kind of record "ns.ipc".
var NamespaceKind = object.NewKind[NamespaceState]("ns.ipc", nil)

// settings are what an IPC namespace has of its own, proc_sys_kernel(5), proc_sys_fs(5). kernel.auto_msgmni does nothing since Linux 3.19.
var settings = []string{
	"kernel/shmmax", "kernel/shmall", "kernel/shmmni", "kernel/shm_rmid_forced",
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"fs/mqueue/queues_max", "fs/mqueue/msg_max", "fs/mqueue/msgsize_max", "fs/mqueue/msg_default", "fs/mqueue/msgsize_default",
}

// dumpNamespace adds the record of an own namespace, in which nobody else may be.
func (l *Look) dumpNamespace(d *object.Dumper, link string) error {
	if err := l.checkAlone(d, link); err != nil {
		return err
	}
	var err error
	if l.ns, err = Open(l.tid); err != nil {
		return err
	}
	d.Keep(l.ns.fd)
	s := &NamespaceState{}
	if err := l.Do(func() error { return s.read() }); err != nil {
		return d.Root.Error("", fmt.Errorf("looking into its IPC namespace: %w", err))
	}
	d.AddPlain(NamespaceKind.Type, s)
	return nil
}

// checkAlone refuses a namespace that tasks outside of the tree are in as well.
func (l *Look) checkAlone(d *object.Dumper, link string) error {
	pids, err := procfs.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if _, ours := l.ids[pid]; ours {
			continue
		}
		if theirs, err := os.Readlink(procfs.Path(pid, "ns/ipc")); err != nil || theirs != link {
			continue // gone, or elsewhere
		}
		comm := ""
		if st, err := procfs.ReadStat(pid); err == nil {
			comm = " (" + st.Comm + ")"
		}
		d.Refuse(d.Root.Error("", &object.Unsupported{
			What: fmt.Sprintf("pid %d%s, which is not part of the tree, is in its IPC namespace too", pid, comm),
			Do:   "dump the process that made the namespace, with everybody in it, or run cr-dump inside (nsenter -i)"}))
		return nil
	}
	return nil
}

func (s *NamespaceState) read() error {
	for _, name := range settings {
		text, err := readSysctl(name)
		if err != nil {
			return err
		}
		if text == "" {
			continue
		}
		set := Setting{Name: name}
		for _, f := range strings.Fields(text) {
			n, err := strconv.ParseUint(f, 10, 64)
			if err != nil {
				return fmt.Errorf("reading %s: %w", name, err)
			}
			set.Values = append(set.Values, n)
		}
		s.Settings = append(s.Settings, set)
	}
	return nil
}

// Check refuses what is no setting of a namespace.
func (s *NamespaceState) Check() error {
	if len(s.Settings) > len(settings) {
		return object.BadImagef("%d settings of an IPC namespace", len(s.Settings))
	}
	next := 0
	for i := range s.Settings {
		set := &s.Settings[i]
		for next < len(settings) && settings[next] != set.Name {
			next++
		}
		want := 1
		if set.Name == "kernel/sem" {
			want = 4
		}
		if next == len(settings) || len(set.Values) != want {
			return object.BadImagef("the setting %q of an IPC namespace with %d values", clip(set.Name), len(set.Values))
		}
		next++
	}
	return nil
}

func clip(s string) string { return s[:min(len(s), 64)] }

// Make moves the calling thread, which must be locked to its goroutine, into a new IPC namespace. Its limits are, until Settle, at
// least those of the image, and no less than what the kernel gives to every namespace.
func (s *NamespaceState) Make() error {
	if err := s.Check(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWIPC); err != nil {
		return &object.Lacking{What: "making an IPC namespace", Err: err, Do: "it needs CAP_SYS_ADMIN"}
	}
	return s.set(func(have, want uint64) uint64 { return max(have, want) }, true)
}

// Settle gives the namespace of the calling thread exactly the limits of the image.
func (s *NamespaceState) Settle() error {
	return s.set(func(_, want uint64) uint64 { return want }, false)
}

// forced is the one setting that changes what becomes of objects.
const forced = "kernel/shm_rmid_forced"

func (s *NamespaceState) set(choose func(have, want uint64) uint64, early bool) error {
	var here NamespaceState
	if err := here.read(); err != nil {
		return err
	}
	have := map[string][]uint64{}
	for _, set := range here.Settings {
		have[set.Name] = set.Values
	}
	for _, set := range s.Settings {
		if early && set.Name == forced {
			continue
		}
		values := make([]string, len(set.Values))
		same := len(have[set.Name]) == len(set.Values)
		if !same {
			return &object.Lacking{What: "this kernel has no setting " + set.Name + ", which the image's IPC namespace has"}
		}
		for i, want := range set.Values {
			now := have[set.Name][i]
			n := choose(now, want)
			same = same && n == now
			values[i] = strconv.FormatUint(n, 10)
		}
		if same {
			continue
		}
		if err := writeSysctl(set.Name, strings.Join(values, " ")); err != nil {
			return fmt.Errorf("setting %s of the IPC namespace: %w", set.Name, err)
		}
	}
	return nil
}
