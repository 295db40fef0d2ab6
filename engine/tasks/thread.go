package tasks

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Thread is the record of a live task.
type Thread struct {
	Process stream.Ref `msgpack:"process"`
	TID     int32      `msgpack:"tid"`
	Comm    string     `msgpack:"comm"`
	Regs    []Regset   `msgpack:"regs"`
	Signals stream.Ref `msgpack:"signals,omitempty"` // mask, alternate stack, pending signals, interrupted call

	ClearTID   uint64 `msgpack:"clear_tid,omitempty"`   // set_tid_address(2)
	RobustList uint64 `msgpack:"robust_list,omitempty"` // set_robust_list(2)
	RobustLen  uint64 `msgpack:"robust_len,omitempty"`
	Rseq       uint64 `msgpack:"rseq,omitempty"` // rseq(2): address, length in bytes, signature
	RseqLen    uint32 `msgpack:"rseq_len,omitempty"`
	RseqSig    uint32 `msgpack:"rseq_sig,omitempty"`

	Creds  Credentials `msgpack:"creds"`
	Sched  Scheduling  `msgpack:"sched"`
	Prctls Prctls      `msgpack:"prctl"`
}

// ThreadKind is the kind of record "thread".
var ThreadKind = object.NewKind[Thread]("thread", nil)

// Regset is one register set as PTRACE_GETREGSET gives it, an opaque blob of the architecture in the header.
type Regset struct {
	Note uint32 `msgpack:"note"`
	Data []byte `msgpack:"data"`
}

// DumpPointers fills in the addresses that a thread has registered with the kernel.
func DumpPointers(t *object.Thread, s *Thread) error {
	clear, ok := t.View.ClearChildTid.Get()
	if !ok {
		return t.Process.Error("", &object.Lacking{What: fmt.Sprintf("the kernel view does not know the clear_child_tid of thread %d", t.TID)})
	}
	s.ClearTID = uint64(clear)
	head, length, err := sys.GetRobustList(t.TID)
	if err != nil {
		return t.Process.Error("", fmt.Errorf("reading robust list of thread %d: %w", t.TID, err))
	}
	if head != 0 {
		s.RobustList, s.RobustLen = uint64(head), length
	}
	conf, err := sys.PtraceGetRseqConfiguration(t.TID)
	if err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL) {
		return t.Process.Error("", fmt.Errorf("reading rseq configuration of thread %d: %w", t.TID, err))
	}
	if err == nil && conf.Addr != 0 {
		s.Rseq, s.RseqLen, s.RseqSig = uint64(conf.Addr), conf.Size, conf.Signature
	}
	return nil
}
