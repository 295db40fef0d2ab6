package engine

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
)

// enterNames makes the UTS and the network namespace of the tree, for the tracer's thread and the tasks and sockets that it makes.
func (rs *restoration) enterNames() error {
	for _, u := range object.All[namespaces.UTS](rs.plan) {
		if err := u.State.Make(); err != nil {
			return err
		}
	}
	for _, n := range object.All[namespaces.Net](rs.plan) {
		if rs.homeNet == nil {
			fd, err := sys.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("opening the own network namespace: %w", err)
			}
			rs.homeNet = fd
		}
		rs.r.Elsewhere = true // sockets are of the thread that makes them
		if err := n.State.Make(); err != nil {
			return err
		}
	}
	return nil
}

// inNetwork runs f in the network namespace of the tree, whose tasks are there.
func (rs *restoration) inNetwork(f func() error) error {
	if len(object.All[namespaces.Net](rs.plan)) == 0 {
		return f()
	}
	return namespaces.InNet(rs.procs[0].task.Tid, f)
}

// enterBirths makes the namespaces that only a task of one thread may enter, or that depend on where it is: the stub makes them, and who
// is born of it is in them.
func (rs *restoration) enterBirths() error {
	for _, n := range object.All[namespaces.Time](rs.plan) {
		offsets, err := n.State.Offsets()
		if err != nil {
			return err
		}
		mine, err := procfs.ReadTimeOffsets("self")
		if err != nil {
			return err
		}
		if err := rs.unshareStub(unix.CLONE_NEWTIME); err != nil {
			return fmt.Errorf("making a time namespace: %w", err)
		}
		if err := namespaces.SetTimeOffsets(rs.stub.Tid, offsets); err != nil {
			return err
		}
		rs.ahead = procfs.TimeOffsets{Monotonic: offsets.Monotonic - mine.Monotonic, Boottime: offsets.Boottime - mine.Boottime}
	}
	for _, n := range object.All[namespaces.Cgroup](rs.plan) {
		if err := n.State.Check(); err != nil {
			return err
		}
		if err := rs.moveStub(n.State.Roots); err != nil {
			return err
		}
		if err := rs.unshareStub(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("making a cgroup namespace: %w", err)
		}
		rs.ownCgroupNS = true
	}
	return failpoint.Hit("restore.namespaces")
}

func (rs *restoration) unshareStub(flag uint64) error {
	b := rs.arena.NewBatch()
	b.Call(b.Sys().Unshare, flag)
	return rs.tracer.RunOne(rs.stub, b)
}

// moveStub puts the stub into the cgroups that are to be the roots of its namespace. One that is not here is an error: inside, everything
// would have another path.
func (rs *restoration) moveStub(roots []namespaces.CgroupRoot) error {
	own := rs.ownCgroups()
	if own == nil {
		return &object.Lacking{What: "the tree has a cgroup namespace of its own, and no cgroups can be seen here"}
	}
	for _, root := range roots {
		c := tasks.Cgroup{Controllers: root.Controllers, Path: root.Path}
		if own.in(&c) {
			continue
		}
		dir := own.dir(&c)
		if dir == "" {
			continue // the hierarchy is not mounted here: the root is that of the stub
		}
		err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(rs.stub.Tid)), 0)
		if errors.Is(err, os.ErrNotExist) {
			err = &object.Lacking{What: "the cgroup " + dir + ", which is the root of the tree's cgroup namespace, is not here", Do: "make it (mkdir " + dir + ")"}
		}
		if err != nil {
			return fmt.Errorf("entering the root of the tree's cgroup namespace: %w", err)
		}
	}
	return nil
}

// clock reads a clock as the tree sees it.
func (rs *restoration) clock(clock int32) (int64, error) {
	now, err := sys.Clock(clock)
	return now + rs.ahead.Of(clock), err
}
