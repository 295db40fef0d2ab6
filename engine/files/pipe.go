package files

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A pipe: its capacity (F_GETPIPE_SZ, pipe(7)), and as "data" its contents. They are taken with tee(2), which leaves
// them where they are. Bytes that were written in packet mode (O_DIRECT, pipe2(2)) keep their boundaries. An end that
// nobody holds any more stays closed: whoever reads sees the end of file, whoever writes gets SIGPIPE. Its inode has an
// owner, permissions and times like any other (fstat(2), fchown(2)), and whoever opens /dev/stdout needs the right ones. A
// pipe into which the kernel writes (O_NOTIFICATION_PIPE, watch_queue.rst) is refused.
//
// A pipe with an end outside of the tree is not kept: see external.go, or it is refused. How many end are open, and
// who holds them, is told by the counts in the kernel (pipe_inode_info.readers and .writers, struct file's count).
type pipeState struct {
	Size   uint32 `msgpack:"size"` // bytes
	Mode   uint32 `msgpack:"mode"` // permission bits
	UID    uint32 `msgpack:"uid"`
	GID    uint32 `msgpack:"gid"`
	Access int64  `msgpack:"atime"` // ns since 1970
	Modify int64  `msgpack:"mtime"`
}

// One end of a pipe or FIFO, or both in one when it was opened O_RDWR.
type pipeEndState struct {
	Pipe  stream.Ref `msgpack:"pipe"`
	Flags uint32     `msgpack:"flags"` // as F_GETFL
}

type pipeKey struct{ inode }

// madePipe is a pipe or FIFO at restore. Its descriptors are in the pool: nobody sees an end of file, or SIGPIPE,
// before the pool is closed.
type madePipe struct {
	fifo  *fifoState // nil for a pipe
	look  attributes // of a pipe
	ends  [2]int     // read and write end; both the same O_RDWR one for a FIFO
	taken [2]bool    // whether a file of the image is that open file description
	size  uint32
	fill  uint64 // bytes written so far
}

func claimsPipe(_ *object.Dumper, f *object.OpenFile) bool {
	return isType(f, unix.S_IFIFO) && f.FD >= 0 && !isOPath(f)
}

func dumpPipe(d *object.Dumper, f *object.OpenFile) (*pipeEndState, error) {
	ix, err := indexOf(d)
	if err != nil {
		return nil, err
	}
	use := ix.pipes[inodeOf(f)]
	if use == nil {
		return nil, fmt.Errorf("internal error: a pipe that no descriptor table holds")
	}
	if err := use.look(ix, d.View); err != nil {
		return nil, err
	}
	if use.outside {
		return nil, &object.Unsupported{
			What: "the other end of the pipe, or the same one, is also held outside of the tree",
			Do:   fmt.Sprintf("dump the whole job, or pass --external '%s' and give it back at restore with --inherit", f.Link),
		}
	}
	if use.view.Notifications {
		return nil, object.Unsupportedf("a pipe into which the kernel writes notifications (O_NOTIFICATION_PIPE) cannot be checkpointed")
	}
	flags, err := Flags(f)
	if err != nil {
		return nil, err
	}
	flags &^= unix.O_ASYNC // owner.go
	if odd := flags &^ (openFlags | largefile()); odd != 0 {
		return nil, object.Unsupportedf("it is open with flags (%#o) that cannot be restored", odd)
	}
	if flags&unix.O_NOFOLLOW != 0 && f.Stat.Nlink == 0 {
		return nil, object.Unsupportedf("a FIFO that was opened with O_NOFOLLOW, and whose name was removed, cannot be checkpointed")
	}
	ref, err := d.Once(pipeKey{inodeOf(f)}, func() (stream.Ref, error) { return addPipe(d, f, use) })
	if err != nil {
		return nil, err
	}
	return &pipeEndState{Pipe: ref, Flags: flags}, nil
}

