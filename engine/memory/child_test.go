package memory

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// childVariable holds what TestMain does instead of tests when this program is started as a child: a directory in which
// zoo may make files; "strange DIR": mappings that are refused; "fill N", "zero N": N MiB of memory; "fork N": the same, and a
// child that has all of it too; "userfault": memory registered with userfaultfd;
// "numa": memory with a NUMA policy.
const childVariable = "CRPIPE_MEMORY_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childVariable); how != "" {
		if err := child(how); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(how string) error {
	var n int
	var err error
	if _, e := fmt.Sscanf(how, "fill %d", &n); e == nil {
		err = fillChild(n, 1)
	} else if _, e := fmt.Sscanf(how, "zero %d", &n); e == nil {
		err = fillChild(n, 0)
	} else if _, e := fmt.Sscanf(how, "fork %d", &n); e == nil {
		if err = fillChild(n, 1); err == nil {
			err = forkChild()
		}
	} else if how == "numa" {
		err = bind()
	} else if how == "hugetlb" {
		err = hugetlb()
	} else if how == "userfault" {
		err = userfault()
	} else if dir, ok := strings.CutPrefix(how, "strange "); ok {
		err = strange(dir)
	} else {
		err = zoo(how)
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent closes the pipe
	return nil
}

// mm is mmap(2) of pages at an address of the kernel's choice, with a page that nothing is mapped in on each side.
func mm(pages, prot, flags, fd, offset int) (uintptr, error) {
	const page = 4096
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr((pages+2)*page), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, ^uintptr(0), 0)
	if errno != 0 {
		return 0, errno
	}
	if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, at, uintptr((pages+2)*page), 0); errno != 0 {
		return 0, errno
	}
	at, _, errno = unix.Syscall6(unix.SYS_MMAP, at+page, uintptr(pages*page), uintptr(prot), uintptr(flags|unix.MAP_FIXED_NOREPLACE), uintptr(fd), uintptr(offset))
	if errno != 0 {
		return 0, fmt.Errorf("mmap: %w", errno)
	}
	return at, nil
}

// poke writes to the process's own memory at an address, through /proc/self/mem, which needs no pointers.
func poke(at uintptr, b []byte) error {
	f, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, int64(at))
	return err
}

// peek is the inverse of poke.
func peek(at uintptr, b []byte) error {
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(b, int64(at))
	return err
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7+i>>9) ^ seed | 1
	}
	return b
}

