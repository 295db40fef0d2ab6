package events

import (
	"slices"

	"crpipe/engine/files"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// An epoll item of a signalfd waits for the signals of whoever has added it (signalfd_poll in fs/signalfd.c hooks itself to current->sighand), while a
// read tells those of whoever reads. Such an item is not added by the root task, as others are, but by the first process that has both descriptors, or else
// the instance.

// lateSignalfd is what watches one signalfd.
type lateSignalfd struct{ watches []*signalWatch }

type signalWatch struct {
	watch
	epoll stream.Ref // the open file of the instance
	epfd  int        // in the pool
	added bool
}

// watchSignalfd takes an item whose file is a signalfd. It returns false for any other.
func watchSignalfd(r *object.Restorer, epoll stream.Ref, epfd int, w watch) bool {
	if _, err := object.State[signalfdState](r.Plan, w.File); err != nil {
		return false
	}
	l, err := object.Recall[lateSignalfd](r, w.File)
	if err != nil {
		l = &lateSignalfd{}
		r.Remember(w.File, l)
	}
	l.watches = append(l.watches, &signalWatch{watch: w, epoll: epoll, epfd: epfd})
	return true
}

// SignalfdRounds returns what the processes that make the tables do, one round after the other, to add the items of signalfds. Exactly the pool is open in
// them.
func SignalfdRounds(r *object.Restorer) []PidfdRound {
	var all []*signalWatch
	for _, f := range object.All[signalfdState](r.Plan) {
		if l, err := object.Recall[lateSignalfd](r, f.Ref); err == nil {
			all = append(all, l.watches...)
		}
	}
	if len(all) == 0 {
		return nil
	}
	has := func(t *files.TableState, ref stream.Ref) bool {
		return slices.ContainsFunc(t.Entries, func(e files.TableEntry) bool { return e.File == ref })
	}
	round := func(fits func(t *files.TableState, w *signalWatch) bool) PidfdRound {
		return func(t *files.TableState, b *tracee.Batch) error {
			for _, w := range all {
				if !w.added && fits(t, w) {
					w.add(b, w.epfd, w.Events)
					w.added = true
				}
			}
			return nil
		}
	}
	return []PidfdRound{
		round(func(t *files.TableState, w *signalWatch) bool { return has(t, w.epoll) && has(t, w.File) }),
		round(func(t *files.TableState, w *signalWatch) bool { return has(t, w.epoll) }),
		round(func(*files.TableState, *signalWatch) bool { return true }),
	}
}
