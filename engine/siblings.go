package engine

import (
	"fmt"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// fewThreads is how many threads /proc is asked about one by one.
const fewThreads = 4

// siblings makes the status of the threads of a process from that of its leader and what the kernel view says differs: two files of
// /proc for each of a thousand threads cost more than all else. A thread is missing of which the view does not know everything, or that
// differs in more. Of the status only what a dump looks at is right: not the counters, nor where it may run.
func (h *treeHold) siblings(d *object.Dumper, p *object.Process, tids []int) (map[int]*procfs.Status, error) {
	levels := len(p.Status.NSpid)
	if !h.Detached() || len(tids) <= fewThreads || levels != 1 || p.Stat.State == 'Z' {
		return nil, nil
	}
	all, err := h.view.Siblings(tids)
	if err != nil {
		return nil, p.Error("", fmt.Errorf("looking at its threads: %w", err))
	}
	var leader kernelview.Sibling
	for _, s := range all {
		if s.Tid == p.PID {
			leader = s
		}
	}
	out := map[int]*procfs.Status{}
	if !leader.Known {
		return out, nil
	}
	for _, s := range all {
		if !s.Known || s.Tid == p.PID || s.Cred != leader.Cred || s.FS != leader.FS || s.Dead {
			continue
		}
		st := *p.Status
		st.Name, st.PID, st.NSpid = s.Comm, s.Tid, []int{s.Tid}
		st.SigPnd, st.SigBlk = s.Pending, s.Blocked
		st.Seccomp, st.SeccompFilters, st.NoNewPrivs = int(s.Seccomp), int(s.Filters), s.NoNewPrivs
		out[s.Tid] = &st
	}
	return out, nil
}