func fillChild(mib int, content byte) error {
	at, err := mm(mib<<8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
	if err != nil {
		return err
	}
	b := pattern(1<<20, 3)
	if content == 0 {
		clear(b)
	}
	for i := range mib {
		if err := poke(at+uintptr(i)<<20, b); err != nil {
			return err
		}
	}
	return nil
}

// bind gives a mapping the policy to have its pages on node 0.
func bind() error {
	at, err := mm(4, rw, private, -1, 0)
	if err != nil {
		return err
	}
	mask := zeroed(8)
	const mpolBind = 2
	if err := poke(mask, []byte{1}); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall6(unix.SYS_MBIND, at+page, 2*page, mpolBind, mask, 64, 0); errno != 0 {
		return errno
	}
	return nil
}

// forkChild makes a child that does nothing but hold on to the memory that it has from its parent, and prints its pid.
func forkChild() error {
	runtime.LockOSThread() // it dies with the thread that made it
	parent := os.Getpid()
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("forking: %w", errno)
	}
	if pid == 0 {
		syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0)
		for {
			if now, _, _ := syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); int(now) != parent {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	fmt.Println(pid)
	return nil
}

const (
	page = 4096
	// memfdSecret is the number of memfd_secret(2), which x/sys lacks on some architectures.
	memfdSecret = 447
	private     = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	rw          = unix.PROT_READ | unix.PROT_WRITE
)

// zoo makes one mapping of every sort that is kept.
func zoo(dir string) error {
	do := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	call := func(nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			panic(fmt.Sprintf("call %d %x: %v", nr, args, errno))
		}
	}
	get := func(pages, prot, flags, fd, offset int) uintptr {
		at, err := mm(pages, prot, flags, fd, offset)
		do(err)
		return at
	}
	// Pages with holes, and a page of zeros that is there.
	at := get(16, rw, private, -1, 0)
	for _, p := range []uintptr{0, 2, 3, 9, 15} {
		do(poke(at+p*page, pattern(page, byte(p))))
	}
	do(poke(at+5*page, make([]byte, page)))
	// A terabyte that nobody may touch.
	get(1<<28, unix.PROT_NONE, private|unix.MAP_NORESERVE, -1, 0)
	// Written, then read-only, executable, forbidden.
	for i, prot := range []uintptr{unix.PROT_READ, unix.PROT_READ | unix.PROT_EXEC, unix.PROT_NONE} {
		at = get(4, rw, private, -1, 0)
		do(poke(at+page, pattern(2*page, byte(20+i))))
		call(unix.SYS_MPROTECT, at, 4*page, prot)
	}
	// Read-only from the start, written all the same (as a debugger does).
	at = get(2, unix.PROT_READ, private, -1, 0)
	do(poke(at, pattern(page, 24)))
	// Shared memory, mapped twice, the second time a part.
	at = get(256, rw, unix.MAP_SHARED|unix.MAP_ANONYMOUS, -1, 0)
	do(poke(at+7*page, pattern(100*page, 25)))
	call(unix.SYS_MPROTECT, at+128*page, 128*page, unix.PROT_READ)
	// A file: privately with a written page and one written with zeros, shared for writing, for reading, read-only.
	name := filepath.Join(dir, "file")
	do(os.WriteFile(name, pattern(64*page+100, 26), 0o644))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	do(err)
	at = get(65, rw, unix.MAP_PRIVATE, int(f.Fd()), 0)
	do(poke(at+3*page, pattern(page, 27)))
	do(poke(at+5*page, make([]byte, page)))
	get(8, rw, unix.MAP_SHARED, int(f.Fd()), 8*page)
	get(8, unix.PROT_READ, unix.MAP_SHARED, int(f.Fd()), 16*page)
	ro, err := os.Open(name)
	do(err)
	get(8, unix.PROT_READ, unix.MAP_SHARED, int(ro.Fd()), 16*page)
	// A deleted file.
	gone := filepath.Join(dir, "gone")
	do(os.WriteFile(gone, pattern(9*page+10, 28), 0o640))
	d, err := os.OpenFile(gone, os.O_RDONLY, 0)
	do(err)
	at = get(10, rw, unix.MAP_PRIVATE, int(d.Fd()), 0)
	do(poke(at+4*page, pattern(page, 29)))
	do(os.Remove(gone))
	d.Close()
	// /dev/zero, privately.
	z, err := os.Open("/dev/zero")
	do(err)
	at = get(4, rw, unix.MAP_PRIVATE, int(z.Fd()), 0)
	do(poke(at+page, pattern(page, 30)))
	// Growing down; the flags of madvise and mlock.
	at = get(8, rw, private|unix.MAP_GROWSDOWN, -1, 0)
	do(poke(at+7*page, pattern(page, 31)))
	for i, advice := range []uintptr{unix.MADV_DONTFORK, unix.MADV_DONTDUMP, unix.MADV_WIPEONFORK, unix.MADV_NOHUGEPAGE, unix.MADV_SEQUENTIAL, unix.MADV_RANDOM, unix.MADV_MERGEABLE, unix.MADV_HUGEPAGE} {
		at = get(4, rw, private, -1, 0)
		call(unix.SYS_MADVISE, at, 4*page, advice)
		do(poke(at, pattern(page, byte(40+i))))
	}
	at = get(2048, rw, private, -1, 0)
	call(unix.SYS_MADVISE, at, 2048*page, unix.MADV_HUGEPAGE)
	do(poke(at, pattern(2048*page, 50)))
	// Read only: the huge page of zeros, which counts as nobody's.
	at = get(2048, rw, private, -1, 0)
	call(unix.SYS_MADVISE, at, 2048*page, unix.MADV_HUGEPAGE)
	do(peek(at, make([]byte, 2048*page)))
	at = get(4, rw, private, -1, 0)
	call(unix.SYS_MLOCK, at, 4*page)
	at = get(64, rw, private, -1, 0)
	call(unix.SYS_MLOCK2, at, 64*page, mlockOnFault)
	do(poke(at+page, pattern(page, 51)))
	at = get(4, unix.PROT_NONE, private, -1, 0)
	call(unix.SYS_MLOCK2, at, 4*page, mlockOnFault)
	at = get(16, rw, private, -1, 0)
	do(poke(at, pattern(16*page, 52)))
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, at+4*page, 4*page, madvGuardInstall); errno != 0 && errno != unix.EINVAL {
		return errno
	}
	at, err = mm(4, rw, mapDroppable|unix.MAP_ANONYMOUS, -1, 0)
	if err == nil {
		do(poke(at, pattern(page, 53)))
	}
	for _, cmd := range []uintptr{1 << 2, 1 << 4} {
		call(unix.SYS_MEMBARRIER, cmd, 0, 0)
	}
	return nil
}

