package cli

import (
	"fmt"
	"os"
)

// SignalError is the cause of a context that was cancelled by a signal.
type SignalError struct{ Signal os.Signal }

func (e *SignalError) Error() string { return fmt.Sprintf("stopped by signal: %s", e.Signal) }
