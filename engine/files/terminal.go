package files

import (
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
)

// TerminalOf looks at the terminal that f is open on. known: the source of the kernel view can.
func TerminalOf(d *object.Dumper, f *object.OpenFile) (t kernelview.Terminal, known bool, err error) {
	view, ok := d.View.(kernelview.TerminalView)
	if !ok || f.View.Kind != kernelview.KindTTY {
		return t, false, nil
	}
	t, err = view.Terminal(f.View.ID)
	return t, err == nil, err
}

// OwnTerminal says whether a terminal is the tree's own and so goes into the image: one of devpts whose master the tree has, or
// nobody any more.
func OwnTerminal(d *object.Dumper, f *object.OpenFile) bool {
	t, known, err := TerminalOf(d, f)
	if err != nil || !known || !t.Slave {
		return false
	}
	if t.PeerOpenings == 0 {
		return true // hung up
	}
	_, ours, err := MasterOf(d, t.Peer)
	return err == nil && ours
}

// MasterOf returns a descriptor of the tree that is the master of this identity.
func MasterOf(d *object.Dumper, id kernelview.ID) (Holder, bool, error) {
	ix, err := indexOf(d)
	if err != nil {
		return Holder{}, false, err
	}
	if ix.sides == nil {
		ix.sides = map[kernelview.ID]Holder{}
		view, ok := d.View.(kernelview.TerminalView)
		for _, h := range ix.masters {
			if !ok || h.File.Kind != kernelview.KindTTY {
				continue
			}
			t, err := view.Terminal(h.File.ID)
			if err != nil {
				return Holder{}, false, err
			}
			ix.sides[t.ID] = h
		}
	}
	h, ok := ix.sides[id]
	return h, ok, nil
}

// Terminals returns a descriptor of every open file of a terminal that the tree has, but of masters.
func Terminals(d *object.Dumper) ([]Holder, error) {
	ix, err := indexOf(d)
	if err != nil {
		return nil, err
	}
	return ix.terminals, nil
}

// DumpFlags returns the flags of a file that is restored by opening it.
func DumpFlags(f *object.OpenFile) (uint32, error) { return dumpFlags(f) }

// CheckDeviceFlags refuses flags in an image that do not belong to an open character device.
func CheckDeviceFlags(flags uint32) error {
	return checkFlags(flags, openFlags&^(unix.O_PATH|unix.O_DIRECTORY))
}

// Reopen opens what fd leads to once more; see CheckDeviceFlags.
func Reopen(fd int, flags uint32) (int, error) { return reopen(fd, flags) }

// PinDevice opens a character device with O_PATH, which does not act on it.
func PinDevice(path string) (fd int, rdev uint64, err error) {
	pinned, st, err := pin(path, unix.S_IFCHR, false)
	if err != nil {
		return -1, 0, err
	}
	return pinned.Disown(), uint64(st.Rdev), nil
}

// SetStatus makes the status flags of fd those of flags.
func SetStatus(fd int, flags uint32) error { return setStatus(fd, flags) }