// strange makes mappings that are refused, and prints a word for each that this kernel and user may make.
func strange(dir string) error {
	fd := func(nr uintptr, args ...uintptr) (int, bool) {
		var a [6]uintptr
		copy(a[:], args)
		r, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		return int(r), errno == 0
	}
	var made []string
	try := func(name string, pages, prot, flags, fd int) uintptr {
		at, err := mm(pages, prot, flags, fd, 0)
		if err == nil {
			made = append(made, name)
		}
		return at
	}
	if secret, ok := fd(memfdSecret); ok && unix.Ftruncate(secret, page) == nil {
		try("secret", 1, rw, unix.MAP_SHARED, secret)
	}
	if id, ok := fd(unix.SYS_SHMGET, unix.IPC_PRIVATE, page, 0o600); ok {
		if at, ok := fd(unix.SYS_SHMAT, uintptr(id)); ok {
			if f, err := os.OpenFile(fmt.Sprintf("/proc/self/map_files/%x-%x", at, at+page), os.O_RDWR, 0); err == nil {
				try("a private mapping of System V", 1, rw, unix.MAP_PRIVATE, int(f.Fd()))
			}
		}
		fd(unix.SYS_SHMCTL, uintptr(id), unix.IPC_RMID)
	}
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY}
	if perf, err := unix.PerfEventOpen(&attr, 0, -1, -1, 0); err == nil {
		try("perf_event", 2, rw, unix.MAP_SHARED, perf)
	}
	if r, ok := fd(unix.SYS_IO_URING_SETUP, 4, uintptr(zeroed(120))); ok {
		try("io_uring", 1, rw, unix.MAP_SHARED, r)
	}
	if _, ok := fd(unix.SYS_IO_SETUP, 4, uintptr(zeroed(8))); ok {
		made = append(made, "io_setup")
	}
	twice := filepath.Join(dir, "twice")
	if f, err := os.Create(twice); err == nil && f.Truncate(page) == nil && os.Link(twice, twice+"2") == nil {
		try("not found by its name", 1, unix.PROT_READ, unix.MAP_PRIVATE, int(f.Fd()))
		_ = os.Remove(twice)
	}
	fmt.Println(strings.Join(made, ","))
	return nil
}

