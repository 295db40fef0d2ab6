package kernelview

import (
	"fmt"
	"slices"
)

// fSocketAsync is the list of a socket (net/socket.c, sock_fasync).
var fSocketAsync = want("socket.wq.fasync_list")

// maxAsync bounds the walk of a list of receivers of signals.
const maxAsync = 1 << 16

// asyncOf reads who is told by a signal of what happens in the object whose structure is b: the lists (struct fasync_struct) that begin in
// some of its fields. An open file for both directions of a pipe is in two.
func (v *bpfView) asyncOf(b []byte, heads ...field) (Maybe[[]Async], error) {
	l := v.l
	all := []Async{}
	for _, f := range heads {
		next, ok := l.uint(b, f)
		if !ok {
			return Maybe[[]Async]{}, nil
		}
		for n := 0; next != 0; n++ {
			if !l.has(fAsyncNext) || !l.has(fAsyncFile) || !l.has(fAsyncFD) {
				return Maybe[[]Async]{}, nil
			}
			b, err := v.mem.peek(next, l.span["fasync_struct"])
			if err == nil && n == maxAsync {
				err = errFault
			}
			if err != nil {
				return Maybe[[]Async]{}, err
			}
			file, _ := l.uint(b, fAsyncFile)
			fd, _ := l.uint(b, fAsyncFD)
			one := Async{File: v.id(file), FD: int32(fd)}
			if !slices.Contains(all, one) {
				all = append(all, one)
			}
			next, _ = l.uint(b, fAsyncNext)
		}
	}
	return Is(all), nil
}

// SocketAsync is documented with View.
func (v *bpfView) SocketAsync(file ID) (Maybe[[]Async], error) {
	b, _, err := v.content(file, KindSocket, "socket")
	if err != nil {
		return Maybe[[]Async]{}, err
	}
	all, err := v.asyncOf(b, fSocketAsync)
	if err != nil {
		return Maybe[[]Async]{}, fmt.Errorf("reading who is told of a socket by a signal: %w", err)
	}
	return all, nil
}
