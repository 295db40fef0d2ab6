package kernelview

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// bpfView is the source that reads the kernel's memory.
type bpfView struct {
	l       *layout
	mem     *memory
	clocks  clocks
	fnNames map[uint64]symbol // by address of the function

	// The caller's pid namespace: what it is, and how deep below the initial one.
	pidNS    uint64
	pidLevel uint64

	taskArena, frameArena, fpArena arena // of raws

	ahead map[int]Maybe[[]Area] // by thread: what the next call of Areas says

	ids map[uint64]ID // by address
	// undoLists are the lists of semaphore adjustments that have some, by ID.
	undoLists map[ID]uint64
	addrs     []uint64   // by ID, from 1 on
	files     []openFile // by ID; of kind KindUnknown where it is no file

	places []uint64 // see perCPU

	pages pages // where the kernel maps memory

	cpuMaskSize int                     // bytes of a mask of CPUs that is allocated by itself
	baseClocks  map[uint64]Maybe[int32] // clock of an hrtimer base, by its address
	components  [64]component           // of the registers of the FPU, by feature
	speculation bool                    // tasks can be given speculation controls on this machine
}

// openBPF opens the BPF source: it loads the program that reads, and learns
// the layout of this kernel's structures, from the cache if it can.
func openBPF(o Options) (*bpfView, error) {
	if !mayUseBPF() {
		return nil, missingRight(unix.EPERM)
	}
	base, err := textBase()
	if err != nil {
		return nil, err
	}
	mem, err := openMemory()
	if err != nil {
		return nil, err
	}
	v := &bpfView{
		mem:        mem,
		clocks:     readClocks(),
		ids:        make(map[uint64]ID),
		baseClocks: make(map[uint64]Maybe[int32]),
		components: components(),
	}
	if err := v.learn(o, base); err != nil {
		_ = v.Close() // the first failure is what matters
		return nil, err
	}
	v.speculation = speculationControlled()
	v.cpuMaskSize = cpuMaskSize()
	return v, nil
}

// learn fills the layout and everything that follows from it.
func (v *bpfView) learn(o Options, base uint64) error {
	var key [cacheKeySize]byte
	dir := o.CacheDir
	id, err := buildID()
	usable := err == nil && !o.NoCache // without a build id nothing says what a cache is of
	if usable && dir == "" {
		if dir, err = cacheDir(); err != nil {
			usable = false
		}
	}
	if usable {
		key = cacheKey(id)
		if l, err := readCache(dir, key); err == nil {
			return v.use(l, base)
		}
	}
	spec, err := kernelSpec()
	if err != nil {
		return err
	}
	l := &layout{fields: resolveFields(spec)}
	if l.symbols, err = resolveSymbols(); err != nil {
		return err
	}
	l.prepare()
	if err := v.use(l, base); err != nil {
		return err
	}
	if complete := v.calibrate(); usable && complete {
		_ = writeCache(dir, key, l) // without one the next start is slower, nothing else
	}
	return nil
}

// use makes l the layout in use and looks up the caller's own place in the
// kernel, without which no thread can be found.
func (v *bpfView) use(l *layout, base uint64) error {
	v.l = l
	v.fnNames = make(map[uint64]symbol)
	for i, s := range l.symbols {
		if s.known {
			v.fnNames[base+s.offset] = symbol(i)
		}
	}
	for _, f := range []field{
		fTThreadPid, fTPidLinks, fTSignal, fTPid, fTTgid, fPidLevel, fPidTasks, fPidNumbers,
		fUpidNr, fUpidNS, fUpidSize, fNSHead, fNodeShift, fNodeSlots,
	} {
		if !l.has(f) {
			return &MissingError{What: "a kernel whose structures are known (" + fieldPaths[f] + " is not in its BTF)"}
		}
	}
	if err := v.findOwnNamespace(); err != nil {
		return fmt.Errorf("finding the own task in the kernel: %w", err)
	}
	return nil
}

// Close unloads the program.
func (v *bpfView) Close() error {
	clear(v.ids)
	v.addrs = nil
	v.files = nil
	for _, a := range []*arena{&v.taskArena, &v.frameArena, &v.fpArena} {
		a.free()
	}
	return v.mem.Close()
}

