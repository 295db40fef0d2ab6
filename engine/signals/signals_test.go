package signals

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

func info(sig int, code int32, value uint64) Siginfo {
	s := make(Siginfo, sizeofSiginfo)
	binary.NativeEndian.PutUint32(s[0:], uint32(sig))
	binary.NativeEndian.PutUint32(s[8:], uint32(code))
	binary.NativeEndian.PutUint32(s[16:], 4711)
	binary.NativeEndian.PutUint64(s[24:], value)
	return s
}

// What is queued in a task is read back the same, in order, with senders and values; a dump leaves it where it is.
func TestPendingRoundTrip(t *testing.T) {
	tr, arena, k, a := spawn(t)
	own := []Siginfo{info(12, -6, 0), info(50, -1, 1), info(50, -1, 2), info(50, 0, 3)}
	shared := []Siginfo{info(10, 0, 0), info(34, -1, 1<<63), info(17, 1, 5)}
	b := arena.NewBatch()
	queueCalls(b, a, int32(k.Pid), int32(k.Tid), false, own)
	queueCalls(b, a, int32(k.Pid), int32(k.Tid), true, shared)
	if err := tr.RunOne(k, b); err != nil {
		t.Fatal(err)
	}
	status, err := procfs.ReadStatus(k.Tid)
	if err != nil {
		t.Fatal(err)
	}
	th := &object.Thread{TID: k.Tid, Status: status, Process: &object.Process{PID: k.Pid, View: &kernelview.Process{}}}
	for round := range 2 {
		var haveOwn, haveShared []Siginfo
		if err := tr.Do(func() (err error) {
			if haveOwn, err = dumpQueue(th, false, status.SigPnd); err == nil {
				haveShared, err = dumpQueue(th, true, status.ShdPnd)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ have, want []Siginfo }{{haveOwn, own}, {haveShared, shared}} {
			if len(c.have) != len(c.want) {
				t.Fatalf("round %d: %d signals pending, want %d", round, len(c.have), len(c.want))
			}
			for i := range c.want {
				if !bytes.Equal(c.have[i], c.want[i]) {
					t.Errorf("round %d, signal %d:\n%x, want\n%x", round, i, c.have[i], c.want[i])
				}
			}
		}
	}
	// A signal without an entry, as when the queue was full: only its number is known.
	var have []Siginfo
	if err := tr.Do(func() (err error) { have, err = dumpQueue(th, false, status.SigPnd|1<<13); return err }); err != nil {
		t.Fatal(err)
	}
	if last := have[len(have)-1]; len(have) != len(own)+1 || last.signo() != 14 || last.code() != 0 {
		t.Errorf("%d signals, the last one %d", len(have), last.signo())
	}
}

func TestCheckQueue(t *testing.T) {
	for name, c := range map[string]struct {
		s  Siginfo
		ok bool
	}{
		"an ordinary one": {info(15, 0, 0), true},
		"the last one":    {info(64, -1, 0), true},
		"number 0":        {info(0, 0, 0), false},
		"number 65":       {info(65, 0, 0), false},
		"a negative one":  {info(-1, 0, 0), false},
		"SIGKILL":         {info(9, 0, 0), false},
		"SIGSTOP":         {info(19, 0, 0), false},
		"SIGTRAP":         {info(5, 0, 0), false},
		"nothing":         {nil, false},
		"too short":       {info(15, 0, 0)[:127], false},
		"too long":        {append(info(15, 0, 0), 0), false},
	} {
		if err := checkQueue([]Siginfo{info(1, 0, 0), c.s}); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckTimers(t *testing.T) {
	three := []Itimer{{}, {}, {}}
	for name, c := range map[string]struct {
		its    []Itimer
		timers []Timer
		ok     bool
	}{
		"nothing":               {nil, nil, true},
		"three and two":         {three, []Timer{{ID: 0}, {ID: 1, Left: 5}}, true},
		"two interval timers":   {three[:2], nil, false},
		"four":                  {append(three, Itimer{}), nil, false},
		"negative time left":    {[]Itimer{{Left: -1}, {}, {}}, nil, false},
		"negative interval":     {[]Itimer{{}, {}, {Interval: -1}}, nil, false},
		"negative id":           {nil, []Timer{{ID: -1}}, false},
		"one id twice":          {nil, []Timer{{ID: 1}, {ID: 1}}, false},
		"negative timer":        {nil, []Timer{{Left: -1}}, false},
		"negative timer period": {nil, []Timer{{Interval: -1}}, false},
		"negative end":          {nil, []Timer{{Expires: -1}}, false},
		"negative age":          {nil, []Timer{{Fired: -1}}, false},
	} {
		if err := checkTimers(c.its, c.timers); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckActions(t *testing.T) {
	for name, c := range map[string]struct {
		actions []Action
		ok      bool
	}{
		"none":       {nil, true},
		"ascending":  {[]Action{{Signal: 1}, {Signal: 64}}, true},
		"descending": {[]Action{{Signal: 2}, {Signal: 1}}, false},
		"twice":      {[]Action{{Signal: 2}, {Signal: 2}}, false},
		"signal 0":   {[]Action{{Signal: 0}}, false},
		"signal 65":  {[]Action{{Signal: 65}}, false},
		"SIGKILL":    {[]Action{{Signal: 9}}, false},
		"SIGSTOP":    {[]Action{{Signal: 19}}, false},
	} {
		if err := (&Sighand{Actions: c.actions}).Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// All actions are set but that of SIGTRAP, which is given separately; the kernel has them as they were said.
func TestActions(t *testing.T) {
	tr, arena, k, a := spawn(t)
	s := &Sighand{Actions: []Action{
		{Signal: 2, Handler: 1}, {Signal: 5, Handler: 1}, {Signal: 12, Handler: 0x1234, Flags: 0x4000000 | 0x80000000 | 4, Restorer: 0x5678, Mask: 1<<9 | 1<<63},
		{Signal: 64, Handler: 0, Flags: 0x10000000}}}
	b := arena.NewBatch()
	s.Calls(b, a)
	old := map[uint32]func() []byte{}
	for _, sig := range []uint32{2, 5, 12, 64} {
		buf := b.Space(32)
		b.Call(b.Sys().RtSigaction, sig, 0, buf, 8)
		old[sig] = buf.Bytes
	}
	if err := tr.RunOne(k, b); err != nil {
		t.Fatal(err)
	}
	for i := range s.Actions {
		act := &s.Actions[i]
		want := act.bytes()
		if act.Signal == 5 {
			if !bytes.Equal(s.Trap(), want) {
				t.Errorf("the action of SIGTRAP is %x, want %x", s.Trap(), want)
			}
			want = make([]byte, 32)
		}
		if have := old[act.Signal](); !bytes.Equal(have, want) {
			t.Errorf("signal %d: %x, want %x", act.Signal, have, want)
		}
	}
	if (&Sighand{}).Trap() != nil {
		t.Error("the default action is to be set")
	}
}

// Timers come out with their numbers, and the setting of numbers is off again afterwards. Where the kernel does not let numbers
// be chosen (which "counted" pretends) it has to count up to them.
func TestTimerCalls(t *testing.T) {
	t.Run("chosen", func(t *testing.T) {
		if !choosesIDs() {
			t.Skip("this kernel does not let numbers be chosen (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.16): see the other half")
		}
		testTimerCalls(t, 1<<20)
	})
	t.Run("counted", func(t *testing.T) {
		was := choosesIDs
		choosesIDs = func() bool { return false }
		defer func() { choosesIDs = was }()
		testTimerCalls(t, 3*idsAtOnce+7)
	})
}

func testTimerCalls(t *testing.T, high int32) {
	tr, arena, k, a := spawn(t)
	timers := []Timer{
		{ID: 5, Clock: unix.CLOCK_MONOTONIC, Signal: 34, Value: 0xfeed, Armed: true, Left: 1e15, Interval: 7},
		{ID: 2, Clock: unix.CLOCK_BOOTTIME, Notify: sigevNone},
		{ID: high, Clock: -2 /* the caller's CPU time, as the kernel writes it */, Notify: sigevThreadID, Signal: 10, Target: int32(k.Tid), Armed: true, Left: 1e12},
	}
	if err := (&Process{Timers: timers}).MakeTimers(tr, func(int32) *tracee.Task { return k }, arena.NewBatch); err != nil {
		t.Fatal(err)
	}
	b := arena.NewBatch()
	timerCalls(b, a, timers, false, sys.Clock)
	itimerCalls(b, a, []Itimer{{}, {Left: 1e12, Interval: 3e6}, {Left: 1}})
	b.Call(b.Sys().TimerCreate, unix.CLOCK_MONOTONIC, 0, b.Space(8)) // with a number of the kernel's choice
	if err := tr.RunOne(k, b); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/timers", k.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ID: 5\nsignal: 34/000000000000feed\nnotify: signal/pid.", "ID: 2\nsignal: 0/0000000000000000\nnotify: none/pid.",
		fmt.Sprintf("ID: %d\nsignal: 10/0000000000000000\nnotify: signal/tid.%d\n", high, k.Tid)} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if n := bytes.Count(text, []byte("\nsignal: ")); n != len(timers)+1 {
		t.Errorf("%d timers, want %d:\n%s", n, len(timers)+1, text)
	}
	b = arena.NewBatch()
	buf := b.Space(32)
	b.Call(b.Sys().Getitimer, unix.ITIMER_VIRTUAL, buf)
	if err := tr.RunOne(k, b); err != nil {
		t.Fatal(err)
	}
	var have [4]uint64
	for i := range have {
		have[i] = binary.NativeEndian.Uint64(buf.Bytes()[8*i:])
	}
	if have[1] != 3000 || have[2] < 900 || have[2] > 1000 {
		t.Errorf("the virtual timer is %v", have)
	}
}

// A kernel that does not let the id of a timer be chosen is not kept busy for an hour by one that nobody counts up to.
func TestTimerIDTooHigh(t *testing.T) {
	was := choosesIDs
	choosesIDs = func() bool { return false }
	defer func() { choosesIDs = was }()
	var lacking *object.Lacking
	var bad *object.BadImage
	if err := (&Process{Timers: []Timer{{ID: 1, Of: 7}}}).MakeTimers(nil, func(int32) *tracee.Task { return nil }, nil); !errors.As(err, &bad) {
		t.Errorf("a timer of a thread that is not there: %v", err)
	}
	if err := (&Process{Timers: []Timer{{ID: mostIDs}, {ID: 3}}}).MakeTimers(nil, func(int32) *tracee.Task { return new(tracee.Task) }, nil); !errors.As(err, &lacking) {
		t.Errorf("%v", err)
	}
}
