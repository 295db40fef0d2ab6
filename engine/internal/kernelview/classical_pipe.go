package kernelview

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// Pipe implements View. Who else has the pipe is told by the descriptors of all processes that may be looked at and, where the tree
// has no end of one kind, by what poll(2) says; that somebody else's process has the same ends as the tree cannot be known.
func (v *classicalView) Pipe(id ID) (Pipe, error) {
	f, err := v.held(id, KindPipe)
	if err != nil {
		return Pipe{}, err
	}
	fd, err := f.duplicate()
	if err != nil {
		return Pipe{}, err
	}
	defer fd.Close()
	size, err := sys.PipeSize(fd)
	if err != nil {
		return Pipe{}, fmt.Errorf("asking for the size of the pipe: %w", err)
	}
	p := Pipe{Slots: uint32(size / os.Getpagesize())}
	ends := v.files.byKey[f.key]
	p.ID = ends[0].ID
	var reader *heldFile
	for _, e := range ends {
		flags := e.Flags.V
		if e.Kind != KindPipe { // O_PATH
			continue
		}
		p.ID = min(p.ID, e.ID)
		p.count(flags)
		if reader == nil && flags&unix.O_ACCMODE != unix.O_WRONLY {
			reader = e
		}
	}
	if err := v.countOutside(&p, f, fd); err != nil {
		return Pipe{}, err
	}
	total, err := sys.PipeUnread(fd)
	if err != nil {
		return Pipe{}, fmt.Errorf("asking how much is in the pipe: %w", err)
	}
	if total == 0 {
		return p, nil
	}
	from := fd
	if reader == nil {
		if from, err = sys.Open(fmt.Sprintf("/proc/self/fd/%d", fd.Int()), unix.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return Pipe{}, fmt.Errorf("opening the pipe for reading: %w", err)
		}
		defer from.Close()
	} else if reader != f {
		if from, err = reader.duplicate(); err != nil {
			return Pipe{}, err
		}
		defer from.Close()
	}
	c := contents{from: from, size: size, total: total}
	if p.Buffers, err = c.buffers(); err != nil {
		return Pipe{}, fmt.Errorf("looking at what is in the pipe: %w", err)
	}
	return p, nil
}

func (p *Pipe) count(flags uint32) {
	p.Files++
	if mode := flags & unix.O_ACCMODE; mode != unix.O_WRONLY {
		p.Readers++
	}
	if mode := flags & unix.O_ACCMODE; mode != unix.O_RDONLY {
		p.Writers++
	}
}

// countOutside counts the ends that others have.
func (v *classicalView) countOutside(p *Pipe, f *heldFile, fd *sys.FD) error {
	if v.files.outside == nil {
		outside, err := v.pipesOutside()
		if err != nil {
			return err
		}
		v.files.outside = outside
	}
	known := len(v.files.outside[f.key.ino])
	for _, flags := range v.files.outside[f.key.ino] {
		p.count(flags)
	}
	if known > 0 || p.Readers > 0 && p.Writers > 0 {
		return nil
	}
	poll := []unix.PollFd{{Fd: int32(fd.Int()), Events: unix.POLLIN | unix.POLLOUT}}
	if _, err := unix.Poll(poll, 0); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("polling the pipe: %w", err)
	}
	// A pipe without a writer has hung up (unless a FIFO has never had one), one without a reader is in error.
	if p.Readers == 0 && poll[0].Revents&unix.POLLERR == 0 {
		p.count(unix.O_RDONLY)
	}
	if p.Writers == 0 && poll[0].Revents&unix.POLLHUP == 0 && strings.HasPrefix(v.linkOf(f), "pipe:") {
		p.count(unix.O_WRONLY)
	}
	return nil
}

func (v *classicalView) linkOf(f *heldFile) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", f.tid, f.fd))
	if err != nil {
		return ""
	}
	return link
}