// isOutside says whether anybody but the tree holds an end of the pipe: an open file that the tree has not, or one more
// reference to an open file than the tree has descriptors.
func (use *pipeUse) isOutside(ix *index, view *kernelview.Pipe) bool {
	if view.Readers > use.readers || view.Writers > use.writers {
		return true
	}
	for _, f := range use.files {
		if refs, ok := f.Refs.Get(); ok && refs > ix.references(f.ID) {
			return true
		}
	}
	return false
}

// addPipe adds the record of the pipe behind f, and its contents.
func addPipe(d *object.Dumper, f *object.OpenFile, use *pipeUse) (stream.Ref, error) {
	size := int(use.view.Slots) * unix.Getpagesize()
	var total uint64
	for _, b := range use.view.Buffers {
		total += uint64(b.Len)
	}
	var copied *sys.FD
	var err error
	if total > 0 {
		if copied, err = copyPipe(f, use, size, total); err != nil {
			return stream.Ref{}, err
		}
	}
	var ref stream.Ref
	if isPath(f.Link) && f.Stat.Nlink == 0 {
		s, err := removedFIFOOf(f, uint32(size))
		if err != nil {
			_ = copied.Close() // a copy: the pipe itself is as before
			return stream.Ref{}, err
		}
		ref = d.Add(removedFIFOType, s)
	} else if isPath(f.Link) {
		s, err := fifoOf(f, uint32(size))
		if err != nil {
			_ = copied.Close() // a copy: the pipe itself is as before
			return stream.Ref{}, err
		}
		ref = d.Add(fifoType, s)
	} else {
		ref = d.Add(pipeType, &pipeState{Size: uint32(size), Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid,
			Access: f.Stat.Atim.Nano(), Modify: f.Stat.Mtim.Nano()})
	}
	if copied != nil {
		buffers := use.view.Buffers
		d.Keep(copied)
		d.AddBulk(ref, func(w *stream.Writer) error {
			return writePipe(w, ref, copied, buffers)
		})
	}
	return ref, nil
}

// copyPipe returns the read end of a pipe of our own that holds what the pipe holds. The pages are shared, not copied,
// and nothing is taken from the pipe.
func copyPipe(f *object.OpenFile, use *pipeUse, size int, total uint64) (*sys.FD, error) {
	from, err := readEnd(f, use)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	r, w := sys.NewFD(p[0]), sys.NewFD(p[1])
	defer w.Close()
	if _, err := sys.SetPipeSize(w, size); err != nil {
		_ = r.Close()
		return nil, &object.Lacking{What: fmt.Sprintf("making a pipe of %d bytes", size), Err: err,
			Do: "raise /proc/sys/fs/pipe-max-size, or give cr-dump CAP_SYS_RESOURCE"}
	}
	n, err := sys.Tee(from, w, size, sys.SpliceNonblock)
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("copying the contents of the pipe: %w", err)
	}
	if uint64(n) != total {
		_ = r.Close()
		return nil, fmt.Errorf("copying the contents of the pipe: %d bytes instead of %d; somebody uses it", n, total)
	}
	return r, nil
}

// readEnd returns a descriptor that can read the pipe, of f's own or of another end that the tree has. Where only
// write ends are left the pipe is opened once more: nobody could tell but by reading from it.
func readEnd(f *object.OpenFile, use *pipeUse) (*sys.FD, error) {
	if use.reader == nil {
		fd, err := f.Descriptor()
		if err != nil {
			return nil, err
		}
		n, err := reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("opening the pipe for reading: %w", err)
		}
		return sys.NewFD(n), nil
	}
	h := use.reader
	end := &object.OpenFile{Process: h.Process, FD: h.FD, View: h.File}
	defer end.Close()
	fd, err := end.Descriptor()
	if err != nil {
		return nil, err
	}
	n, err := dup(fd)
	if err != nil {
		return nil, err
	}
	return sys.NewFD(n), nil
}