// SetNow is documented with View. What was read ahead of a tree that has run since does not count.
func (v *bpfView) SetNow(i sys.Instant) { v.clocks.fixed, v.ahead = &i, nil }

// Now is documented with View.
func (v *bpfView) Now(clock int32) Maybe[int64] { return v.clocks.now(clock) }

// Source names the source.
func (v *bpfView) Source() string { return "bpf" }

// id gives the object at an address its number.
func (v *bpfView) id(addr uint64) ID {
	if addr == 0 {
		return 0
	}
	id, ok := v.ids[addr]
	if !ok {
		id = ID(len(v.ids) + 1)
		v.ids[addr] = id
		v.addrs = append(v.addrs, addr)
	}
	return id
}

// idOf reads a pointer field as an identity.
func (v *bpfView) idOf(b []byte, f field) Maybe[ID] {
	addr, ok := v.l.uint(b, f)
	if !ok {
		return Maybe[ID]{}
	}
	return Is(v.id(addr))
}

// gatherMap reads size bytes at each distinct address and returns copies by
// address; what cannot be read is missing.
func (v *bpfView) gatherMap(addrs []uint64, size int) (map[uint64][]byte, error) {
	unique := make([]uint64, 0, len(addrs))
	found := make(map[uint64][]byte, len(addrs))
	for _, a := range addrs {
		if a == 0 {
			continue
		}
		if _, seen := found[a]; !seen {
			found[a] = nil
			unique = append(unique, a)
		}
	}
	if size == 0 {
		return nil, nil
	}
	if size > maxRead {
		return nil, errors.New("reading kernel memory: a structure is larger than any known")
	}
	arena := make([]byte, 0, len(unique)*size)
	err := v.mem.gather(unique, size, func(i int, b []byte) {
		if b == nil {
			delete(found, unique[i])
			return
		}
		at := len(arena)
		arena = append(arena, b...)
		found[unique[i]] = arena[at:len(arena):len(arena)]
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// cpuMaskSize is how long a CPU mask is that the kernel allocates at run time:
// long enough for the possible CPUs, in words. Its type cpumask_t is as long as
// the build allows, and behind a shorter one lies something else. 0: unknown.
func cpuMaskSize() int {
	b, err := procfs.ReadFile("/sys/devices/system/cpu/possible") // e.g. 0-3,8
	if err != nil {
		return 0
	}
	s := strings.TrimSpace(string(b))
	last, err := strconv.Atoi(s[strings.LastIndexAny(s, "-,")+1:])
	if err != nil || last < 0 || last >= 1<<16 {
		return 0
	}
	return (last/64 + 1) * 8
}

// mayUseBPF tells whether this process has the capabilities to load the
// program. The kernel's symbols need CAP_SYSLOG too, which reading them tells.
func mayUseBPF() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	have := uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	has := func(c uint) bool { return have>>c&1 != 0 }
	return has(unix.CAP_SYS_ADMIN) || (has(unix.CAP_BPF) && has(unix.CAP_PERFMON))
}

// missingRight says that the user may not do it.
func missingRight(err error) error {
	return &MissingError{
		What: "the right to load BPF programs that read the kernel",
		Fix:  "run as root, or with the capabilities CAP_BPF, CAP_PERFMON and CAP_SYSLOG",
		Err:  err,
	}
}

// missingBPF tells apart why the kernel refuses a map or a program. Only the
// errno goes on: the verifier's log may hold addresses.
func missingBPF(doing string, err error) error {
	var e unix.Errno
	if !errors.As(err, &e) {
		e = unix.EINVAL
	}
	err = fmt.Errorf("%s: %w", doing, e)
	lockdown, _ := os.ReadFile("/sys/kernel/security/lockdown") // absent: there is none
	switch {
	case strings.Contains(string(lockdown), "[confidentiality]"):
		return &MissingError{What: "kernel lockdown below confidentiality", Fix: "boot with lockdown=integrity or none", Err: err}
	case e == unix.EPERM || e == unix.EACCES:
		return missingRight(err)
	}
	return &MissingError{What: "BPF programs that read the kernel (Linux 5.17 or later, with CONFIG_BPF_SYSCALL and CONFIG_BPF_JIT)", Fix: "use a later kernel", Err: err}
}
