package engine

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
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
