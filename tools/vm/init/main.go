// Init is the first process of the machine that tools/vm boots. From the initramfs it loads the modules that disks need and
// enters the root disk; there it sets up what a system has, runs the jobs of the second disk one after the other, and switches
// the machine off. What jobs print goes to the second serial port, between lines that begin with the byte 1:
//
//	\x01begin N    job N starts
//	\x01end N S    it has ended with wait status S
//	\x01off        all have
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Job is a program to run; tools/vm writes the list of them, jobs.json.
type Job struct {
	Argv    []string
	Dir     string
	Env     []string
	Seconds int // after which it is killed
}

// Plan is jobs.json.
type Plan struct {
	Repository string // where the tests expect it: they have its path compiled in
	First      Job    // before the others, for what it leaves behind: what it prints goes to the console
	Jobs       []Job
}

const jobsDir = "/vm"

func main() {
	if err := run(); err != nil {
		fmt.Println("init:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // an init that ends is a panic
}

func run() error {
	if err := mountAll("", early); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := enterRoot(); err != nil {
		return err
	}
	if err := mountAll("", late); err != nil {
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(jobsDir, "jobs.json"))
	if err != nil {
		return err
	}
	var plan Plan
	if err := json.Unmarshal(data, &plan); err != nil {
		return err
	}
	if err := os.MkdirAll(plan.Repository, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(filepath.Join(jobsDir, "repository"), plan.Repository, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting the repository: %w", err)
	}
	out, err := openPort("/dev/ttyS1")
	if err != nil {
		return err
	}
	if status, err := runJob(plan.First, os.Stdout); err != nil || status != 0 {
		fmt.Printf("init: the first job: status 0x%x, %v\n", status, err)
	}
	for n, job := range plan.Jobs {
		fmt.Fprintf(out, "\x01begin %d\n", n)
		status, err := runJob(job, out)
		if err != nil {
			fmt.Println("init:", err)
			status = -1
		}
		fmt.Fprintf(out, "\x01end %d %d\n", n, status)
	}
	fmt.Fprintf(out, "\x01off\n")
	return out.Close() // which waits until all has been sent
}

type mount struct {
	kind, dir, options string
	flags              uintptr
}

var early = []mount{
	{"proc", "/proc", "", 0},
	{"sysfs", "/sys", "", 0},
	{"devtmpfs", "/dev", "", 0},
}

var late = []mount{
	{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"devtmpfs", "/dev", "", unix.MS_NOSUID},
	{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	{"mqueue", "/dev/mqueue", "", 0},
	{"hugetlbfs", "/dev/hugepages", "", 0},
	{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
	{"tracefs", "/sys/kernel/tracing", "", 0},
	// Both generations, as a hybrid system has them: tests use every freezer.
	{"tmpfs", "/sys/fs/cgroup", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"cgroup2", "/sys/fs/cgroup/unified", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"cgroup", "/sys/fs/cgroup/freezer", "freezer", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
}

func mountAll(root string, mounts []mount) error {
	for _, m := range mounts {
		dir := root + m.dir
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, dir, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.kind, dir, err)
		}
	}
	return nil
}

// loadModules loads those of a directory in the order of their names, which begin with a number.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading %s: %w", e.Name(), err)
		}
	}
	return nil
}

func enterRoot() error {
	var err error
	for range 200 {
		if err = unix.Mount("/dev/vda", "/root", "ext4", 0, ""); !errors.Is(err, unix.ENOENT) {
			break
		}
		time.Sleep(50 * time.Millisecond) // its driver is still looking
	}
	if err != nil {
		return fmt.Errorf("mounting the root disk: %w", err)
	}
	if err := os.MkdirAll("/root"+jobsDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev/vdb", "/root"+jobsDir, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mounting the disk of jobs: %w", err)
	}
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		if err := unix.Unmount(dir, 0); err != nil {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root disk to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// settle does what else a system does when it starts.
func settle() error {
	if err := unix.Sethostname([]byte("crpipe-vm")); err != nil {
		return err
	}
	for link, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(to, "/dev/"+link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := os.Chmod("/tmp", 0o1777); err != nil {
		return err
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}

// openPort opens a serial port that carries bytes as they are.
func openPort(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Oflag &^= unix.OPOST
	t.Cflag = t.Cflag&^unix.CBAUD | unix.B115200
	return f, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// runJob runs a job in a session of its own and returns its wait status. As the first process we are the parent of all orphans.
func runJob(job Job, out io.Writer) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	path := job.Argv[0]
	if !strings.Contains(path, "/") {
		if path, err = exec.LookPath(path); err != nil {
			return 0, err
		}
	}
	pid, err := syscall.ForkExec(path, job.Argv, &syscall.ProcAttr{
		Dir: job.Dir, Env: job.Env, Files: []uintptr{null.Fd(), w.Fd(), w.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = w.Close()
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", path, err)
	}
	go func() {
		_, _ = io.Copy(out, r) // a port that is gone is the host's to notice
	}()
	timer := time.AfterFunc(time.Duration(job.Seconds)*time.Second, func() {
		fmt.Printf("init: %s is killed after %d s\n", path, job.Seconds)
		_ = unix.Kill(pid, unix.SIGQUIT) // a Go program says where it is
		time.Sleep(5 * time.Second)
		_ = unix.Kill(pid, unix.SIGKILL)
	})
	defer timer.Stop()
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("waiting: %w", err)
		}
		if got == pid {
			time.Sleep(100 * time.Millisecond) // for what it wrote last
			return int(status), nil
		}
	}
}