// writePipe writes the contents of a pipe as data records: runs of plain bytes, and runs of packets.
func writePipe(w *stream.Writer, ref stream.Ref, from *sys.FD, buffers []kernelview.PipeBuffer) error {
	var offset uint64
	buf := make([]byte, 0, min(stream.MaxPayload, 64<<10))
	var packets []uint32
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		err := w.Put(object.TypeData, 0, &object.Data{Of: ref, Offset: offset, Packets: packets}, buf)
		offset += uint64(len(buf))
		buf, packets = buf[:0], packets[:0]
		return err
	}
	for i, b := range buffers {
		if len(buf)+int(b.Len) > stream.MaxPayload || (i > 0 && b.Packet != buffers[i-1].Packet) {
			if err := flush(); err != nil {
				return err
			}
		}
		start := len(buf)
		buf = append(buf, make([]byte, b.Len)...)
		if err := readAll(from.Int(), buf[start:]); err != nil {
			return fmt.Errorf("reading the copy of a pipe: %w", err)
		}
		if b.Packet {
			packets = append(packets, b.Len)
		}
	}
	return flush()
}

func readAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%d bytes are missing", len(b))
		}
		b = b[n:]
	}
	return nil
}

func restorePipe(r *object.Restorer, ref stream.Ref, s *pipeState) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	m := &madePipe{size: s.Size, look: attributes{Mode: s.Mode, UID: s.UID, GID: s.GID, Access: s.Access, Modify: s.Modify}}
	err := m.look.check()
	if err != nil {
		return errors.Join(err, unix.Close(p[0]), unix.Close(p[1]))
	}
	if m.ends[0], err = r.Pool(p[0]); err != nil {
		_ = unix.Close(p[1])
		return err
	}
	if m.ends[1], err = r.Pool(p[1]); err != nil {
		return err
	}
	if err := m.setSize(); err != nil {
		return err
	}
	if err := m.look.own(m.ends[0]); err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	if err := m.look.setTimes(m.ends[0]); err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	r.Remember(ref, m)
	r.OnContent(ref, func(meta *object.Data, data []byte) error {
		// Every write to a pipe is a modification of it.
		return errors.Join(m.content(meta, data), m.look.setTimes(m.ends[0]))
	})
	return nil
}

func (m *madePipe) setSize() error {
	fd := uintptr(m.ends[1])
	have, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return fmt.Errorf("reading the capacity of a pipe: %w", err)
	}
	if uint32(have) == m.size {
		return nil
	}
	if m.size == 0 || m.size > 1<<31 {
		return object.BadImagef("a pipe of %d bytes is impossible", m.size)
	}
	got, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, int(m.size))
	if err != nil {
		return &object.Lacking{What: fmt.Sprintf("giving a pipe a capacity of %d bytes", m.size), Err: err,
			Do: "raise /proc/sys/fs/pipe-max-size, or give cr-restore CAP_SYS_RESOURCE"}
	}
	if uint32(got) != m.size {
		return object.BadImagef("a pipe of %d bytes is impossible here, it would have %d", m.size, got)
	}
	return nil
}

// content writes one piece of the contents through a description of its own: those of the image have their own flags.
func (m *madePipe) content(meta *object.Data, data []byte) error {
	if meta.Offset != m.fill || meta.Extend != 0 {
		return object.BadImagef("contents of a pipe at byte %d do not follow byte %d", meta.Offset, m.fill)
	}
	n, err := reopen(m.ends[1], unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("opening a pipe for writing: %w", err)
	}
	fd := sys.NewFD(n)
	defer fd.Close()
	if len(meta.Packets) == 0 {
		return m.write(fd, data)
	}
	// Not by open(2), which refuses O_DIRECT for a pipe.
	if err := setStatus(n, unix.O_NONBLOCK|unix.O_DIRECT); err != nil {
		return err
	}
	for _, length := range meta.Packets {
		if length == 0 || uint64(length) > uint64(len(data)) || length > uint32(unix.Getpagesize()) {
			return object.BadImagef("a packet of %d bytes does not fit", length)
		}
		if err := m.write(fd, data[:length]); err != nil {
			return err
		}
		data = data[length:]
	}
	if len(data) > 0 {
		return object.BadImagef("%d bytes of a pipe's contents belong to no packet", len(data))
	}
	return nil
}

