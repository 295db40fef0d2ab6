package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// Report is how far a command has come. All counts are totals since its start.
type Report struct {
	Phase string // what is being done, one or two words: "freezing", "pages"
	Bytes uint64 // of the stream
	Pages uint64 // of memory, in the target's page size
}

// progress shows reports: on standard error, in one line that is written over
// and over, when that is a terminal; on the descriptor of --progress-fd, a JSON
// object a line. It shows nothing until StartProgress.
type progress struct {
	name    string
	start   time.Time
	done    chan struct{}
	stopped sync.WaitGroup

	mu       sync.Mutex
	now      Report
	machine  *os.File
	terminal bool
	drawn    bool
	phase    time.Time // when the phase began, and the bytes there were
	before   uint64
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

// StartProgress begins to show progress. fd is the value of --progress-fd, 0 for
// none.
func (a *App) StartProgress(fd int) error {
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
	p.machine, p.terminal = machine, isTerminal(os.Stderr)
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

// Progress takes a report. It is cheap: it may be called for every record.
func (a *App) Progress(r Report) {
	p := &a.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := r.Phase != p.now.Phase
	if changed {
		p.phase, p.before = time.Now(), r.Bytes
	}
	p.now = r
	if changed {
		p.emit(r.Phase)
	}
}

func (p *progress) show() {
	if p.now.Phase == "" {
		return
	}
	if p.terminal && time.Since(p.start) >= progressQuiet {
		fmt.Fprintf(os.Stderr, "\r%s: %s\x1b[K", p.name, p.text())
		p.drawn = true
	}
	p.emit(p.now.Phase)
}

func (p *progress) rate() uint64 {
	seconds := time.Since(p.phase).Seconds()
	if seconds <= 0 || p.now.Bytes < p.before {
		return 0
	}
	return uint64(float64(p.now.Bytes-p.before) / seconds)
}

func (p *progress) text() string {
	if p.now.Phase == "" {
		return fmt.Sprintf("starting, %.1f s", time.Since(p.start).Seconds())
	}
	text := fmt.Sprintf("%s: %s", p.now.Phase, Size(p.now.Bytes))
	if p.now.Pages > 0 {
		text += fmt.Sprintf(", %d pages", p.now.Pages)
	}
	return text + fmt.Sprintf(", %s/s, %.1f s", Size(p.rate()), time.Since(p.start).Seconds())
}

func (p *progress) emit(phase string) {
	if p.machine == nil {
		return
	}
	line, err := json.Marshal(Machine{phase, p.now.Bytes, p.now.Pages, p.rate(), time.Since(p.start).Seconds()})
	if err != nil {
		return // cannot be: numbers and a string
	}
	if _, err := p.machine.Write(append(line, '\n')); err != nil {
		p.machine = nil // whoever watched has gone; the work goes on
	}
}

// clear takes the line off the terminal before something else is printed there.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
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
