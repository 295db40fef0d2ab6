package tasks

import (
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/stream"
)

// Thread is the record of a live task.
type Thread struct {
	Process stream.Ref     `msgpack:"process"`
	TID     int32          `msgpack:"tid"`
	Comm    string         `msgpack:"comm"`
	Regs    []Regset       `msgpack:"regs"`
	Signals signals.Thread `msgpack:"signals"`

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
