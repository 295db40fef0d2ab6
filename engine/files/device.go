package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
	"crpipe/stream"
)

// The character devices without state of their own: null, zero, full, random, urandom (mem(4), random(4)). The device
// numbers say what it is; a path that leads to another device at restore is refused. One that was opened under a name
// which is gone (the /dev of a container) is opened under its usual name. They have no position.
type deviceState struct {
	Path  string `msgpack:"path"`
	Flags uint32 `msgpack:"flags"` // as F_GETFL
	Major uint32 `msgpack:"major"`
	Minor uint32 `msgpack:"minor"`
}

// plainDevices are the minors of major 1 (Documentation/admin-guide/devices.txt) that this kind keeps.
var plainDevices = map[uint32]string{3: "/dev/null", 5: "/dev/zero", 7: "/dev/full", 8: "/dev/random", 9: "/dev/urandom"}

func plainDevice(st *unix.Stat_t) (usual string, ok bool) {
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(uint64(st.Rdev)) != 1 {
		return "", false
	}
	usual, ok = plainDevices[unix.Minor(uint64(st.Rdev))]
	return usual, ok
}

func claimsDevice(_ *object.Dumper, f *object.OpenFile) bool {
	_, ok := plainDevice(&f.Stat)
	return ok && isPath(f.Link) && !isOPath(f)
}

func dumpDevice(_ *object.Dumper, f *object.OpenFile) (*deviceState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	p := f.Link
	// Any node with these numbers is the same device.
	if st, err := lookup(f.Process, p); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != f.Stat.Rdev {
		p, _ = plainDevice(&f.Stat)
	}
	rdev := uint64(f.Stat.Rdev)
	return &deviceState{Path: p, Flags: flags, Major: unix.Major(rdev), Minor: unix.Minor(rdev)}, nil
}

func restoreDevice(_ *object.Restorer, _ stream.Ref, s *deviceState) (int, error) {
	if err := checkFlags(s.Flags, openFlags&^unix.O_PATH); err != nil {
		return -1, err
	}
	if _, ok := plainDevices[s.Minor]; !ok || s.Major != 1 {
		return -1, object.BadImagef("character device %d:%d does not belong here", s.Major, s.Minor)
	}
	pinned, st, err := pin(s.Path, unix.S_IFCHR, s.Flags&unix.O_NOFOLLOW != 0)
	if err != nil {
		return -1, err
	}
	defer pinned.Close()
	if major, minor := unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)); major != s.Major || minor != s.Minor {
		return -1, fmt.Errorf("%s is character device %d:%d now, it was %d:%d when it was dumped", s.Path, major, minor, s.Major, s.Minor)
	}
	fd, err := openPinned(s.Path, pinned, st, s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", s.Path, err)
	}
	return fd, nil
}

// DeviceKind is the kind of character devices that hold no state.
var DeviceKind = object.NewFileKind("file.device", claimsDevice, dumpDevice, restoreDevice)
