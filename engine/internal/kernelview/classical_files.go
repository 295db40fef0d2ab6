package kernelview

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// openFiles numbers the open files that descriptors lead to. What is certainly not the same file is not compared: its kind,
// file system and inode differ. Among the others kcmp gives an order.
type openFiles struct {
	byKey  map[fileKey][]*heldFile
	byID   map[ID]*heldFile
	tables map[ID][]FD  // by the identity of the table
	shown  map[int]bool // processes whose tables have been shown

	outside map[uint64][]uint32 // by inode of a pipe: the flags of the descriptors that other processes have
}

type fileKey struct {
	dev, ino uint64
	link     string
}

// heldFile is an open file and one descriptor that leads to it.
type heldFile struct {
	File
	tid, fd int
	key     fileKey
}

func (s *openFiles) init() {
	*s = openFiles{byKey: map[fileKey][]*heldFile{}, byID: map[ID]*heldFile{}, tables: map[ID][]FD{}, shown: map[int]bool{}}
}

// Files implements View.
func (v *classicalView) Files(tids []int) ([]FileTable, error) {
	out := make([]FileTable, len(tids))
	err := v.do(func() error {
		for i, tid := range tids {
			id, err := v.identify(sys.KcmpFiles, tid)
			if err != nil {
				return err
			}
			v.files.shown[tid] = true
			fds, ok := v.files.tables[id.V]
			if !ok {
				if fds, err = v.table(tid); err != nil {
					return err
				}
				v.files.tables[id.V] = fds
			}
			out[i] = FileTable{Tid: tid, ID: id, FDs: fds}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (v *classicalView) table(tid int) ([]FD, error) {
	numbers, err := procfs.Descriptors(tid)
	if err != nil {
		return nil, err
	}
	out := make([]FD, 0, len(numbers))
	for _, n := range numbers {
		f, cloexec, err := v.openFile(tid, n)
		if err != nil {
			return nil, fmt.Errorf("pid %d: descriptor %d: %w", tid, n, err)
		}
		out = append(out, FD{FD: n, CloseOnExec: cloexec, File: &f.File})
	}
	return out, nil
}

// openFile looks at a descriptor and at what is known of other ones that lead to the same file.
func (v *classicalView) openFile(tid, fd int) (*heldFile, bool, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", tid, fd)
	link, err := os.Readlink(path)
	if err != nil {
		return nil, false, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil { // does not open it
		return nil, false, fmt.Errorf("looking at it: %w", err)
	}
	info, err := procfs.ReadFdinfo(tid, fd)
	if err != nil {
		return nil, false, err
	}
	cloexec := info.Flags&unix.O_CLOEXEC != 0
	key := fileKey{dev: uint64(st.Dev), ino: st.Ino}
	if strings.HasPrefix(link, "anon_inode:") {
		key.link = link // they share one inode
	}
	list := v.files.byKey[key]
	low, high := 0, len(list)
	for low < high {
		mid := (low + high) / 2
		order, err := sys.Kcmp(tid, list[mid].tid, sys.KcmpFile, fd, list[mid].fd)
		if err != nil {
			return nil, false, fmt.Errorf("comparing it with descriptor %d of pid %d by kcmp: %w", list[mid].fd, list[mid].tid, err)
		}
		switch order {
		case sys.Same:
			return list[mid], cloexec, nil
		case sys.Less:
			high = mid
		case sys.Greater:
			low = mid + 1
		default:
			return nil, false, errors.New("kcmp(2) gives no order")
		}
	}
	f := &heldFile{tid: tid, fd: fd, key: key, File: File{
		ID: v.newID(), Flags: Is(info.Flags &^ unix.O_CLOEXEC), Pos: Is(info.Pos), Mount: Is(int32(info.MntID)),
		Rdev: Is(uint64(st.Rdev)), Mode: Is(uint16(st.Mode)), Size: Is(st.Size), Nlink: Is(uint32(st.Nlink)), Ino: Is(st.Ino),
	}}
	f.Kind = kindOf(link, &st, info.Flags)
	list = append(list, nil)
	copy(list[low+1:], list[low:])
	list[low] = f
	v.files.byKey[key] = list
	v.files.byID[f.ID] = f
	return f, cloexec, nil
}

// kindOf tells the kind by what /proc shows. Of a character device it does not say whether it is a terminal.
func kindOf(link string, st *unix.Stat_t, flags uint32) Kind {
	if flags&unix.O_PATH != 0 {
		return KindPath
	}
	if name, ok := strings.CutPrefix(link, "anon_inode:"); ok {
		for kind, names := range map[Kind][]string{
			KindEventfd: {"[eventfd]"}, KindEpoll: {"[eventpoll]"}, KindSignalfd: {"[signalfd]"}, KindTimerfd: {"[timerfd]"},
			KindInotify: {"inotify", "[inotify]"}, KindFanotify: {"[fanotify]"}, KindPidfd: {"[pidfd]"}, KindIOUring: {"[io_uring]"},
			KindUserfaultfd: {"[userfaultfd]"}, KindPerf: {"[perf_event]"},
		} {
			for _, n := range names {
				if n == name {
					return kind
				}
			}
		}
		return KindAnon
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return KindRegular
	case unix.S_IFDIR:
		return KindDirectory
	case unix.S_IFLNK:
		return KindSymlink
	case unix.S_IFBLK:
		return KindBlockDevice
	case unix.S_IFIFO:
		return KindPipe
	case unix.S_IFSOCK:
		return KindSocket
	}
	return KindUnknown
}

// held returns an open file of a kind.
func (v *classicalView) held(id ID, kind Kind) (*heldFile, error) {
	f := v.files.byID[id]
	if f == nil || f.Kind != kind {
		return nil, ErrKind
	}
	return f, nil
}

func (f *heldFile) info() (*procfs.Fdinfo, error) { return procfs.ReadFdinfo(f.tid, f.fd) }

// duplicate returns a descriptor of our own that leads to the file.
func (f *heldFile) duplicate() (*sys.FD, error) {
	pidfd, err := sys.PidfdOfThread(f.tid)
	if err != nil {
		return nil, fmt.Errorf("opening pidfd: %w", err)
	}
	defer pidfd.Close()
	dup, err := sys.PidfdGetfd(pidfd, f.fd)
	if err != nil {
		return nil, fmt.Errorf("duplicating descriptor: %w", err)
	}
	return dup, nil
}
