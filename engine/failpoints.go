package engine

import "crpipe/engine/internal/failpoint"

// Failpoint is where a command can be told by a test to fail, for the steps that commands make themselves. In an ordinary build it
// does nothing.
func Failpoint(name string) error { return failpoint.Hit(name) }
