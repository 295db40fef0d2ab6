//go:build amd64

package kernelview

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenCached opens twice and compares what was learned with what was kept.
func TestOpenCached(t *testing.T) {
	view(t)
	dir := filepath.Join(t.TempDir(), "cache")
	var layouts []*layout
	for range 2 {
		v, err := openBPF(Options{CacheDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		layouts = append(layouts, v.l)
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != 1 {
			t.Fatalf("cache directory: %v %v", names, err)
		}
	}
	if !reflect.DeepEqual(layouts[0], layouts[1]) {
		t.Error("the cache holds another layout than was learned")
	}
	// A damaged one is replaced, not believed.
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, names[0].Name())
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := openBPF(Options{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if b, err := os.ReadFile(path); err != nil || len(b) != cacheSize() {
		t.Errorf("the damaged cache was not replaced: %d bytes, %v", len(b), err)
	}
}

// TestCalibrated says which facts this kernel did not give away.
func TestCalibrated(t *testing.T) {
	v := view(t)
	// Codes of what a helper does not map, or another kernel has.
	rare := []string{"ht", "sf", "ar", "sd", "mm", "bt", "mt", "um", "uw", "ui", "ss", "sl", "dp", "gu", "lf", "mg", "hg", "nh"}
	for x, name := range factNames {
		code, isCode := strings.CutPrefix(name, "vm ")
		may := strings.HasPrefix(name, "ssb") || strings.HasPrefix(name, "ib") || isCode && slices.Contains(rare, code)
		if !v.l.facts[x].known && !may {
			t.Errorf("%s was not found", name)
		}
	}
}

// TestOpenUnprivileged asks as an ordinary user.
func TestOpenUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to stop being root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
			done <- e
			return
		}
		v, err := openBPF(Options{NoCache: true})
		if v != nil {
			_ = v.Close()
		}
		done <- err
	}()
	var missing *MissingError
	if err := <-done; !errors.As(err, &missing) || !errors.Is(err, unix.EPERM) || missing.Hint() == "" || looksLikeAddress(err.Error()) {
		t.Errorf("opening the BPF source says %v", err)
	}
}

// looksLikeAddress finds what looks like a kernel address in a text.
func looksLikeAddress(s string) bool {
	return strings.Contains(s, "ffff")
}

// TestIDsAreSmall checks that no identity is an address.
func TestIDsAreSmall(t *testing.T) {
	v := view(t)
	threads, err := v.Threads([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	k := threads[0]
	for _, id := range []Maybe[ID]{k.MM, k.Files, k.FS, k.Sighand, k.Signal, k.IOContext, k.SysVSem, k.Cred} {
		if !id.Known || id.V > 1<<20 {
			t.Errorf("identity %v", id)
		}
	}
}

// TestInNamespaces runs the tests of threads, timers and restart blocks again
// inside a pid namespace, where threads have other numbers, and inside a time
// namespace, where clocks show other times.
func TestInNamespaces(t *testing.T) {
	view(t)
	const inside = "KERNELVIEW_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		t.Skip("is inside already")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("needs unshare(1) of util-linux")
	}
	for _, x := range []struct {
		name string
		args []string
		run  string
	}{
		{"pid", []string{"--fork", "--pid", "--mount-proc"}, "Thread|Sharing|Restart|Timer|Files|Zombie|Missing|EveryTask|Calibrated"},
		{"pid in pid", []string{"--fork", "--pid", "--mount-proc", unshare, "--fork", "--pid", "--mount-proc"}, "Thread|Timer|Files|Missing|EveryTask"},
		{"time", []string{"--fork", "--time", "--monotonic", "123456", "--boottime", "9876543"}, "Restart|Timer|Itimer"},
	} {
		t.Run(x.name, func(t *testing.T) {
			args := append(x.args, self, "-test.run="+x.run, "-test.v")
			cmd := exec.Command(unshare, args...)
			cmd.Env = append(os.Environ(), inside+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
			out, err := cmd.CombinedOutput()
			if err != nil && strings.Contains(string(out), "unshare failed") {
				t.Skipf("needs the right to make namespaces: %s", out)
			}
			passed := strings.Count(string(out), "\n--- PASS")
			if err != nil || passed < 5 {
				t.Errorf("%v, %d tests passed:\n%s", err, passed, out)
			}
		})
	}
}

func TestForward(t *testing.T) {
	for _, x := range []struct{ left, interval, want int64 }{
		{5, 3, 5}, {5, 0, 5}, {-5, 0, -5}, {0, 3, 3}, {-1, 3, 2}, {-3, 3, 3}, {-7, 3, 2}, {-9, 3, 3},
	} {
		if got := forward(x.left, x.interval); got != x.want {
			t.Errorf("forward(%d, %d) = %d, want %d", x.left, x.interval, got, x.want)
		}
	}
}
