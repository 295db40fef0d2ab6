//go:build amd64

package cpuid

import "sync"

// answer is what the processor has said. All say the same, but for what is of one alone: its number in leaf 1.
type answer struct{ leaf, sub, a, b, c, d uint32 }

var (
	mu      sync.Mutex
	answers []answer
)

// Ask executes CPUID: leaf in EAX, sub in ECX (Intel SDM volume 2). In a virtual machine it costs tens of microseconds, so that each
// question is asked once.
func Ask(leaf, sub uint32) (a, b, c, d uint32) {
	mu.Lock()
	defer mu.Unlock()
	for i := range answers {
		if k := &answers[i]; k.leaf == leaf && k.sub == sub {
			return k.a, k.b, k.c, k.d
		}
	}
	a, b, c, d = ask(leaf, sub)
	answers = append(answers, answer{leaf, sub, a, b, c, d})
	return a, b, c, d
}

func ask(leaf, sub uint32) (a, b, c, d uint32)
