package procfs

import "bytes"

// NumLimits is how many resources Linux limits, RLIM_NLIMITS.
const NumLimits = 16

// Unlimited is RLIM_INFINITY.
const Unlimited = ^uint64(0)

// Limit is one resource's pair of limits, in the unit of getrlimit(2).
type Limit struct {
	Soft, Hard uint64
}

// Limits are all of a process, indexed by RLIMIT_* as the architectures of
// this program number them (include/uapi/asm-generic/resource.h).
type Limits [NumLimits]Limit

// limitNames is lnames of fs/proc/base.c in RLIMIT_* order.
var limitNames = [NumLimits]string{
	"Max cpu time", "Max file size", "Max data size", "Max stack size",
	"Max core file size", "Max resident set", "Max processes", "Max open files",
	"Max locked memory", "Max address space", "Max file locks", "Max pending signals",
	"Max msgqueue size", "Max nice priority", "Max realtime priority", "Max realtime timeout",
}

// ParseLimits parses the whole file; each of the 16 limits must be there.
func ParseLimits(b []byte) (Limits, error) {
	var l Limits
	var seen uint32
	_, b = cutLine(b) // the heading
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		for i, name := range limitNames {
			after, ok := bytes.CutPrefix(line, []byte(name))
			if !ok || len(after) == 0 || after[0] != ' ' {
				continue
			}
			soft, rest := nextField(after)
			hard, _ := nextField(rest)
			var ok1, ok2 bool
			l[i].Soft, ok1 = parseLimit(soft)
			l[i].Hard, ok2 = parseLimit(hard)
			if !ok1 || !ok2 {
				return l, badFormat("a limit", line)
			}
			seen |= 1 << i
			break
		}
	}
	if seen != 1<<NumLimits-1 {
		return l, badFormat("limits missing", b)
	}
	return l, nil
}

func parseLimit(b []byte) (uint64, bool) {
	if string(b) == "unlimited" {
		return Unlimited, true
	}
	return parseUint(b, 10, 64)
}
