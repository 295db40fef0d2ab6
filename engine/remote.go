package engine

import (
	"errors"
	"fmt"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/tracee"
)

// remote is what the classical source of the kernel view is given to have the held tasks execute system calls. They are loosened
// for as short as that takes; what is needed behind their vdsos is wiped each time.
type remote struct {
	held    *treeHold
	arch    *arch.Arch
	visitor *tracee.Visitor
}

// Do implements kernelview.Remote.
func (r *remote) Do(f func() error) error {
	return r.held.Tracer().Do(func() (err error) {
		if r.visitor != nil {
			return f()
		}
		if r.visitor, err = tracee.NewVisitor(r.arch); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, r.visitor.Close(), r.held.Tighten())
			r.visitor = nil
		}()
		if err := r.held.Loosen(); err != nil {
			return fmt.Errorf("letting single tasks go on: %w", err)
		}
		return f()
	})
}

// Visit implements kernelview.Remote.
func (r *remote) Visit(tid int, f func(kernelview.RemoteVisit) error) error {
	if r.visitor == nil {
		return errors.New("internal error: a visit outside of Do")
	}
	pid := r.held.ProcessOf(tid)
	if pid == 0 {
		return fmt.Errorf("internal error: thread %d is not held", tid)
	}
	return r.visitor.Visit(pid, tid, func(s *tracee.Visit) error { return f(remoteVisit{s}) })
}

// StopSignal implements kernelview.Remote.
func (r *remote) StopSignal(pid int) int32 { return r.held.StopSignal(pid) }

// remoteVisit is a visit as the kernel view sees it.
type remoteVisit struct{ *tracee.Visit }

// Run implements kernelview.RemoteVisit.
func (v remoteVisit) Run(calls []kernelview.RemoteCall) error {
	list := make([]tracee.VisitCall, len(calls))
	for i := range calls {
		list[i] = tracee.VisitCall{Nr: calls[i].Nr, Args: calls[i].Args}
	}
	if err := v.Visit.Run(list); err != nil {
		return err
	}
	for i := range calls {
		calls[i].Result = list[i].Result
	}
	return nil
}
