package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/freezer"
)

// A command that stops other people's processes runs as two: the front, which the shell starts, only waits; the worker, the
// same program in a session of its own, works. Each mends what the other's death would leave behind:
//
//   - The front dies, however it dies: the worker reads the end of a pipe that only the front holds, ends its work as for
//     SIGTERM, and so leaves everything as it was.
//   - The worker dies: the front has been told through another pipe, before each step, what would have to be undone,
//     and undoes it.
//
// Signals that the front gets it passes on. The worker inherits all descriptors but those of the two pipes' other ends.

// workerMark is the environment variable that makes a process the worker: "lifeline,journal,front", two descriptors and the front's
// pid.
const workerMark = "CRPIPE_WORKER"

// ErrFrontDied is the cause of the worker's context when the front is gone.
var ErrFrontDied = errors.New("the process that the shell started is gone")

// cure is what has to be done when the worker is dead.
type cure string

const (
	cureNone     cure = ""
	cureThaw     cure = "thaw"     // let the tree go on
	cureRefreeze cure = "refreeze" // the tree was frozen before: leave it frozen
	cureKill     cure = "kill"     // the tree was being ended: end it
)

// message is a line of the journal.
type message struct {
	Cure  cure           `json:"cure"`
	State *freezer.State `json:"state,omitempty"`
}

// A Guardian is the worker's end of the journal. A nil one, of an unguarded process, does nothing.
type Guardian struct {
	mu    sync.Mutex
	pipe  *os.File
	front int
}

// Guard runs work under the protection described above and returns the exit status for os.Exit. In the front it starts the worker and
// never calls work. In the worker ctx ends when the front is gone; the worker then also sends itself SIGTERM, once, so that a
// command which ends properly at that signal needs nothing else.
func Guard(work func(ctx context.Context, g *Guardian) int) int {
	if g, lifeline := adopt(); g != nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		go watch(lifeline, cancel)
		return work(ctx, g)
	}
	return front()
}

// Unguarded reports whether this process is neither front nor worker.
func (g *Guardian) Unguarded() bool { return g == nil }

// FrontPID returns the pid of the front, what the user sees as the command; without a guard it is this process.
func (g *Guardian) FrontPID() int {
	if g == nil {
		return os.Getpid()
	}
	return g.front
}

// journal returns the function that tells the front what to do about a state.
func (g *Guardian) journal(c cure) func(*freezer.State) error {
	return func(st *freezer.State) error { return g.tell(message{c, st}) }
}

// Clear tells the front that nothing has to be undone any more.
func (g *Guardian) Clear() error { return g.tell(message{}) }

func (g *Guardian) tell(m message) error {
	if g == nil {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("telling the guard: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.pipe.Write(append(b, '\n')); err != nil {
		if m.Cure == cureNone {
			return nil // without a front nothing needs to be called off
		}
		return fmt.Errorf("telling the guard: %w", err)
	}
	return nil
}

// adopt makes this process the worker if it was started as one.
func adopt() (*Guardian, *os.File) {
	mark := os.Getenv(workerMark)
	// What this process starts, restored trees included, must not take itself for a worker.
	_ = os.Unsetenv(workerMark)
	parts := strings.Split(mark, ",")
	if len(parts) != 3 {
		return nil, nil
	}
	var n [3]int
	for i, p := range parts {
		v, err := strconv.Atoi(p)
		if err != nil {
			return nil, nil
		}
		n[i] = v
	}
	for _, fd := range n[:2] {
		if !isPipe(fd) {
			return nil, nil // left over in somebody's environment
		}
		unix.CloseOnExec(fd)
	}
	// Its name would be "exe" otherwise. It matters to nobody but those who look at ps.
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	return &Guardian{pipe: os.NewFile(uintptr(n[1]), "journal"), front: n[2]}, os.NewFile(uintptr(n[0]), "lifeline")
}

func isPipe(fd int) bool {
	var st unix.Stat_t
	return fd > 2 && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// watch waits for the front's death.
func watch(lifeline *os.File, cancel context.CancelCauseFunc) {
	_, _ = lifeline.Read(make([]byte, 1)) // nothing is ever written
	cancel(ErrFrontDied)
	_ = unix.Kill(os.Getpid(), unix.SIGTERM)
}

// front is the whole life of the process that the shell starts.
func front() int {
	program := filepath.Base(os.Args[0])
	w, err := startWorker()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: starting the worker: %v\n", program, err)
		return 1
	}
	// The streams are the worker's alone: when it ends or closes one, the other side must see that at once.
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		_ = unix.Dup3(int(null.Fd()), 0, 0)
		_ = unix.Dup3(int(null.Fd()), 1, 0)
		_ = null.Close()
	}
	stop := w.passSignals()
	last := w.readJournal()
	state, err := w.process.Wait()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: waiting for the worker: %v\n", program, err)
		return 1
	}
	if err := runCure(<-last); err != nil {
		fmt.Fprintf(os.Stderr, "%s: the worker ended too early, and mending what it left failed: %v\n", program, err)
		return 1
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case ok && ws.Signaled():
		return likeWorker(program, ws.Signal())
	case state.ExitCode() < 0:
		return 1
	}
	return state.ExitCode()
}

