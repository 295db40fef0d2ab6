package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

const benchMiB = 256

// drain returns a pipe of 1 MiB that another process empties.
func drain(b *testing.B) *os.File {
	b.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("dd", "of=/dev/null", "bs=256k", "status=none")
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	r.Close()
	b.Cleanup(func() {
		w.Close()
		_ = cmd.Wait()
	})
	return w
}

// vector hands a record's head and contents to writev(2), as cr-dump does.
type vector struct{ f *os.File }

func (v vector) Write(p []byte) (int, error) { return v.f.Write(p) }

func (v vector) WriteVector(bufs ...[]byte) error {
	for len(bufs) > 0 {
		n, err := unix.Writev(int(v.f.Fd()), bufs)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if len(bufs) > 0 {
			bufs[0] = bufs[0][n:]
		}
	}
	return nil
}

// biggest returns the largest mapping of a process that it can read.
func biggest(b *testing.B, pid int) (at arch.Addr, size int) {
	b.Helper()
	maps, err := procfs.ReadMaps(pid)
	if err != nil {
		b.Fatal(err)
	}
	for _, v := range maps {
		if v.Prot&procfs.ProtRead != 0 && int(v.Size()) > size {
			at, size = v.Start, int(v.Size())
		}
	}
	return at, size
}

func BenchmarkDump(b *testing.B) {
	pid := start(b, fmt.Sprintf("fill %d", benchMiB))
	b.Run("raw", func(b *testing.B) {
		out := drain(b)
		at, size := biggest(b, pid)
		buf := make([]byte, maxPages)
		b.SetBytes(int64(size))
		for range b.N {
			for off := 0; off < size; off += maxPages {
				buf = buf[:min(maxPages, size-off)]
				if err := sys.Read(pid, at+arch.Addr(off), buf); err != nil {
					b.Fatal(err)
				}
				if err := (vector{out}).WriteVector(buf); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("ours", func(b *testing.B) {
		out := drain(b)
		_, size := biggest(b, pid)
		b.SetBytes(int64(size))
		for range b.N {
			d := newDumper(b)
			if err := Dump(d, process(b, pid)); err != nil {
				b.Fatal(err)
			}
			w, err := stream.NewWriter(vector{out}, stream.Header{Content: stream.ContentImage, Arch: d.Arch.Name, PageSize: os.Getpagesize()})
			if err != nil {
				b.Fatal(err)
			}
			if err := errors.Join(d.Refusals(), d.WriteRecords(w), d.WriteBulk(w), w.End()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("metadata", func(b *testing.B) {
		for range b.N {
			d := newDumper(b)
			if err := Dump(d, process(b, pid)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// anonymous maps fresh memory in this process, which goes at the end of the benchmark.
func anonymous(b *testing.B, size int) []byte {
	b.Helper()
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	return m
}

func BenchmarkFill(b *testing.B) {
	const size = benchMiB << 20
	b.Run("memcpy", func(b *testing.B) {
		from := pattern(maxPages, 1)
		b.SetBytes(size)
		for range b.N {
			b.StopTimer()
			m := anonymous(b, size)
			b.StartTimer()
			for off := 0; off < size; off += len(from) {
				copy(m[off:], from)
			}
			b.StopTimer()
			_ = unix.Munmap(m)
			b.StartTimer()
		}
	})
	// The records come from memory, so that only this package's part and the reader's checks are measured.
	pid := start(b, fmt.Sprintf("fill %d", benchMiB))
	img := image(b, pid)
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			b.StopTimer()
			reader, err := stream.NewReader(bytes.NewReader(img))
			if err != nil {
				b.Fatal(err)
			}
			plan, rec, err := object.ReadPlan(reader, Kinds())
			if err != nil {
				b.Fatal(err)
			}
			spaces, err := Spaces(plan, native(b))
			if err != nil {
				b.Fatal(err)
			}
			target := layOut(b, plan, spaces)
			b.StartTimer()
			f := NewFiller(target.r, spaces)
			if err := f.Map(target.ref, target.tid); err != nil {
				b.Fatal(err)
			}
			reader.SetBuffers(f.Buffer)
			for err = nil; err == nil; rec, err = reader.Next() {
				if err = f.Put(rec); err != nil {
					break
				}
			}
			if err != io.EOF {
				b.Fatal(err)
			}
			if err := f.Wait(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			target.end()
			b.StartTimer()
		}
	})
}
