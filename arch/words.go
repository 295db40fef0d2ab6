package arch

import "encoding/binary"

// words reads and writes registers by index in a blob of equally long words.
type words struct {
	order binary.ByteOrder
	size  int
}

func (w words) get(b []byte, i int) uint64 {
	if w.size == 4 {
		return uint64(w.order.Uint32(b[i*4:]))
	}
	return w.order.Uint64(b[i*8:])
}

func (w words) signed(b []byte, i int) int64 {
	if w.size == 4 {
		return int64(int32(w.order.Uint32(b[i*4:])))
	}
	return int64(w.order.Uint64(b[i*8:]))
}

func (w words) set(b []byte, i int, v uint64) {
	if w.size == 4 {
		w.order.PutUint32(b[i*4:], uint32(v))
		return
	}
	w.order.PutUint64(b[i*8:], v)
}

// addr and setAddr return accessors for register i.
func (w words) addr(i int) func([]byte) Addr {
	return func(b []byte) Addr { return Addr(w.get(b, i)) }
}

func (w words) setAddr(i int) func([]byte, Addr) {
	return func(b []byte, v Addr) { w.set(b, i, uint64(v)) }
}

func (w words) result(i int) func([]byte) int64 {
	return func(b []byte) int64 { return w.signed(b, i) }
}

func (w words) setResult(i int) func([]byte, int64) {
	return func(b []byte, v int64) { w.set(b, i, uint64(v)) }
}