// likeWorker ends the front as the worker was: by the signal that asked it to stop, otherwise with a message.
func likeWorker(program string, sig syscall.Signal) int {
	switch sig {
	case unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE:
		signal.Reset(sig)
		_ = unix.Kill(os.Getpid(), sig)
		time.Sleep(time.Second) // it arrives on any thread, within no time
		return 128 + int(sig)
	}
	fmt.Fprintf(os.Stderr, "%s: the worker was killed by signal %d (%s)\n", program, int(sig), sig)
	return 1
}

// worker is what the front knows of the worker.
type worker struct {
	process  *os.Process
	lifeline *os.File // never written; closed by the death of the front
	journal  *os.File
}

// startWorker starts this program again with the same arguments and descriptors, in a new session: signals from the terminal and
// to the process group reach the front only.
func startWorker() (*worker, error) {
	lifeRead, lifeWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer lifeRead.Close()
	journalRead, journalWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer journalWrite.Close()
	// The worker's ends lie above all numbers that the user may have given to inherited descriptors (--progress-fd, --inherit), and are
	// not close-on-exec from here to the start.
	syscall.ForkLock.Lock()
	a, errA := unix.FcntlInt(lifeRead.Fd(), unix.F_DUPFD, workerFDs)
	b, errB := unix.FcntlInt(journalWrite.Fd(), unix.F_DUPFD, workerFDs)
	syscall.ForkLock.Unlock()
	defer closeIfOpen(a, errA)
	defer closeIfOpen(b, errB)
	if err := errors.Join(errA, errB); err != nil {
		return nil, err
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d,%d,%d", workerMark, a, b, os.Getpid()))
	// Not by its path, which this user may be unable to reach, or where another version may be by now.
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   env,
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	return &worker{p, lifeWrite, journalRead}, nil
}

// workerFDs is the lowest number of the worker's ends of the pipes.
const workerFDs = 200

func closeIfOpen(fd int, err error) {
	if err == nil {
		_ = unix.Close(fd)
	}
}

// passSignals hands the signals that ask for an end, and the one that asks for progress, to the worker. Those that were ignored when the
// front was started (nohup) stay ignored, in both.
func (w *worker) passSignals() (stop func()) {
	ch := make(chan os.Signal, 16)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1} {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-ch:
				_ = w.process.Signal(s) // an error: it is gone, which Wait reports
			case <-done:
				return
			}
		}
	}()
	// The signals stay caught: a second Ctrl-C must not stop the cure half-way.
	return func() { close(done) }
}

// readJournal keeps the last complete message; it is sent when the worker has no end of the pipe any more.
func (w *worker) readJournal() <-chan message {
	out := make(chan message, 1)
	go func() {
		var last message
		r := bufio.NewReader(w.journal)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil { // the end; what is incomplete was not acted upon
				break
			}
			var m message
			if err := json.Unmarshal(line, &m); err == nil {
				last = m
			}
		}
		out <- last
	}()
	return out
}

// runCure does what a dead worker left to do.
func runCure(m message) error {
	switch m.Cure {
	case cureThaw:
		return freezer.Thaw(m.State, freezer.ThawOptions{Partial: true})
	case cureRefreeze:
		return freezer.Refreeze(m.State)
	case cureKill:
		err := freezer.Kill(m.State, freezer.ThawOptions{Partial: true})
		if errors.Is(err, freezer.ErrStale) {
			return nil // all gone: that was the wish
		}
		return err
	case cureNone:
		return nil
	}
	return fmt.Errorf("unknown cure %q", m.Cure)
}
