package tracee

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
)

// visited has threads in calls of each class of interruption and some that compute. Told to by a line it says whether
// all went on as it should: no call that waits has ended, and no register or flag was lost.
const visited = `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static atomic_int bad, stop;
static int p[2], ep;
static int word;

#define ENDED(what) do { fprintf(stderr, "%s ended: %s\n", what, strerror(errno)); bad = 1; } while (0)

static void *nano(void *x) { struct timespec t = {3600, 0}; nanosleep(&t, 0); ENDED("nanosleep"); return 0; }
static void *polled(void *x) { struct pollfd f = {p[0], POLLIN}; poll(&f, 1, 3600000); ENDED("poll"); return 0; }
static void *reader(void *x) { char c; if (read(p[0], &c, 1) != 1) ENDED("read"); return 0; }
static void *waiter(void *x) { struct epoll_event e; epoll_wait(ep, &e, 1, -1); ENDED("epoll_wait"); return 0; }
static void *futexed(void *x) { struct timespec t = {3600, 0}; syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, 0, 0); ENDED("futex"); return 0; }
static void *suspended(void *x) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); sigsuspend(&s); ENDED("sigsuspend"); return 0; }

static void *spinner(void *x)
{
	while (!stop) {
		unsigned long a = 0x1111111111111111, b = 2, r8 = 8, r9 = 9, r10 = 10, r12 = 12, r15 = 15;
		double d = 1.5;
		unsigned char of, cf;
		for (int i = 0; i < 2000; i++) {
			register unsigned long x8 asm("r8") = r8, x9 asm("r9") = r9, x10 asm("r10") = r10, x12 asm("r12") = r12, x15 asm("r15") = r15;
			asm volatile("mov $0x7f, %%cl\n\tadd $1, %%cl\n\tseto %0\n\tstc\n\tpause\n\tsetc %1\n\tstd\n\tcld"
				: "=m"(of), "=m"(cf), "+r"(a), "+r"(b), "+r"(x8), "+r"(x9), "+r"(x10), "+r"(x12), "+r"(x15), "+x"(d) : : "cc", "rcx", "memory");
			if (!of || !cf || a != 0x1111111111111111 || b != 2 || x8 != 8 || x9 != 9 || x10 != 10 || x12 != 12 || x15 != 15 || d != 1.5) {
				fprintf(stderr, "a register changed\n");
				bad = 1;
			}
		}
	}
	return 0;
}

int main(void)
{
	void *(*all[])(void *) = {nano, polled, reader, waiter, futexed, suspended, spinner, spinner};
	pthread_t t[8];
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &s, 0);
	pipe(p);
	ep = epoll_create1(0);
	for (int i = 0; i < 8; i++)
		pthread_create(&t[i], 0, all[i], 0);
	usleep(100000);
	printf("ready\n");
	fflush(stdout);
	for (char line[64]; fgets(line, sizeof line, stdin);) {
		printf("%s\n", bad ? "bad" : "good");
		fflush(stdout);
	}
	return 0;
}
`

type visitTarget struct {
	t    *testing.T
	pid  int
	tids []int
	tell func() string
	maps string
	vdso []byte
}

