package tasks

import "crpipe/stream"

// A Step is what a thread does on the way to its own seccomp filters: take the next one, or make another thread, which so
// has the same ones up to there. Sharing comes from nowhere else, and SECCOMP_FILTER_FLAG_TSYNC asks for it.
type Step struct {
	Filter stream.Ref
	Make   *Birth
}

// HasSeccomp says whether a thread of the process has filters, or only the few calls of strict mode.
func (fam *Family) HasSeccomp() bool {
	for _, t := range fam.Threads {
		if len(t.Seccomp) > 0 || t.SeccompStrict {
			return true
		}
	}
	return false
}

// filterSteps says, for every thread of a process, what it does. It starts with the first, all of whose filters are its
// own.
func filterSteps(first *Birth, others []*Birth) {
	var grow func(b *Birth, depth int, rest []*Birth)
	grow = func(b *Birth, depth int, rest []*Birth) {
		chain := b.state.Seccomp
		for ; ; depth++ {
			// Those who part ways here: who has no more than these, and for each other filter those who have it next.
			var on []*Birth
			var order []stream.Ref
			parting := map[stream.Ref][]*Birth{}
			for _, x := range rest {
				var next stream.Ref
				if depth < len(x.state.Seccomp) {
					next = x.state.Seccomp[depth]
				}
				switch {
				case next.IsZero():
					b.step(x)
				case depth < len(chain) && chain[depth] == next:
					on = append(on, x)
				default:
					if parting[next] == nil {
						order = append(order, next)
					}
					parting[next] = append(parting[next], x)
				}
			}
			for _, ref := range order {
				x := parting[ref][0]
				b.step(x)
				grow(x, depth, parting[ref][1:])
			}
			if depth == len(chain) {
				return
			}
			b.Steps = append(b.Steps, Step{Filter: chain[depth]})
			rest = on
		}
	}
	grow(first, 0, others)
}

// step has b make the thread x now.
func (b *Birth) step(x *Birth) {
	b.Steps = append(b.Steps, Step{Make: x})
	x.Creator = b
}
