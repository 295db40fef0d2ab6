package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// siginfo makes the 128 bytes of a signal that was sent by sigqueue(3).
func siginfo(sig int, code int32, value uint64) signals.Siginfo {
	s := make(signals.Siginfo, 128)
	binary.NativeEndian.PutUint32(s[0:], uint32(sig))
	binary.NativeEndian.PutUint32(s[8:], uint32(code))
	binary.NativeEndian.PutUint32(s[16:], 4711) // of a sender who need not exist
	binary.NativeEndian.PutUint32(s[20:], 1000)
	binary.NativeEndian.PutUint64(s[24:], value)
	return s
}

// edit decodes the state of a record, has it changed, and puts it back.
func edit[S any](t *testing.T, r *rec, change func(s *S)) {
	t.Helper()
	meta, err := stream.EncodeMeta(r.meta)
	if err != nil {
		t.Fatal(err)
	}
	s := new(S)
	if err := (&stream.Record{Type: r.typ, Meta: meta}).Decode(s); err != nil {
		t.Fatal(err)
	}
	change(s)
	r.meta = tree(t, s)
}

// Everything that the records of processes and threads hold goes into real tasks, and comes out of them again in a dump.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	view, err := kernelview.Open(kernelview.Options{})
	if err != nil {
		t.Skipf("no kernel view: %v", err)
	}
	view.Close()
	pid := freePIDs(t)
	im := synth(t, pid)
	const queued, sent = -1, 0 // SI_QUEUE, SI_USER
	edit(t, im.find(t, "process", 0), func(p *tasks.Process) {
		p.OOMScore, p.Subreaper = 300, true
		p.Limits[2*unix.RLIMIT_NOFILE], p.Limits[2*unix.RLIMIT_CORE] = 77, 0
		p.Signals.Timers = []signals.Timer{
			{ID: 0, Clock: unix.CLOCK_REALTIME, Signal: 34, Value: 1 << 63, Armed: true, Expires: time.Now().Add(24 * time.Hour).UnixNano(), Interval: 5e9},
			{ID: 7, Clock: unix.CLOCK_BOOTTIME, Notify: 4, Signal: 10, Target: pid + 1},
			{ID: 70000, Clock: unix.CLOCK_MONOTONIC, Notify: 1, Armed: true, Left: 1e15},
			{ID: 70001, Clock: -6, Signal: 35, Armed: true, Left: 1e15, Interval: 1e12},
		}
	})
	edit(t, im.find(t, "process", 1), func(p *tasks.Process) {
		p.Limits[2*unix.RLIMIT_SIGPENDING], p.Limits[2*unix.RLIMIT_SIGPENDING+1] = 0, 0 // below what is pending
		p.Signals.Pending = []signals.Siginfo{siginfo(40, queued, 1), siginfo(40, queued, 2), siginfo(34, queued, 3), siginfo(15, sent, 0)}
		p.Signals.Itimers = []signals.Itimer{{Left: 1e15, Interval: 3e9}, {Left: 2e15}, {Left: 3e15, Interval: 1e9}}
		p.Signals.Timers = nil
	})
	edit(t, im.find(t, "thread", 0), func(th *tasks.Thread) {
		th.Sched = tasks.Scheduling{Policy: unix.SCHED_BATCH, Nice: 5, Ioprio: 2<<13 | 6}
		th.Prctls = tasks.Prctls{TimerSlack: 1, DefaultSlack: 2, Personality: 0x0040000, MCEKillSet: true, MCEKillEarly: true}
		th.Signals.Mask = 1<<9 | 1<<33
		th.ClearTID = dataAt + 8
		th.Comm = "a\xff b"
	})
	edit(t, im.find(t, "thread", 1), func(th *tasks.Thread) {
		th.Sched = tasks.Scheduling{Policy: unix.SCHED_RR, Priority: 3, Nice: 11, Affinity: []byte{1}}
		th.Prctls = tasks.Prctls{DefaultSlack: 3} // of a real-time thread: it has none itself
		th.Signals.Mask = ^uint64(0) &^ (1<<8 | 1<<18 | 1<<4)
		th.Signals.Pending = []signals.Siginfo{siginfo(50, queued, 9), siginfo(12, -6, 0)}
		th.Signals.StackSP, th.Signals.StackSize, th.Signals.StackMode = dataAt, 4096, 1<<31
		th.RobustList, th.RobustLen = dataAt+64, 24
	})
	edit(t, im.find(t, "thread", 2), func(th *tasks.Thread) {
		th.Sched = tasks.Scheduling{Policy: unix.SCHED_IDLE, Nice: 19, Ioprio: 3 << 13}
		th.Prctls.PdeathSignal = 12
		th.Prctls.TSCFaults, th.Prctls.IOFlusher = true, canFlush(t)
		th.Signals.Mask = 1<<39 | 1<<33 | 1<<14 | 1<<13
		th.Creds.UID, th.Creds.Permitted, th.Creds.Effective, th.Creds.Ambient, th.Creds.Inheritable = []uint32{7, 7, 7, 7}, 0, 0, 0, 0
		th.Creds.Securebits, th.Creds.Groups = 1<<2, []uint32{3, 5, 100}
	})
	restored := restoreImage(t, im, pid+2, pid)
	for round := range 2 {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := Dump(ctx, &out, DumpOptions{PIDs: []int{restored.Root}, Plan: io.Discard}); err != nil {
			t.Fatal(err)
		}
		want, have := records(t, mustEncode(t, im)), records(t, out.Bytes())
		if diff := cmp.Diff(want.procs, have.procs); diff != "" {
			t.Errorf("processes, round %d:\n%s", round, diff)
		}
		if diff := cmp.Diff(want.threads, have.threads); diff != "" {
			t.Errorf("threads, round %d:\n%s", round, diff)
		}
		if t.Failed() {
			return
		}
	}
}

// canFlush says whether PR_SET_IO_FLUSHER is allowed: it needs CAP_SYS_RESOURCE.
func canFlush(t *testing.T) bool {
	t.Helper()
	var own initialState
	if err := own.read(unix.Gettid()); err != nil {
		t.Fatal(err)
	}
	return own.creds.Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func mustEncode(t *testing.T, im image) []byte {
	t.Helper()
	data, err := im.encode(header())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type taskRecords struct {
	procs   []tasks.Process
	threads []tasks.Thread
}

// records returns the records of processes and threads without what cannot be the same: references, cgroups, registers,
// and times left, which are rounded.
func records(t *testing.T, data []byte) taskRecords {
	t.Helper()
	p := readPlan(t, data)
	var out taskRecords
	round := func(ns int64) int64 { return (ns + 5e11) / 1e12 * 1e12 }
	for _, f := range object.All[tasks.Process](p) {
		s := *f.State
		s.MM, s.Files, s.FS, s.Sighand, s.Cgroups = stream.Ref{}, stream.Ref{}, stream.Ref{}, stream.Ref{}, nil
		s.Signals.Timers, s.Signals.Itimers = slices.Clone(s.Signals.Timers), slices.Clone(s.Signals.Itimers)
		for i := range s.Signals.Itimers {
			s.Signals.Itimers[i].Left = round(s.Signals.Itimers[i].Left)
		}
		for i := range s.Signals.Timers {
			tm := &s.Signals.Timers[i]
			if tm.Left = round(tm.Left); tm.Expires != 0 {
				tm.Left = 0 // the end says it
			}
		}
		out.procs = append(out.procs, s)
	}
	for _, f := range object.All[tasks.Thread](p) {
		s := *f.State
		s.Process, s.Regs = stream.Ref{}, nil
		out.threads = append(out.threads, s)
	}
	return out
}
