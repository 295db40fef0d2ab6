package kernelview

// SeccompFilter is one program of seccomp(2). Threads that inherited it, or got
// it by SECCOMP_FILTER_FLAG_TSYNC, share it.
type SeccompFilter struct {
	ID           ID
	Code         []byte // struct sock_filter each, as the program gave them
	Log          bool   // SECCOMP_FILTER_FLAG_LOG
	WaitKillable bool   // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	Listener     bool   // somebody holds a SECCOMP_FILTER_FLAG_NEW_LISTENER descriptor
}

var (
	fTSeccompFilter = want("task_struct.seccomp.filter")
	fSFLog          = want("seccomp_filter.log")
	fSFKillable     = want("seccomp_filter.wait_killable_recv")
	fSFPrev         = want("seccomp_filter.prev")
	fSFProg         = want("seccomp_filter.prog")
	fSFNotif        = want("seccomp_filter.notif")
	fProgOrig       = want("bpf_prog.orig_prog")
	fOrigLen        = want("sock_fprog_kern.len")
	fOrigFilter     = want("sock_fprog_kern.filter")
)

// Bounds of kernel/seccomp.c and linux/bpf_common.h: instructions in one
// program, and in all of a thread, each program counting four more.
const (
	maxInstructions = 4096
	maxSeccompPath  = 32768

	sizeofSockFilter = 8
)

// seccomp fills in the filters of threads, oldest first, from the chains that
// begin at the addresses. What cannot be read stays unknown.
func (v *bpfView) seccomp(threads []Thread, newest []uint64) error {
	l := v.l
	for _, f := range []field{fTSeccompMode, fTSeccompFilter, fSFLog, fSFPrev, fSFProg, fSFNotif, fProgOrig, fOrigLen, fOrigFilter} {
		if !l.has(f) {
			return nil
		}
	}
	filters := map[uint64][]byte{}
	var progs []uint64
	for ask := newest; len(ask) > 0; {
		got, err := v.gatherMap(ask, l.span["seccomp_filter"])
		if err != nil {
			return err
		}
		ask = nil
		for a, b := range got {
			filters[a] = b
			prog, _ := l.uint(b, fSFProg)
			progs = append(progs, prog)
			if prev, _ := l.uint(b, fSFPrev); prev != 0 && filters[prev] == nil && len(filters) < maxSeccompPath {
				ask = append(ask, prev)
			}
		}
	}
	heads, err := v.gatherMap(progs, l.span["bpf_prog"])
	if err != nil {
		return err
	}
	var origs []uint64
	for _, b := range heads {
		orig, _ := l.uint(b, fProgOrig)
		origs = append(origs, orig)
	}
	kept, err := v.gatherMap(origs, l.span["sock_fprog_kern"])
	if err != nil {
		return err
	}
	made := map[uint64]*SeccompFilter{}
	for i := range threads {
		threads[i].Seccomp = v.seccompChain(newest[i], func(a uint64) *SeccompFilter {
			if f, ok := made[a]; ok {
				return f
			}
			prog, _ := l.uint(filters[a], fSFProg)
			orig, _ := l.uint(heads[prog], fProgOrig)
			made[a] = v.seccompFilter(a, filters[a], kept[orig])
			return made[a]
		}, filters)
	}
	return nil
}

// seccompChain walks from the newest filter of a thread to its oldest.
func (v *bpfView) seccompChain(newest uint64, get func(uint64) *SeccompFilter, filters map[uint64][]byte) Maybe[[]SeccompFilter] {
	var chain []SeccompFilter
	for a := newest; a != 0; a, _ = v.l.uint(filters[a], fSFPrev) {
		f := get(a)
		if f == nil || len(chain) > maxSeccompPath {
			return Maybe[[]SeccompFilter]{}
		}
		chain = append(chain, *f)
	}
	for i, j := 0, len(chain)-1; i < j; i, j = i+1, j-1 {
		chain[i], chain[j] = chain[j], chain[i]
	}
	return Is(chain)
}

// seccompFilter reads one filter; nil where that is not possible. A kernel that
// is not built for checkpoints (CONFIG_CHECKPOINT_RESTORE) keeps only what it
// has translated the program to.
func (v *bpfView) seccompFilter(addr uint64, b, orig []byte) *SeccompFilter {
	l := v.l
	n, ok1 := l.uint(orig, fOrigLen)
	code, ok2 := l.uint(orig, fOrigFilter)
	log, ok3 := l.uint(b, fSFLog)
	notif, ok4 := l.uint(b, fSFNotif)
	if !ok1 || !ok2 || !ok3 || !ok4 || n == 0 || n > maxInstructions {
		return nil
	}
	data, err := v.mem.peek(code, int(n)*sizeofSockFilter)
	if err != nil {
		return nil
	}
	killable, _ := l.uint(b, fSFKillable) // Linux 5.19
	return &SeccompFilter{ID: v.id(addr), Code: data, Log: log != 0, WaitKillable: killable != 0, Listener: notif != 0}
}
