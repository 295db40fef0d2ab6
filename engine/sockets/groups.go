package sockets

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// ipGroup is a multicast group in which a socket is (IP_ADD_MEMBERSHIP and what else is in ip(7), IPV6_JOIN_GROUP, MCAST_JOIN_GROUP).
// No call lists the groups of a socket. But the kernel lists those of the interfaces (/proc/net/igmp, igmp6), and a socket says of
// any group by which sources it filters there (MCAST_MSFILTER), or that it is not in it.
type ipGroup struct {
	Group     []byte `msgpack:"group"` // 4 or 16 bytes
	Interface string `msgpack:"interface"`
	Include   bool   `msgpack:"include,omitempty"` // only what comes from Sources; else all but that
	Sources   []byte `msgpack:"sources,omitempty"` // addresses of the length of Group, one behind another
}

// maxSources bounds the sources of one group: net.ipv4.igmp_max_msf is 10, net.ipv6.mld_max_msf 64 by default.
const maxSources = 1 << 12

// Layout of struct group_filter and struct group_req (linux/in.h): a struct sockaddr_storage in them is aligned like a pointer.
const (
	groupAt     = strconv.IntSize / 8
	sizeofStore = 128
	modeAt      = groupAt + sizeofStore
	sourcesAt   = modeAt + 8
)

// Modes of group_filter.
const (
	filterExclude = 0
	filterInclude = 1
)

// readGroups returns the groups of a socket of a process.
func readGroups(pid, fd int, v6 bool) ([]ipGroup, error) {
	var out []ipGroup
	add := func(level int, index uint32, group []byte) error {
		g, err := readGroup(fd, level, index, group)
		if g != nil {
			out = append(out, *g)
		}
		return err
	}
	if err := eachGroup(pid, "igmp", parseIGMP, func(index uint32, group []byte) error { return add(unix.IPPROTO_IP, index, group) }); err != nil {
		return nil, err
	}
	if v6 {
		if err := eachGroup(pid, "igmp6", parseIGMP6, func(index uint32, group []byte) error { return add(unix.IPPROTO_IPV6, index, group) }); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func eachGroup(pid int, file string, parse func(text string, fn func(uint32, []byte) error) error, fn func(uint32, []byte) error) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without multicast
	}
	if err != nil {
		return fmt.Errorf("reading the multicast groups: %w", err)
	}
	return parse(string(b), fn)
}

// parseIGMP parses /proc/net/igmp: a line of each interface that begins with its number, behind it one of each group, indented, with
// the address as a number of the machine.
func parseIGMP(text string, fn func(uint32, []byte) error) error {
	index := uint64(0)
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if line[0] >= '0' && line[0] <= '9' {
			n, err := strconv.ParseUint(words[0], 10, 32)
			if err != nil {
				return fmt.Errorf("parsing /proc/net/igmp: %w", err)
			}
			index = n
			continue
		}
		if index == 0 {
			continue // the heading
		}
		n, err := strconv.ParseUint(words[0], 16, 32)
		if err != nil {
			return fmt.Errorf("parsing /proc/net/igmp: %w", err)
		}
		if err := fn(uint32(index), binary.NativeEndian.AppendUint32(nil, uint32(n))); err != nil {
			return err
		}
	}
	return nil
}

// parseIGMP6 parses /proc/net/igmp6: number and name of the interface, and the address in hexadecimal digits.
func parseIGMP6(text string, fn func(uint32, []byte) error) error {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 3 {
			continue
		}
		n, err1 := strconv.ParseUint(words[0], 10, 32)
		group, err2 := hex.DecodeString(words[2])
		if err1 != nil || err2 != nil || len(group) != 16 {
			return fmt.Errorf("parsing /proc/net/igmp6: %w", strconv.ErrSyntax)
		}
		if err := fn(uint32(n), group); err != nil {
			return err
		}
	}
	return nil
}

// readGroup asks whether a socket is in a group; nil: no.
func readGroup(fd, level int, index uint32, group []byte) (*ipGroup, error) {
	for room := 16; ; {
		b := groupFilter(index, group, filterExclude, uint32(room))
		_, err := sys.Getsockopt(fd, level, unix.MCAST_MSFILTER, b)
		switch {
		case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("asking for a multicast group: %w", err)
		}
		n := int(binary.NativeEndian.Uint32(b[modeAt+4:]))
		if n > maxSources {
			return nil, object.Unsupportedf("it filters %d sources of a multicast group, which cannot be checkpointed", n)
		}
		if n > room {
			room = n
			continue
		}
		name, err := interfaceName(fd, index)
		if err != nil {
			return nil, err
		}
		g := &ipGroup{Group: group, Interface: name, Include: binary.NativeEndian.Uint32(b[modeAt:]) == filterInclude}
		for i := range n {
			g.Sources = append(g.Sources, addressIn(b[sourcesAt+i*sizeofStore:], len(group))...)
		}
		return g, nil
	}
}

// groupFilter makes a struct group_filter with room for sources.
func groupFilter(index uint32, group []byte, mode, sources uint32) []byte {
	b := make([]byte, sourcesAt+int(sources)*sizeofStore)
	binary.NativeEndian.PutUint32(b, index)
	putAddress(b[groupAt:], group)
	binary.NativeEndian.PutUint32(b[modeAt:], mode)
	binary.NativeEndian.PutUint32(b[modeAt+4:], sources)
	return b
}

// putAddress writes an address as a struct sockaddr_in or sockaddr_in6 without a port.
func putAddress(b, addr []byte) {
	if len(addr) == 4 {
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		copy(b[4:], addr)
		return
	}
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	copy(b[8:], addr)
}

// addressIn reads what putAddress writes.
func addressIn(b []byte, length int) []byte {
	if length == 4 {
		return b[4:8]
	}
	return b[8:24]
}

func (g *ipGroup) check() error {
	n := len(g.Group)
	if n != 4 && n != 16 || len(g.Sources)%n != 0 || len(g.Sources)/n > maxSources || g.Interface == "" || g.Include && len(g.Sources) == 0 {
		return object.BadImagef("a multicast group of %d bytes with sources of %d is impossible", n, len(g.Sources))
	}
	return nil
}

// join has a socket join the group.
func (g *ipGroup) join(fd int) error {
	level := unix.IPPROTO_IP
	if len(g.Group) == 16 {
		level = unix.IPPROTO_IPV6
	}
	index, err := interfaceIndex(fd, g.Interface)
	if err != nil {
		return err
	}
	// struct group_req begins like struct group_filter.
	request := groupFilter(index, g.Group, 0, 0)[:modeAt]
	if err := sys.Setsockopt(fd, level, unix.MCAST_JOIN_GROUP, request); err != nil {
		return fmt.Errorf("joining a multicast group on %s: %w", g.Interface, err)
	}
	n := len(g.Sources) / len(g.Group)
	if n == 0 {
		return nil
	}
	mode := uint32(filterExclude)
	if g.Include {
		mode = filterInclude
	}
	b := groupFilter(index, g.Group, mode, uint32(n))
	for i := range n {
		putAddress(b[sourcesAt+i*sizeofStore:], g.Sources[i*len(g.Group):(i+1)*len(g.Group)])
	}
	if err := sys.Setsockopt(fd, level, unix.MCAST_MSFILTER, b); err != nil {
		return &object.Lacking{What: fmt.Sprintf("setting %d sources of a multicast group", n), Err: err,
			Do: "raise net.ipv4.igmp_max_msf or net.ipv6.mld_max_msf"}
	}
	return nil
}
