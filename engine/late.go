package engine

import (
	"crpipe/engine/files"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// tables calls f once for every descriptor table, with a process that has it, and runs the batches that it fills.
func (rs *restoration) tables(f func(p *process, t *files.TableState, b *tracee.Batch) error) error {
	done := map[uint32]bool{}
	return rs.live(func(p *process, b *tracee.Batch) error {
		if done[p.state.Files.ID] {
			return nil
		}
		done[p.state.Files.ID] = true
		t, err := object.State[files.TableState](rs.plan, p.state.Files)
		if err != nil {
			return err
		}
		return f(p, t, b)
	})
}

// takeLocks has the tables' processes take the locks for which calls makes the calls.
func (rs *restoration) takeLocks(calls func(*object.Restorer, *tracee.Batch, *files.TableState) (func() error, error)) error {
	var checks []func() error
	if err := rs.tables(func(_ *process, t *files.TableState, b *tracee.Batch) error {
		taken, err := calls(rs.r, b, t)
		checks = append(checks, taken)
		return err
	}); err != nil {
		return err
	}
	for _, taken := range checks {
		if err := taken(); err != nil {
			return err
		}
	}
	return nil
}
