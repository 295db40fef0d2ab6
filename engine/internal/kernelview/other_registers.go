//go:build !amd64

package kernelview

// frameSize is 1: on this architecture registers are not read here, and
// factStackTop is never known.
const frameSize = 1

type component struct{}

func components() (none [64]component) { return none }

func processor() []byte { return nil }

func (v *bpfView) prstatus(*rawTask) Maybe[[]byte] { return Maybe[[]byte]{} }

func (v *bpfView) regsets(*rawTask) Maybe[[]Regset] { return Maybe[[]Regset]{} }

func (v *bpfView) readFP([]rawTask) error { return nil }

// registers, of calibration, finds nothing.
func (c *calibration) registers() error { return nil }

func (c *calibration) queues() error { return nil }