// userfault registers a mapping with userfaultfd(2), or prints why it cannot.
func userfault() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		fmt.Println("userfaultfd:", errno)
		return nil
	}
	at, err := mm(4, rw, private, -1, 0)
	if err != nil {
		return err
	}
	const (
		api      = 0xc018aa3f // UFFDIO_API: struct uffdio_api{api 0xaa, features, ioctls}
		register = 0xc020aa00 // UFFDIO_REGISTER: struct uffdio_register{start, len, mode 1: missing, ioctls}
	)
	for _, call := range []struct {
		nr    uintptr
		words [4]uint64
	}{{api, [4]uint64{0xaa}}, {register, [4]uint64{uint64(at), 4 * page, 1}}} {
		arg := zeroed(32)
		var b []byte
		for _, w := range call.words {
			b = binary.NativeEndian.AppendUint64(b, w)
		}
		if err := poke(arg, b); err != nil {
			return err
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, call.nr, arg); errno != 0 {
			fmt.Println("userfaultfd:", errno)
			return nil
		}
	}
	return nil
}

// zeroed returns the address of n bytes of zeros that stay where they are.
func zeroed(n int) uintptr {
	at, err := mm(1, rw, private, -1, 0)
	if err != nil || n > page {
		panic(err)
	}
	return at
}

// start starts this program as a child and stops it when it is ready.
func start(t testing.TB, how string) int {
	t.Helper()
	pid, _ := startSaying(t, how)
	return pid
}

// startSaying returns what the child printed too.
func startSaying(t testing.TB, how string) (pid int, said []string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+how, "GODEBUG=asyncpreemptoff=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	// On a thread of its own: a tracer that later got the thread that has forked the child would wait for it.
	started, over := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-over
	}()
	if err := <-started; err != nil {
		close(over)
		t.Fatal(err)
	}
	pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = in.Close()
		_ = cmd.Wait()
		close(over)
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		said = append(said, lines.Text())
	}
	if lines.Text() != "ready" {
		t.Fatalf("child: %q, %v", said, lines.Err())
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		st, err := procfs.ReadStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		if st.State == 'T' {
			return pid, said
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the child does not stop")
	return 0, nil
}

// process is what the engine knows of a stopped process, from /proc instead of the kernel's memory.
func process(t testing.TB, pid int) *object.Process {
	t.Helper()
	st, err := procfs.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(procfs.Path(pid, "auxv"))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := procfs.ParseAuxv(raw, native(t).Order, native(t).WordSize)
	if err != nil {
		t.Fatal(err)
	}
	var auxv []uint64
	for _, e := range append(entries, procfs.AuxEntry{}) {
		auxv = append(auxv, e.Type, e.Value)
	}
	brk := st.StartBrk
	maps, err := procfs.ReadMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range maps {
		if v.Path == "[heap]" {
			brk = uint64(v.End)
		}
	}
	p := &object.Process{PID: pid, ID: pid, Stat: st}
	p.Threads = []*object.Thread{{Process: p, TID: pid, ID: pid}}
	p.View = &kernelview.Process{Tid: pid, MM: kernelview.Is(kernelview.AddressSpace{
		ID: kernelview.ID(pid), Dumpable: kernelview.Is[uint8](1), CoreFilter: kernelview.Is[uint32](0x33),
		THPDisable: kernelview.Is(false), THPAdvised: kernelview.Is(false), FutexSlots: kernelview.Is[int32](-1), KSMMerge: kernelview.Is(false), MDWE: kernelview.Is(false), MDWENoInherit: kernelview.Is(false),
		LockFuture: kernelview.Is(false), LockOnFault: kernelview.Is(false), Membarrier: kernelview.Is[uint32](1<<2 | 1<<4),
		Auxv: kernelview.Is(auxv), AIOContexts: kernelview.Is(0),
		Layout: kernelview.Is(kernelview.Layout{
			StartCode: addr(st.StartCode), EndCode: addr(st.EndCode), StartData: addr(st.StartData), EndData: addr(st.EndData),
			StartBrk: addr(st.StartBrk), Brk: addr(brk), StartStack: addr(st.StartStack),
			ArgStart: addr(st.ArgStart), ArgEnd: addr(st.ArgEnd), EnvStart: addr(st.EnvStart), EnvEnd: addr(st.EnvEnd),
		}),
	})}
	return p
}
