//go:build amd64

package harness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// InjectGetpid makes a thread execute one getpid() that its program does not contain, and puts its registers back: what
// a dump must not do, here to show that it would be noticed.
func InjectGetpid(tid int) error {
	_, err := traced("getpid", strconv.Itoa(tid))
	return err
}

func injectGetpid(tid int) (err error) {
	insn, err := syscallInstruction(tid)
	if err != nil {
		return err
	}
	h, err := hold(tid, insn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.letGo()) }()
	_, err = h.call(unix.SYS_GETPID, nil)
	return err
}

// tracing is the variable that makes a test binary trace, and say what it has learnt, instead of testing.
const tracing = "CR_TEST_TRACE"

// traced has another process trace: any wait by any thread of a tracer takes the stops of its tracees, and this process waits for the
// same processes as their parent.
func traced(words ...string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = []string{tracing + "=" + strings.Join(words, " ")}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return out, err
}

// traceInstead does what traced asks for, and ends the process.
func traceInstead() {
	words := strings.Fields(os.Getenv(tracing))
	if len(words) == 0 {
		return
	}
	runtime.LockOSThread()
	var err error
	for _, w := range words[1:] {
		id, e := strconv.Atoi(w)
		if e == nil && words[0] == "getpid" {
			e = injectGetpid(id)
		} else if e == nil {
			e = askProcess(id)
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// syscallInstruction finds a syscall instruction (0f 05) in the thread's vdso.
func syscallInstruction(tid int) (uint64, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", tid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(maps), "\n") {
		var start, end uint64
		if !strings.HasSuffix(line, "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			return 0, err
		}
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
		if err != nil {
			return 0, err
		}
		defer func() { _ = mem.Close() }()
		code := make([]byte, end-start)
		if _, err := mem.ReadAt(code, int64(start)); err != nil {
			return 0, err
		}
		if i := bytes.Index(code, []byte{0x0f, 0x05}); i >= 0 {
			return start + uint64(i), nil
		}
	}
	return 0, fmt.Errorf("no syscall instruction in the vdso of %d", tid)
}
