package sockets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Option is a socket option that is not as in a new socket: its name as in the manual pages (socket(7), tcp(7), ip(7)), and its
// value as getsockopt(2) gives it, in the byte order of the machine.
type Option struct {
	Name  string `msgpack:"name"`
	Value []byte `msgpack:"value"`
}

// option is an option that is kept: where it is, and what a new socket has. An image can set no other.
type option struct {
	name       string
	level, opt int
	usual      []byte // what it is in a new socket, which goes into no image; nil: it always goes
	exact      bool   // a value has the length of usual; else at most maxOption bytes

	// get and set are for what getsockopt(2) and setsockopt(2) do not take alike; nil: they do.
	get func(fd int) ([]byte, error)
	set func(fd int, value []byte) error
	// right is the capability without which it cannot be set, if it needs one.
	right string
}

// maxOption bounds the value of an option.
const maxOption = 4096

// integer is an option that is an int.
func integer(name string, level, opt int, usual int32) option {
	return option{name: name, level: level, opt: opt, usual: number(usual), exact: true}
}

// number is an int as socket options have it.
func number(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }

func (o option) needs(right string) option {
	o.right = right
	return o
}

// numberOf reads an int.
func numberOf(value []byte) int32 {
	if len(value) != 4 {
		return 0
	}
	return int32(binary.NativeEndian.Uint32(value))
}