// pipesOutside looks at the descriptors of all other processes. Those of this process are duplicates, or are held by whoever
// started it as well.
func (v *classicalView) pipesOutside() (map[uint64][]uint32, error) {
	pids, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	fifos := map[string]bool{} // names that a FIFO of the tree has
	for _, list := range v.files.byKey {
		for _, f := range list {
			if f.Kind == KindPipe {
				fifos[v.linkOf(f)] = true
			}
		}
	}
	out := map[uint64][]uint32{}
	shared := map[ID]bool{}
	for id := range v.files.tables {
		shared[id] = true
	}
	for _, pid := range pids {
		if v.files.shown[pid] || pid == os.Getpid() {
			continue
		}
		numbers, err := procfs.Descriptors(pid)
		if err != nil {
			continue // gone, or not to be looked at
		}
		for _, n := range numbers {
			path := procfs.Path(pid, "fd/"+strconv.Itoa(n))
			link, err := os.Readlink(path)
			if err != nil || !fifos[link] {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil {
				continue
			}
			info, err := procfs.ReadFdinfo(pid, n)
			if err != nil || info.Flags&unix.O_PATH != 0 {
				continue
			}
			out[st.Ino] = append(out[st.Ino], info.Flags)
		}
	}
	return out, nil
}

// contents finds out where the messages in a pipe begin and end, on copies.
type contents struct {
	from        *sys.FD
	size, total int
}

// copied returns a copy of the pipe whose first bytes have been read, by reads of these lengths.
func (c *contents) copied(reads ...int) (*sys.FD, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	r, w := sys.NewFD(p[0]), sys.NewFD(p[1])
	defer w.Close()
	if _, err := sys.SetPipeSize(w, c.size); err != nil {
		_ = r.Close() // a copy
		return nil, fmt.Errorf("making a pipe of %d bytes: %w", c.size, err)
	}
	n, err := sys.Tee(c.from, w, c.size, sys.SpliceNonblock)
	if err == nil && n != c.total {
		err = fmt.Errorf("%d bytes instead of %d; somebody uses it", n, c.total)
	}
	for _, length := range reads {
		if err == nil {
			_, err = unix.Read(r.Int(), make([]byte, length))
		}
	}
	if err != nil {
		_ = r.Close() // a copy
		return nil, fmt.Errorf("copying the pipe: %w", err)
	}
	return r, nil
}

// left is how much is in the pipe after reads of these lengths. One that ends inside of a packet takes all of it.
func (c *contents) left(reads ...int) (int, error) {
	r, err := c.copied(reads...)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return sys.PipeUnread(r)
}

// buffers returns the messages: packets, and runs of plain bytes between them. A packet of a single byte behind plain ones
// cannot be told from one more plain byte at the end of the pipe.
func (c *contents) buffers() ([]PipeBuffer, error) {
	all, err := c.copied()
	if err != nil {
		return nil, err
	}
	defer all.Close()
	var out []PipeBuffer
	var before []int
	buf := make([]byte, c.total+1)
	for done := 0; done < c.total; {
		n, err := unix.Read(all.Int(), buf) // ends behind a packet
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return nil, errors.New("it ended too early")
		}
		rest := c.total - done - n
		plain, err := c.plainPart(before, n, rest)
		if err != nil {
			return nil, err
		}
		if plain > 0 {
			out = append(out, PipeBuffer{Len: uint32(plain)})
		}
		if plain < n {
			out = append(out, PipeBuffer{Len: uint32(n - plain), Packet: true})
		}
		before = append(before, n)
		done += n
	}
	return out, nil
}

// plainPart returns how many of the n bytes that one read gives, with rest behind them, come before a packet.
func (c *contents) plainPart(before []int, n, rest int) (int, error) {
	inPacket := func(s int) (bool, error) {
		left, err := c.left(append(append([]int(nil), before...), s)...)
		return left == rest, err
	}
	if n == 1 {
		if rest > 0 {
			return 0, nil
		}
		return 1, nil
	}
	last, err := inPacket(n - 1)
	if err != nil {
		return 0, err
	}
	switch {
	case !last && rest > 0:
		return n - 1, nil // a packet of one byte
	case !last:
		return n, nil
	}
	low, high := max(n-unix.PathMax, 0), n-1 // a packet has at most PIPE_BUF bytes, which is as many
	for low < high {
		mid := (low + high) / 2
		in, err := inPacket(mid + 1)
		if err != nil {
			return 0, err
		}
		if in {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low, nil
}
