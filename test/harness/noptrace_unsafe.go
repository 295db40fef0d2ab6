package harness

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noPtraceMark is the environment variable that makes this program run its arguments with ptrace forbidden.
const noPtraceMark = "CR_TEST_NO_PTRACE"

// NoPtrace is a command that runs its arguments, a command of ours, so that it and all that it starts get EPERM from every ptrace(2).
func NoPtrace(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return "env " + noPtraceMark + "=1 " + self
}

// withoutPtrace is the whole life of such a process. The filter (seccomp(2)) says EPERM to the one call and lets all others pass.
func withoutPtrace(args []string) error {
	runtime.LockOSThread() // a filter is a thread's own; execve makes that thread the process
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	statement := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	program := []unix.SockFilter{
		statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0), // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PTRACE, Jf: 1},
		statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)),
		statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW),
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return err
	}
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, noPtraceMark+"=") {
			env = append(env, e)
		}
	}
	return unix.Exec(path, args, env)
}

// noPtraceMain is called first in Main; it does not return when this is such a process.
func noPtraceMain() {
	if os.Getenv(noPtraceMark) == "" || len(os.Args) < 2 {
		return
	}
	fmt.Fprintln(os.Stderr, "harness: running without ptrace:", withoutPtrace(os.Args[1:]))
	os.Exit(126)
}
