package tracee

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
)

// helperEnv makes the test binary a helper program: its value is the name of one of helpers.
const helperEnv = "CRPIPE_TRACEE_HELPER"

var helpers = map[string]func(){
	"threads": helperThreads,
	"calls":   helperCalls,
	"handler": helperHandler,
	"vfork":   helperVfork,
	"idle":    helperIdle,
	"maker":   helperMaker,
	"makers":  helperMakers,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		helpers[name]()
		return
	}
	os.Exit(m.Run())
}

// helper starts the test binary as a helper and waits for its first line, which it returns with the
// rest of the output.
func helper(t *testing.T, name string) (*exec.Cmd, string, *bufio.Reader) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	line, out := start(t, cmd)
	return cmd, line, out
}

// compiled builds a C program, starts it and waits for its first line.
func compiled(t *testing.T, source string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := compiledCommand(t, source)
	_, out := start(t, cmd)
	return cmd, out
}

// compiledCommand builds a C program.
func compiledCommand(t *testing.T, source string) *exec.Cmd {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc: ", err)
	}
	bin := t.TempDir() + "/prog"
	cc := exec.Command(gcc, "-O1", "-pthread", "-x", "c", "-o", bin, "-")
	cc.Stdin = strings.NewReader(source)
	if msg, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, msg)
	}
	return exec.Command(bin)
}

// start starts a program in its own session and reads its first line.
func start(t *testing.T, cmd *exec.Cmd) (string, *bufio.Reader) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	// Not a pipe of os/exec's: its goroutine would be in the way of reading line by line.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close() // the child has its own
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // may be dead already
		_ = cmd.Wait()
		_ = r.Close()
	})
	out := bufio.NewReader(r)
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second)) // pipes take deadlines
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return line[:len(line)-1], out
}

func native(t testing.TB) *arch.Arch {
	t.Helper()
	a, err := arch.Native()
	if err != nil {
		t.Skip(err)
	}
	return a
}

// testBase is a place for the arena that nothing uses by itself.
const testBase = arch.Addr(0x100000000)

// rig is a tracer with a stub.
type rig struct {
	*Tracer
	arch  *arch.Arch
	arena *Arena
	stub  *Task
}

func newRig(t testing.TB, slots int) *rig {
	t.Helper()
	a := native(t)
	ar, err := NewArena(a, slots, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr := NewTracer()
	t.Cleanup(func() {
		if err := tr.KillAll(); err != nil {
			t.Error(err)
		}
		tr.Close()
		if err := ar.Close(); err != nil {
			t.Error(err)
		}
	})
	stub, err := tr.Spawn(ar, testBase)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{tr, a, ar, stub}
}

func (r *rig) run(t testing.TB, k *Task, b *Batch) {
	t.Helper()
	if err := r.RunOne(k, b); err != nil {
		t.Fatal(err)
	}
}

// alive says whether a task exists and is no zombie.
func alive(tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		return false
	}
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == ')' {
			return b[i+2] != 'Z' && b[i+2] != 'X'
		}
	}
	return false
}

// The helpers. Each prints a line when it is ready.

// helperThreads has many threads: some spin, some sleep, and one counts what all do until a line on
// stdin... The counters prove that it goes on.
func helperThreads() {
	const spinners, sleepers = 2, 30
	var n atomic.Int64
	var wg sync.WaitGroup
	runtime.GOMAXPROCS(spinners + 1)
	for range spinners {
		go func() {
			for {
				n.Add(1)
				runtime.Gosched()
			}
		}()
	}
	wg.Add(sleepers)
	for range sleepers {
		go func() {
			runtime.LockOSThread()
			wg.Done()
			for {
				ts := unix.NsecToTimespec(int64(5 * time.Millisecond))
				if err := unix.Nanosleep(&ts, nil); err != nil && err != unix.EINTR { //nolint:errorlint // bare Errno
					panic(err)
				}
				n.Add(1)
			}
		}()
	}
	wg.Wait()
	fmt.Println("ready")
	for {
		time.Sleep(10 * time.Millisecond)
		fmt.Println(n.Load())
	}
}

// helperIdle only exists.
func helperIdle() {
	fmt.Println("ready")
	time.Sleep(time.Hour)
}

// helperMaker makes tasks in every half-made state and then waits to be killed. It prints their ids.
func helperMaker() {
	a, err := arch.Native()
	check(err)
	ar, err := NewArena(a, 64, 0)
	check(err)
	tr := NewTracer()
	stub, err := tr.Spawn(ar, testBase)
	check(err)
	made, err := makeTree(tr, ar, stub)
	check(err)
	// One of them runs, in a call that does not end.
	go func() {
		b := ar.NewBatch()
		b.Call(a.Sys.Pause)
		_ = tr.RunOne(made[len(made)-1], b) // never returns
	}()
	line := strconv.Itoa(stub.Tid)
	for _, k := range made {
		line += " " + strconv.Itoa(k.Tid)
	}
	time.Sleep(50 * time.Millisecond)
	fmt.Println(line)
	time.Sleep(time.Hour)
}

// helperMakers makes such trees and kills them again, for ever.
func helperMakers() {
	a, err := arch.Native()
	check(err)
	ar, err := NewArena(a, 64, 0)
	check(err)
	tr := NewTracer()
	fmt.Println("ready")
	for {
		stub, err := tr.Spawn(ar, testBase)
		check(err)
		_, err = makeTree(tr, ar, stub)
		check(err)
		check(tr.KillAll())
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