func (m *madePipe) write(fd *sys.FD, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd.Int(), data)
		switch {
		case err == unix.EINTR: //nolint:errorlint // a bare errno
			continue
		case err == unix.EAGAIN: //nolint:errorlint // a bare errno
			return object.BadImagef("a pipe of %d bytes does not take its contents", m.size)
		case err != nil:
			return fmt.Errorf("writing the contents of a pipe: %w", err)
		}
		m.fill += uint64(n)
		data = data[n:]
	}
	return nil
}

func restorePipeEnd(r *object.Restorer, _ stream.Ref, s *pipeEndState) (int, error) {
	if err := checkFlags(s.Flags, openFlags&^(unix.O_PATH|unix.O_DIRECTORY)); err != nil {
		return -1, err
	}
	m, err := object.Recall[madePipe](r, s.Pipe)
	if err != nil {
		return -1, err
	}
	fd, err := m.open(s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening the end of a pipe: %w", err)
	}
	if err := setStatus(fd, s.Flags); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// open returns a descriptor of a new open file description. The ends that pipe2(2) made are used once each, for files
// that have not been opened by a path either, as the lack of O_LARGEFILE shows.
func (m *madePipe) open(flags uint32) (int, error) {
	access := flags & unix.O_ACCMODE
	if m.fifo == nil && flags&largefile() == 0 && access <= unix.O_WRONLY && !m.taken[access] {
		m.taken[access] = true
		return dup(m.ends[access])
	}
	// With O_NONBLOCK it cannot block, whoever else has it open; open(2) refuses O_DIRECT for a pipe.
	flags = flags&^unix.O_DIRECT | unix.O_NONBLOCK
	if m.fifo != nil && flags&unix.O_NOFOLLOW != 0 {
		return m.fifo.open(flags)
	}
	return reopen(m.ends[0], flags)
}

const (
	pipeType stream.Type = "pipe"
	fifoType stream.Type = "pipe.fifo"
)

// PipeKind is the kind of ends of pipes and FIFOs.
var PipeKind = object.NewFileKind("file.pipe", claimsPipe, dumpPipe, restorePipeEnd)

// PipeObject is the record of a pipe itself.
var PipeObject = object.NewKind(pipeType, restorePipe)

// PipeEnds returns descriptors, in the pool, of the two ends of the pipe that the open file o is an end of. ok is
// false for any other file.
func PipeEnds(r *object.Restorer, o *object.Object) (read, write int, ok bool) {
	s, is := o.State.(*pipeEndState)
	if !is {
		return -1, -1, false
	}
	m, err := object.Recall[madePipe](r, s.Pipe)
	if err != nil {
		return -1, -1, false
	}
	return m.ends[0], m.ends[1], true
}

// PipeTimes sets again the times of a pipe whose end o is, after a write to it. Those of a FIFO are its file's.
func PipeTimes(b *tracee.Batch, r *object.Restorer, o *object.Object) {
	s, is := o.State.(*pipeEndState)
	if !is {
		return
	}
	m, err := object.Recall[madePipe](r, s.Pipe)
	if err != nil || m.look.Modify == 0 {
		return
	}
	var times []byte
	for _, t := range []int64{m.look.Access, m.look.Modify} {
		ts := unix.NsecToTimespec(t)
		times = binary.NativeEndian.AppendUint64(times, uint64(ts.Sec))
		times = binary.NativeEndian.AppendUint64(times, uint64(ts.Nsec))
	}
	b.Call(b.Sys().Utimensat, m.ends[0], 0, times, 0).Note("setting the times of a pipe")
}