// socketOptions are those of SOL_SOCKET, in the order in which they are set: the size of buffers before what locks it, and last
// what no filter can be put in behind. Not among them: what only tells (SO_ACCEPTCONN, SO_DOMAIN, SO_PEERCRED ...), SO_ERROR, the
// filter, and what Common has.
var socketOptions = []option{
	integer("SO_DEBUG", unix.SOL_SOCKET, unix.SO_DEBUG, 0).needs("CAP_NET_ADMIN"),
	integer("SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 0),
	integer("SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 0),
	integer("SO_DONTROUTE", unix.SOL_SOCKET, unix.SO_DONTROUTE, 0),
	integer("SO_BROADCAST", unix.SOL_SOCKET, unix.SO_BROADCAST, 0),
	integer("SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0),
	integer("SO_OOBINLINE", unix.SOL_SOCKET, unix.SO_OOBINLINE, 0),
	integer("SO_NO_CHECK", unix.SOL_SOCKET, unix.SO_NO_CHECK, 0),
	integer("SO_PRIORITY", unix.SOL_SOCKET, unix.SO_PRIORITY, 0).needs("CAP_NET_ADMIN"),
	{name: "SO_LINGER", level: unix.SOL_SOCKET, opt: unix.SO_LINGER, usual: make([]byte, 8), exact: true},
	{name: "SO_SNDBUF", level: unix.SOL_SOCKET, opt: unix.SO_SNDBUF, set: setBuffer(unix.SO_SNDBUF, unix.SO_SNDBUFFORCE)},
	{name: "SO_RCVBUF", level: unix.SOL_SOCKET, opt: unix.SO_RCVBUF, set: setBuffer(unix.SO_RCVBUF, unix.SO_RCVBUFFORCE)},
	integer("SO_BUF_LOCK", unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0), // which the two before set
	integer("SO_RCVLOWAT", unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1),
	{name: "SO_RCVTIMEO", level: unix.SOL_SOCKET, opt: unix.SO_RCVTIMEO_NEW, usual: make([]byte, 16), exact: true},
	{name: "SO_SNDTIMEO", level: unix.SOL_SOCKET, opt: unix.SO_SNDTIMEO_NEW, usual: make([]byte, 16), exact: true},
	integer("SO_PASSCRED", unix.SOL_SOCKET, unix.SO_PASSCRED, 0),
	integer("SO_PASSSEC", unix.SOL_SOCKET, unix.SO_PASSSEC, 0),
	integer("SO_PASSPIDFD", unix.SOL_SOCKET, unix.SO_PASSPIDFD, 0),
	integer("SO_PASSRIGHTS", unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1),
	integer("SO_TIMESTAMP", unix.SOL_SOCKET, unix.SO_TIMESTAMP_OLD, 0),
	integer("SO_TIMESTAMPNS", unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_OLD, 0),
	integer("SO_TIMESTAMP_NEW", unix.SOL_SOCKET, unix.SO_TIMESTAMP_NEW, 0),
	integer("SO_TIMESTAMPNS_NEW", unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 0),
	{name: "SO_TIMESTAMPING_NEW", level: unix.SOL_SOCKET, opt: unix.SO_TIMESTAMPING_NEW, usual: make([]byte, 8), exact: true},
	{name: "SO_TIMESTAMPING", level: unix.SOL_SOCKET, opt: unix.SO_TIMESTAMPING_OLD, usual: make([]byte, 8), exact: true},
	{name: "SO_BINDTODEVICE", level: unix.SOL_SOCKET, opt: unix.SO_BINDTODEVICE, usual: []byte{}, right: "CAP_NET_RAW"},
	integer("SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0).needs("CAP_NET_ADMIN"),
	integer("SO_RXQ_OVFL", unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 0),
	integer("SO_WIFI_STATUS", unix.SOL_SOCKET, unix.SO_WIFI_STATUS, 0),
	integer("SO_NOFCS", unix.SOL_SOCKET, unix.SO_NOFCS, 0),
	integer("SO_SELECT_ERR_QUEUE", unix.SOL_SOCKET, unix.SO_SELECT_ERR_QUEUE, 0),
	integer("SO_BUSY_POLL", unix.SOL_SOCKET, unix.SO_BUSY_POLL, 0).needs("CAP_NET_ADMIN"),
	integer("SO_PREFER_BUSY_POLL", unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, 0).needs("CAP_NET_ADMIN"),
	integer("SO_INCOMING_CPU", unix.SOL_SOCKET, unix.SO_INCOMING_CPU, -1),
	{name: "SO_MAX_PACING_RATE", level: unix.SOL_SOCKET, opt: unix.SO_MAX_PACING_RATE, get: getPacing, usual: bytes.Repeat([]byte{0xff}, 8), exact: true},
	integer("SO_ZEROCOPY", unix.SOL_SOCKET, unix.SO_ZEROCOPY, 0),
	integer("SO_RESERVE_MEM", unix.SOL_SOCKET, unix.SO_RESERVE_MEM, 0),
	integer("SO_TXREHASH", unix.SOL_SOCKET, unix.SO_TXREHASH, 1),
	integer("SO_RCVMARK", unix.SOL_SOCKET, unix.SO_RCVMARK, 0).needs("CAP_NET_ADMIN"),
	integer("SO_RCVPRIORITY", unix.SOL_SOCKET, unix.SO_RCVPRIORITY, 0).needs("CAP_NET_ADMIN"),
	integer("SO_PEEK_OFF", unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1),
}

// setBuffer sets the size of a buffer. The kernel doubles what it is told (socket(7)), and takes it beyond the limits of
// net.core.rmem_max and wmem_max only from CAP_NET_ADMIN.
func setBuffer(plain, force int) func(int, []byte) error {
	return func(fd int, value []byte) error {
		want := numberOf(value)
		if len(value) != 4 || want <= 0 {
			return object.BadImagef("a socket buffer of %d bytes", want)
		}
		half := number(int32((int64(want) + 1) / 2))
		err := sys.Setsockopt(fd, unix.SOL_SOCKET, force, half)
		if errors.Is(err, unix.EPERM) {
			err = sys.Setsockopt(fd, unix.SOL_SOCKET, plain, half)
		}
		if err != nil {
			return err
		}
		got := make([]byte, 4)
		if _, err := sys.Getsockopt(fd, unix.SOL_SOCKET, plain, got); err != nil {
			return err
		}
		if numberOf(got) < want {
			return fmt.Errorf("it became %d bytes, %d are needed: %w", numberOf(got), want, unix.EPERM)
		}
		return nil
	}
}

// getPacing asks for all 64 bits of the rate, in bytes a second; ^0: none.
func getPacing(fd int) ([]byte, error) {
	b := make([]byte, 8)
	n, err := sys.Getsockopt(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, b)
	if n == 4 { // of a 32-bit kernel
		rate := uint64(binary.NativeEndian.Uint32(b))
		if rate == 1<<32-1 {
			rate = 1<<64 - 1
		}
		binary.NativeEndian.PutUint64(b, rate)
	}
	return b, err
}

// value asks for an option; nil where this socket or this kernel has no such option.
func (o *option) value(fd int) ([]byte, error) {
	var b []byte
	var err error
	if o.get != nil {
		b, err = o.get(fd)
	} else {
		size := maxOption
		if o.exact {
			size = len(o.usual)
		} else if o.usual == nil {
			size = 4
		}
		b = make([]byte, size)
		var n int
		n, err = sys.Getsockopt(fd, o.level, o.opt, b)
		b = b[:min(n, len(b))]
	}
	switch {
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTCONN):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("asking for %s: %w", o.name, err)
	}
	return b, nil
}

// readOptions returns what of a table is not as in a new socket.
func readOptions(fd int, table []option) ([]Option, error) {
	var out []Option
	for i := range table {
		o := &table[i]
		b, err := o.value(fd)
		if err != nil {
			return nil, err
		}
		if b == nil || o.usual != nil && bytes.Equal(b, o.usual) {
			continue
		}
		out = append(out, Option{o.name, b})
	}
	return out, nil
}

// checkOptions refuses what the table does not have, and what comes twice or in another order.
func checkOptions(all []Option, table []option) error {
	next := 0
	for i := range all {
		at := slices.IndexFunc(table[next:], func(o option) bool { return o.name == all[i].Name })
		if at < 0 {
			return object.BadImagef("socket option %q does not belong here", clip(all[i].Name))
		}
		o := &table[next+at]
		n := len(all[i].Value)
		if n > maxOption || o.exact && n != len(o.usual) || o.usual == nil && n != 4 {
			return object.BadImagef("socket option %s with %d bytes", o.name, n)
		}
		next += at + 1
	}
	return nil
}

// setOptions sets the options of an image that the table has, but for those of which skip says so. One that has its value already
// needs no privilege.
func setOptions(fd int, all []Option, table []option, skip func(name string) bool) error {
	for i := range all {
		at := slices.IndexFunc(table, func(o option) bool { return o.name == all[i].Name })
		if at < 0 || skip != nil && skip(all[i].Name) {
			continue
		}
		if err := table[at].apply(fd, all[i].Value); err != nil {
			return err
		}
	}
	return nil
}

func (o *option) apply(fd int, value []byte) error {
	have, err := o.value(fd)
	if err != nil {
		return err
	}
	if have != nil && bytes.Equal(have, value) {
		return nil
	}
	return o.assign(fd, value)
}

// assign is apply for an option that has another value.
func (o *option) assign(fd int, value []byte) (err error) {
	if o.set != nil {
		err = o.set(fd, value)
	} else {
		err = sys.Setsockopt(fd, o.level, o.opt, value)
	}
	switch {
	case err == nil:
		return nil
	case o.right != "" && errors.Is(err, unix.EPERM):
		return &object.Lacking{What: "setting " + o.name + " of a socket", Do: "give cr-restore " + o.right, Err: err}
	case errors.Is(err, unix.EPERM):
		return &object.Lacking{What: "setting " + o.name + " of a socket", Do: "raise net.core.rmem_max and net.core.wmem_max, or give cr-restore CAP_NET_ADMIN", Err: err}
	case errors.Is(err, unix.ENOPROTOOPT):
		return &object.Lacking{What: "this kernel has no socket option " + o.name, Err: err}
	}
	return fmt.Errorf("setting %s of a socket: %w", o.name, err)
}

// usualOptions sets what an image does not name as it is in a new socket: one that was accepted has some options from who listens.
func usualOptions(fd int, all []Option, table []option) error {
	for i := range table {
		o := &table[i]
		if !o.exact || find(all, o.name) != nil || o.name == "SO_BUF_LOCK" || o.name == "SO_INCOMING_CPU" {
			continue
		}
		have, err := o.value(fd)
		if err == nil && have != nil && !bytes.Equal(have, o.usual) { // nil: it has no such option
			err = o.assign(fd, o.usual)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find returns the value of an option of an image, nil when it has its usual one.
func find(all []Option, name string) []byte {
	for i := range all {
		if all[i].Name == name {
			return all[i].Value
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
