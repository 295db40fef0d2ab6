package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/test/harness"
)

// need32 skips a test where 32-bit programs do not run: a kernel for amd64 may have been built or booted without.
func need32(t *testing.T) {
	t.Helper()
	harness.NeedRoot(t)
	a, err := arch.Native()
	if err != nil || a.Compat == nil {
		t.Skip("this machine has no 32-bit programs")
	}
	stub := filepath.Join(t.TempDir(), "stub")
	if err := os.WriteFile(stub, a.Compat.Stub().Image, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(stub)
	if err := cmd.Start(); errors.Is(err, unix.ENOEXEC) {
		t.Skip("this kernel does not execute 32-bit programs (CONFIG_IA32_EMULATION, ia32_emulation=on)")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
}

// not32 are fixtures that cannot be 32-bit programs, and why.
var not32 = map[string]string{
	"uring":       "io_uring instances of 32-bit programs are refused",
	"uringwaits":  "the same",
	"registers":   "names 64-bit registers",
	"rseq":        "has its critical section in 64-bit assembly",
	"seccomp":     "knows the 64-bit system calls",
	"taskstate":   "its thread with system call user dispatch is 64-bit assembly",
	"swapped":     "needs swap",
	"aio":         "its contexts are refused of 32-bit programs",
	"attributes":  "has limits that take 64 bits",
	"deleted":     "has a file of 8 GiB",
	"memory":      "reserves more than 32 bits reach",
	"numa":        "has masks of nodes in 64-bit words",
	"sysvshm":     "has a segment of 4 GiB",
	"vfork":       "is refused of 32-bit programs, which are attached to: a parent in vfork cannot be stopped",
	"vforkthread": "as vfork",
}

// flavours32 are those in which it matters how wide a program's words are: what is between dump and restore does not know.
var flavours32 = []string{"go-on", "kill-restore"}

// TestCompat puts a program with all that only those of 32 bits have through every flavour, and every other fixture as a 32-bit program through
// some.
func TestCompat(t *testing.T) {
	need32(t)
	for _, name := range append([]string{"compat"}, fixtures(t)...) {
		if not32[name] == "" {
			t.Run(name, func(t *testing.T) { allFlavours(t, name, true) })
		}
	}
}

// TestCompatReal does the same to a 32-bit Go program at work.
func TestCompatReal(t *testing.T) {
	need32(t)
	j := harness.Start(t, harness.GoProg32(t, "gophers"), harness.Options{})
	for range 3 {
		time.Sleep(500 * time.Millisecond)
		if !j.DumpKill("cr-dump --kill $PID > image.cr") {
			break
		}
		j.RestoreSh("cr-restore < image.cr > restored.ticket")
	}
	j.Verdict(120 * time.Second)
}

// TestCompatVfork: a 32-bit tree is attached to, which a parent in vfork does not allow. It is refused, and nobody has been attached to.
func TestCompatVfork(t *testing.T) {
	need32(t)
	for _, name := range []string{"vfork", "vforkthread"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, name, harness.Options{Compat: true})
			before := j.Footprint()
			if r := j.Sh("cr-dump $PID > image"); r.Status != 3 || !strings.Contains(r.Stderr, "waits in vfork for its child") {
				t.Errorf("status %d: %s", r.Status, r.Stderr)
			}
			j.CheckUnharmed(before)
			j.CheckCgroups()
			j.Finish()
		})
	}
}