func newVisitTarget(t *testing.T) *visitTarget {
	t.Helper()
	cmd, out, in := compiledWithInput(t, visited)
	v := &visitTarget{t: t, pid: cmd.Process.Pid}
	v.tell = func() string {
		if _, err := in.WriteString("?\n"); err != nil {
			t.Fatal(err)
		}
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	var err error
	if v.tids, err = procfs.Threads(v.pid); err != nil {
		t.Fatal(err)
	}
	v.maps, v.vdso = v.look()
	return v
}

func compiledWithInput(t *testing.T, source string) (*exec.Cmd, *bufio.Reader, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	cmd := compiledCommand(t, source)
	cmd.Stdin = r
	line, out := start(t, cmd)
	r.Close()
	if line != "ready" {
		t.Fatalf("it said %q", line)
	}
	return cmd, out, w
}

func (v *visitTarget) look() (maps string, vdso []byte) {
	v.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	list, err := procfs.ReadMaps(v.pid)
	if err != nil {
		v.t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	defer mem.Close()
	for i := range list {
		if list[i].Path == "[vdso]" {
			vdso = make([]byte, list[i].Size())
			if _, err := mem.ReadAt(vdso, int64(list[i].Start)); err != nil {
				v.t.Fatal(err)
			}
		}
	}
	return string(b), vdso
}

// asBefore fails the test unless the program is right, untraced, and has no mapping more than before.
func (v *visitTarget) asBefore(wiped bool) {
	v.t.Helper()
	for _, tid := range v.tids {
		st, err := procfs.ReadThreadStatus(v.pid, tid)
		if err != nil {
			v.t.Fatal(err)
		}
		if st.TracerPID != 0 || st.SigBlk&^(1<<(unix.SIGUSR1-1)|1<<(unix.SIGUSR2-1)) != 0 || st.SigPnd != 0 {
			v.t.Errorf("thread %d: traced by %d, blocks %#x, pending %#x", tid, st.TracerPID, st.SigBlk, st.SigPnd)
		}
	}
	if got := v.tell(); got != "good" {
		v.t.Errorf("it says %q", got)
	}
	maps, vdso := v.look()
	if maps != v.maps {
		v.t.Errorf("mappings before:\n%s\nafter:\n%s", v.maps, maps)
	}
	if wiped && string(vdso) != string(v.vdso) {
		v.t.Error("its vdso is not as it was")
	}
}

// stopped stops all threads of the target.
func (v *visitTarget) stopped(tr *Tracer) {
	v.t.Helper()
	if _, err := tr.StopAll(v.tids, stopTimeout); err != nil {
		v.t.Fatal(err)
	}
}

// TestVisit has every thread of a program execute calls and looks at what they see, and at what they go on with.
func TestVisit(t *testing.T) {
	v := newVisitTarget(t)
	a := native(t)
	for range 3 {
		tr := NewTracer()
		v.stopped(tr)
		err := tr.Do(func() error {
			visitor, err := NewVisitor(a)
			if err != nil {
				return err
			}
			defer visitor.Close()
			for _, tid := range v.tids {
				before, err := readRegs(a, tid)
				if err != nil {
					return err
				}
				err = visitor.Visit(v.pid, tid, func(s *Visit) error {
					room, err := s.Room(24)
					if err != nil {
						return err
					}
					calls := []VisitCall{{Nr: a.Sys.Sigaltstack, Args: [6]uint64{0, uint64(room)}}}
					for range 300 {
						calls = append(calls, VisitCall{Nr: unix.SYS_GETTID}, VisitCall{Nr: unix.SYS_CLOSE, Args: [6]uint64{12345}})
					}
					if err := s.Run(calls); err != nil {
						return err
					}
					if calls[0].Result != 0 || calls[599].Result != int64(tid) || calls[600].Err() != unix.EBADF {
						t.Errorf("thread %d: results %d, %d, %d", tid, calls[0].Result, calls[599].Result, calls[600].Result)
					}
					return nil
				})
				if err != nil {
					return err
				}
				after, err := readRegs(a, tid)
				if err != nil {
					return err
				}
				if string(after) != string(before) {
					t.Errorf("thread %d: registers before\n% x\nafter\n% x", tid, before, after)
				}
			}
			return visitor.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		v.rewindAll(tr, a)
		if err := tr.Detach(); err != nil {
			t.Fatal(err)
		}
		tr.Close()
		v.asBefore(true)
	}
}

// rewindAll does what whoever lets tasks go does: a stop alone would make epoll_wait return EINTR.
func (v *visitTarget) rewindAll(tr *Tracer, a *arch.Arch) {
	v.t.Helper()
	err := tr.Do(func() error {
		for _, tid := range v.tids {
			regs, err := readRegs(a, tid)
			if err != nil {
				return err
			}
			if a.Restart(regs) == arch.RestartEINTR {
				a.Rewind(regs)
				if err := writeRegs(tid, regs); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		v.t.Fatal(err)
	}
}

// TestVisitAbandoned ends the tracer while a thread is away: it comes home by itself.
func TestVisitAbandoned(t *testing.T) {
	v := newVisitTarget(t)
	a := native(t)
	for i, tid := range append(append([]int(nil), v.tids...), v.tids...) {
		tr := NewTracer()
		v.stopped(tr)
		v.rewindAll(tr, a) // all but the visited one, which sets itself back
		tr.work <- func() {
			visitor, err := NewVisitor(a)
			if err == nil {
				err = visitor.Visit(v.pid, tid, func(s *Visit) error {
					calls := []VisitCall{{Nr: unix.SYS_GETTID}}
					if i%2 == 1 {
						if err := s.Run(calls); err != nil {
							return err
						}
					}
					if i%4 >= 2 { // calls are under way
						table := make([]byte, arch.VisitEntries)
						copy(table, a.Visit.Header(a.Order, 1))
						_ = s.Write(s.Base()+arch.VisitEntries, binary.NativeEndian.AppendUint64(nil, unix.SYS_GETTID))
						_ = s.Write(s.Base(), table)
					}
					runtime.Goexit()
					return nil
				})
			}
			t.Errorf("it came back: %v", err)
		}
		<-tr.gone
		deadline := time.Now().Add(time.Minute)
		for v.away() && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		v.asBefore(false)
	}
}

// away says whether the target shows that a thread has not come home.
func (v *visitTarget) away() bool {
	maps, _ := v.look()
	for _, tid := range v.tids {
		st, err := procfs.ReadThreadStatus(v.pid, tid)
		if err != nil || st.TracerPID != 0 || st.SigBlk == ^uint64(0)&^(1<<(unix.SIGKILL-1)|1<<(unix.SIGSTOP-1)) {
			return true
		}
	}
	return maps != v.maps
}
