package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// machine is what qemu emulates.
type machine struct {
	kernel, initrd string
	disks          []string
	cpus           int
	verbose        bool
	packages       []string  // of the jobs, in their order
	dir            string    // for the console and the port
	events         io.Writer // where test2json's events go
}

// commandLine of the kernel. What is left out costs time under emulation, or judges the machine by the clock.
const commandLine = "console=ttyS0 panic=-1 oops=panic quiet mitigations=off nopti tsc=reliable no_timer_check nowatchdog " +
	"rcupdate.rcu_cpu_stall_suppress=1 init_on_alloc=0 random.trust_cpu=on ia32_emulation=on secretmem.enable=1"

// run boots the machine, has the tests' output pass through test2json to standard output, and returns an error unless every job
// has run and all have passed.
func (m *machine) run(ctx context.Context) error {
	console := filepath.Join(m.dir, "console")
	port := filepath.Join(m.dir, "port")
	args := []string{
		"-machine", "pc,accel=tcg", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		// cx16: qemu 7.2 now and then ends cmpxchg16b with wrong flags, and the kernel's allocator dies of it.
		// mpx: qemu has its registers always in use, which no processor does.
		// la57: five levels of page tables take longer to walk than four.
		// 5 GiB: without swap no kernel makes a segment larger than the memory, and a fixture has one of 4. qemu takes what is used.
		"-cpu", "max,-cx16,-mpx,-la57", "-smp", itoa(m.cpus), "-m", "5120",
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", commandLine,
		"-serial", "file:" + console, "-serial", "file:" + port,
		"-device", "virtio-rng-pci",
	}
	for _, disk := range m.disks {
		args = append(args, "-drive", "file="+disk+",format=raw,if=virtio,snapshot=on,cache=unsafe")
	}
	for _, f := range []string{console, port} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.WaitDelay = 5 * time.Second
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	var qemu error
	go func() {
		qemu = cmd.Wait()
		close(ended)
	}()
	if m.verbose {
		go follow(console, ended, func(r io.Reader) { _, _ = io.Copy(os.Stderr, r) })
	}
	var failed []string
	var complete bool
	var broken error
	follow(port, ended, func(r io.Reader) { failed, complete, broken = m.report(ctx, r, begin) })
	<-ended
	if err := errors.Join(broken, ctx.Err()); err != nil {
		return err
	}
	if !complete {
		text, _ := os.ReadFile(console)
		if len(text) > 4000 {
			text = text[len(text)-4000:]
		}
		return fmt.Errorf("the machine ended early (%v); its console says:\n%s", qemu, text) //nolint:errorlint // qemu may be nil
	}
	say("%d packages in %v", len(m.packages), time.Since(begin).Round(time.Second))
	if len(failed) > 0 {
		return fmt.Errorf("tests failed: %s", strings.Join(failed, " "))
	}
	return nil
}

// report reads what init and its jobs write and gives each job's output to a test2json of its own.
func (m *machine) report(ctx context.Context, r io.Reader, begin time.Time) (failed []string, complete bool, err error) {
	var events *exec.Cmd
	var in io.WriteCloser
	end := func() error {
		if events == nil {
			return nil
		}
		_ = in.Close()
		err := events.Wait()
		events = nil
		return err
	}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if err != nil { // the machine is off
			return failed, complete, end()
		}
		// A test that prints without a newline may have begun the line.
		text, mark, marked := strings.Cut(line, "\x01")
		if events != nil && text != "" {
			if _, err := io.WriteString(in, text); err != nil {
				return failed, complete, err
			}
		}
		if !marked {
			continue
		}
		var n, status int
		switch {
		case scan(mark, "begin %d", &n) && n < len(m.packages):
			if err := end(); err != nil {
				return failed, complete, err
			}
			say("%v: %s", time.Since(begin).Round(time.Second), m.packages[n])
			events = exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", m.packages[n])
			events.Stdout, events.Stderr = m.events, os.Stderr
			if in, err = events.StdinPipe(); err != nil {
				return failed, complete, err
			}
			if err := events.Start(); err != nil {
				return failed, complete, err
			}
		case scan(mark, "end %d %d", &n, &status) && n < len(m.packages):
			if status != 0 {
				failed = append(failed, m.packages[n])
				if events != nil {
					_, _ = fmt.Fprintf(in, "\nwait status 0x%x\nFAIL\n", status) // whatever its last words were
				}
			}
			if err := end(); err != nil {
				return failed, complete, err
			}
		case strings.HasPrefix(mark, "off"):
			complete = true
		}
	}
}

func scan(text, format string, to ...any) bool {
	n, err := fmt.Sscanf(text, format, to...)
	return err == nil && n == len(to)
}

// follow reads a file that grows until ended is closed, and then to its end.
func follow(path string, ended <-chan struct{}, use func(io.Reader)) {
	r, w := io.Pipe()
	go func() {
		f, err := os.Open(path)
		if err != nil {
			_ = w.CloseWithError(err)
			return
		}
		defer f.Close()
		for last := false; ; {
			if n, err := io.Copy(w, f); err != nil {
				_ = w.CloseWithError(err)
				return
			} else if n > 0 {
				continue
			}
			if last {
				_ = w.Close()
				return
			}
			select {
			case <-ended:
				last = true
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	use(r)
	_ = r.Close()
}
