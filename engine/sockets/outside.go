package sockets

import (
	"fmt"

	"crpipe/engine/files"
	"crpipe/engine/object"
)

// refuseShared refuses a socket that somebody outside of the tree has too: a restore makes one of its own, and what is sent to the one
// does not reach the other.
func refuseShared(d *object.Dumper, f *object.OpenFile) error {
	own, err := files.References(d, f.View.ID)
	if err != nil {
		return err
	}
	if refs, ok := f.View.Refs.Get(); ok && refs > own {
		return &object.Unsupported{What: "the socket is also held outside of the tree",
			Do: fmt.Sprintf("dump the whole job, or pass --external '%s' and give it back at restore with --inherit", f.Link)}
	}
	return nil
}
