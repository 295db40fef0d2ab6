// Vm runs tests on another kernel of Debian's, in a machine that qemu emulates. It needs root on Debian, for apt-get: it fetches
// the kernel's package and installs qemu and the few tools that make the disks.
//
// Usage:
//
//	go run ./tools/vm [flags] KERNEL [PACKAGE[=RUN]...] > events.json
//
// KERNEL is a name in the table kernels (6.1, 6.12). Of a package with =RUN only the tests that match are run, whatever -run says. The test binaries are built here, with the five commands and the fixture
// programs; the machine has the Debian programs of this one, copied. Standard output carries test2json's events (go doc
// test2json), as of go test -json: tools/skips reads them. Words and, with -v, the machine's console go to standard error.
//
// Emulation is slow, ten to thirty times: CR_TEST_SLOW, which the machine's tests get, multiplies their
// patience. -run and the packages choose a part. The machine has two processors, each a busy thread of qemu's here; -cpus gives it another number.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command line.
type options struct {
	kernel   string
	packages []string
	run      string
	skip     string
	timeout  time.Duration
	slow     int
	cpus     int
	btf      string
	env      string
	verbose  bool
}

// standard are the packages whose tests depend on the kernel.
var standard = []string{"./test", "./engine/..."}

func main() {
	var o options
	flag.StringVar(&o.run, "run", "", "run only the tests that match, as go test -run")
	flag.StringVar(&o.skip, "skip", "", "do not run the tests that match, as go test -skip")
	flag.DurationVar(&o.timeout, "timeout", 3*time.Hour, "how long a package's tests may take")
	flag.IntVar(&o.slow, "slow", 8, "CR_TEST_SLOW: how many times more patient tests are")
	flag.IntVar(&o.cpus, "cpus", 2, "how many processors the machine has: tests that need two are skipped with one")
	flag.StringVar(&o.btf, "btf", "", "boot nothing: write the kernel's type information to this `file`")
	flag.StringVar(&o.env, "env", "", "more of the tests' environment: NAME=VALUE, separated by blanks")
	flag.BoolVar(&o.verbose, "v", false, "show the machine's console")
	flag.Parse()
	if flag.NArg() < 1 || kernels[flag.Arg(0)] == "" {
		fmt.Fprintf(os.Stderr, "usage: vm [flags] %s [PACKAGE[=RUN]...]\n", strings.Join(kernelNames(), "|"))
		flag.PrintDefaults()
		os.Exit(2)
	}
	o.kernel, o.packages = flag.Arg(0), flag.Args()[1:]
	if len(o.packages) == 0 {
		o.packages = standard
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it installs Debian packages and copies files of the system")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	cache = filepath.Join(cache, "crpipe-vm")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	if err := install(ctx); err != nil {
		return err
	}
	k, err := fetchKernel(ctx, cache, kernels[o.kernel])
	if err != nil {
		return fmt.Errorf("fetching kernel %s: %w", o.kernel, err)
	}
	if o.btf != "" {
		return writeBTF(ctx, k, o.btf)
	}
	root, err := rootDisk(ctx, cache, k)
	if err != nil {
		return fmt.Errorf("making the root disk: %w", err)
	}
	work, err := os.MkdirTemp(cache, "run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // of our own
	initrd, err := initramfs(ctx, work, k)
	if err != nil {
		return fmt.Errorf("making the initramfs: %w", err)
	}
	names, disk, err := jobsDisk(ctx, work, o)
	if err != nil {
		return fmt.Errorf("making the disk of jobs: %w", err)
	}
	say("Linux %s, %d packages", k.release, len(names))
	m := machine{kernel: k.image, initrd: initrd, disks: []string{root, disk}, cpus: o.cpus, verbose: o.verbose, packages: names, dir: work, events: os.Stdout}
	return m.run(ctx)
}

// say tells whoever waits what is going on.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "vm: "+format+"\n", args...) }

// output runs a command and returns what it prints.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, exit.Stderr)
	}
	if err != nil {
		return "", err
	}
	return string(out), nil
}

// goOutput runs the go command with more of an environment, all that it says being for whoever waits.
func goOutput(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func itoa(n int) string { return strconv.Itoa(n) }
