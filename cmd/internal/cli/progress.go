package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// ProgressFlags are the flags of a command that shows progress.
type ProgressFlags struct {
	ProgressFD int `name:"progress-fd" placeholder:"N" help:"Write progress to descriptor N, a JSON object a line."`
}

// progress shows how far a command has come: on standard error, in one line that is written over
// and over, when that is a terminal; on the descriptor of --progress-fd, a JSON
// object a line. It shows nothing until StartProgress.
type progress struct {
	name    string
	start   time.Time
	done    chan struct{}
	stopped sync.WaitGroup

	mu       sync.Mutex
	count    func() uint64 // bytes of the stream so far
	phase    string        // what is being done; "" until the first report
	pages    uint64
	began    time.Time // when the phase began, and the bytes there were
	before   uint64
	machine  *os.File
	terminal bool
	drawn    bool // there is a line on the terminal
}

// Machine is one line on the descriptor of --progress-fd.
type Machine struct {
	Phase   string  `json:"phase"` // the last line has "done" or "failed"
	Bytes   uint64  `json:"bytes"`
	Pages   uint64  `json:"pages"`
	Rate    uint64  `json:"rate"`    // bytes a second in this phase
	Seconds float64 `json:"seconds"` // since the command started
}

// The line for people waits a moment, so that short runs (and the five commands
// of a pipeline on one terminal) stay silent.
const (
	progressTick  = 250 * time.Millisecond
	progressQuiet = time.Second
)

// StartProgress begins to show progress. count gives the bytes of the stream
// that have passed (Input.Count, Output.Count).
func (a *App) StartProgress(flags ProgressFlags, count func() uint64) error {
	fd := flags.ProgressFD
	var machine *os.File
	switch {
	case fd == 1 || fd < 0:
		return UsageError(fmt.Sprintf("--progress-fd %d: not a descriptor for progress", fd),
			"take one from 3 on: --progress-fd 3 3>progress")
	case fd > 0:
		machine = os.NewFile(uintptr(fd), "the progress descriptor")
		if _, err := machine.Stat(); err != nil {
			return UsageError(fmt.Sprintf("--progress-fd %d: %v", fd, bare(err)),
				"open it in the shell: --progress-fd 3 3>progress")
		}
	}
	p := &a.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count, p.machine, p.terminal = count, machine, isTerminal(os.Stderr)
	p.done = make(chan struct{})
	p.stopped.Go(p.run)
	return nil
}

func (p *progress) run() {
	ticker := time.NewTicker(progressTick)
	defer ticker.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ticker.C:
			p.mu.Lock()
			p.show()
			p.mu.Unlock()
		}
	}
}

// Progress reports what is being done, in one or two words, and how many pages of
// memory have been handled since the start. It is cheap: it may be called for
// every record.
func (a *App) Progress(phase string, pages uint64) {
	p := &a.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pages = pages
	if phase == p.phase || p.count == nil {
		return
	}
	p.phase, p.began, p.before = phase, time.Now(), p.count()
	p.emit(phase)
	if a.Verbose {
		p.wipe()
		fmt.Fprintf(a.messages, "%s: %s\n", a.Name, phase)
	}
}

func (p *progress) show() {
	if p.phase == "" {
		return
	}
	if p.terminal && time.Since(p.start) >= progressQuiet {
		fmt.Fprintf(os.Stderr, "\r%s: %s\x1b[K", p.name, p.text())
		p.drawn = true
	}
	p.emit(p.phase)
}

// rate is that of the phase, in bytes a second.
func (p *progress) rate(bytes uint64) uint64 {
	seconds := time.Since(p.began).Seconds()
	if seconds <= 0 {
		return 0
	}
	return uint64(float64(bytes-p.before) / seconds)
}

func (p *progress) text() string {
	if p.phase == "" {
		return fmt.Sprintf("starting, %.1f s", time.Since(p.start).Seconds())
	}
	bytes := p.count()
	text := fmt.Sprintf("%s: %s", p.phase, Size(bytes))
	if p.pages > 0 {
		text += fmt.Sprintf(", %d pages", p.pages)
	}
	return text + fmt.Sprintf(", %s/s, %.1f s", Size(p.rate(bytes)), time.Since(p.start).Seconds())
}

func (p *progress) emit(phase string) {
	if p.machine == nil {
		return
	}
	bytes := p.count()
	line, err := json.Marshal(Machine{phase, bytes, p.pages, p.rate(bytes), time.Since(p.start).Seconds()})
	if err != nil {
		return // cannot be: numbers and a string
	}
	if err := writeNow(p.machine, append(line, '\n')); err != nil {
		p.machine = nil // whoever watched has gone; the work goes on
	}
}

// clear takes the line off the terminal before something else is printed there.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wipe()
}

// HandOver ends what is shown on the terminal, which is somebody else's from now on.
func (a *App) HandOver() {
	p := &a.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wipe()
	p.terminal = false
}

func (p *progress) wipe() {
	if p.drawn {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
		p.drawn = false
	}
}

// stop ends progress with its last line.
func (p *progress) stop(err error) {
	if p.done == nil {
		return // never started
	}
	close(p.done)
	p.stopped.Wait()
	p.clear()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.terminal = false
	if err != nil {
		p.emit("failed")
	} else {
		p.emit("done")
	}
}

// printNow answers SIGUSR1.
func (a *App) printNow() {
	p := &a.progress
	p.mu.Lock()
	text := p.text()
	p.mu.Unlock()
	a.Info(text)
}

// Size shows a number of bytes as a person reads it.
func Size(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

var units = []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
