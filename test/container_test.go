package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/test/harness"
)

// contain starts a process in a pid namespace of its own, with these files from descriptor 3 on.
func contain(t *testing.T, files ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.ExtraFiles = files
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// A container that shares something with the outside is refused, and told with whom. Each case is dry: nothing is written.
func TestContainerLeaks(t *testing.T) {
	harness.NeedRoot(t)
	dump := filepath.Join(harness.Binaries(t), "cr-dump")
	pipe := func(t *testing.T) (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
		return r, w
	}
	memfd := func(t *testing.T) *os.File {
		fd, err := unix.MemfdCreate("shared", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "shared")
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	me := fmt.Sprintf("by pid %d (", os.Getpid())
	for _, c := range []struct {
		name  string
		start func(t *testing.T) *exec.Cmd
		want  []string // what is said; empty: it is no leak
	}{
		{"nothing", func(t *testing.T) *exec.Cmd { return contain(t) }, nil},
		{"both ends of a pipe", func(t *testing.T) *exec.Cmd {
			r, w := pipe(t)
			cmd := contain(t, r, w)
			_, _ = r.Close(), w.Close()
			return cmd
		}, nil},
		{"one end of a pipe", func(t *testing.T) *exec.Cmd {
			r, w := pipe(t)
			cmd := contain(t, r)
			_ = r.Close()
			t.Cleanup(func() { _ = w.Close() })
			return cmd
		}, []string{"fd 3 -> pipe:[", "is also held outside of the container, " + me, "--external 'pipe:["}},
		{"an inherited file", func(t *testing.T) *exec.Cmd {
			f, err := os.Open("/etc/hostname")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			return contain(t, f)
		}, []string{"fd 3 -> /etc/hostname: is also held outside of the container, " + me, ", fd "}},
		{"an inherited file that the outside has closed", func(t *testing.T) *exec.Cmd {
			f, err := os.Open("/etc/hostname")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			return contain(t, f)
		}, nil},
		{"memory that the outside has opened anew", func(t *testing.T) *exec.Cmd {
			f := memfd(t)
			cmd := contain(t, f)
			again, err := os.Open(fmt.Sprintf("/proc/%d/fd/3", cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = again.Close() })
			_ = f.Close()
			return cmd
		}, []string{"memfd:shared", me}},
		{"memory that the outside maps", func(t *testing.T) *exec.Cmd {
			f := memfd(t)
			if err := f.Truncate(4096); err != nil {
				t.Fatal(err)
			}
			mem, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Munmap(mem) })
			cmd := contain(t, f)
			_ = f.Close()
			return cmd
		}, []string{"memfd:shared", me, "which maps it"}},
		{"a descriptor in flight", func(t *testing.T) *exec.Cmd {
			r, w := pipe(t)
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) })
			if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(int(r.Fd())), nil, 0); err != nil {
				t.Fatal(err)
			}
			cmd := contain(t, r, w)
			_, _ = r.Close(), w.Close()
			return cmd
		}, []string{"fd 3 -> pipe:[", "by something that /proc does not show"}},
		{"a stranger in its pid namespace", func(t *testing.T) *exec.Cmd {
			if _, err := exec.LookPath("nsenter"); err != nil {
				t.Skip("needs nsenter (Debian: util-linux)")
			}
			cmd := contain(t)
			other := exec.Command("nsenter", "-p", "-t", fmt.Sprint(cmd.Process.Pid), "sleep", "1000")
			other.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
			// nsenter ends with the stranger, whose parent it is: as an orphan it would be ours (we are a subreaper), and the
			// container's first process could not end before we have waited for it.
			stranger := 0
			t.Cleanup(func() {
				if stranger > 0 {
					_ = harness.Kill(stranger, syscall.SIGKILL)
				}
				_ = other.Wait()
			})
			for end := time.Now().Add(time.Minute); stranger == 0; time.Sleep(10 * time.Millisecond) {
				for _, pid := range harness.Tree(other.Process.Pid) {
					if pid != other.Process.Pid && harness.Comm(pid) == "sleep" {
						stranger = pid
					}
				}
				if time.Now().After(end) {
					_ = other.Process.Kill()
					t.Fatal("nsenter starts nothing")
				}
			}
			return cmd
		}, []string{"(sleep): is in the container's pid namespace but does not descend from its first process"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := c.start(t)
			run := func(args ...string) (int, string) {
				var errs bytes.Buffer
				d := exec.Command(dump, append(args, fmt.Sprint(cmd.Process.Pid))...)
				d.Stderr = &errs
				err := d.Run()
				if d.ProcessState == nil {
					t.Fatal(err)
				}
				return d.ProcessState.ExitCode(), errs.String()
			}
			status, said := run("--container", "-n")
			if want := map[bool]int{true: 0, false: 3}[len(c.want) == 0]; status != want {
				t.Errorf("status %d instead of %d; it says\n%s", status, want, said)
			}
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("no %q in\n%s", want, said)
				}
			}
			if c.name == "an inherited file" {
				if status, said := run("--container", "-n", "--external", "/etc/hostname"); status != 0 {
					t.Errorf("declared external: status %d\n%s", status, said)
				}
			}
		})
	}
}
