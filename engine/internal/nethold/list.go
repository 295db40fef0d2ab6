package nethold

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// List returns the names of all tables of this network namespace that begin with Prefix.
func List() ([]string, error) {
	l, err := dial()
	if err != nil {
		return nil, err
	}
	defer l.fd.Close()
	all, err := l.tables()
	var names []string
	for _, t := range all {
		names = append(names, t.name)
	}
	return names, err
}

// Found is a hold that stays, as it is now.
type Found struct {
	Packets
	Note string
}

// Find looks for a hold that stays. nil: there is none, or nothing is left of it.
func Find(name string) (*Found, error) {
	l, err := dial()
	if err != nil {
		return nil, err
	}
	defer l.fd.Close()
	all, err := l.tables()
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if t.name != name {
			continue
		}
		p, err := l.elements(name)
		if err != nil || len(p.Conns)+len(p.Ports) == 0 {
			return nil, err
		}
		return &Found{p, t.note}, nil
	}
	return nil, nil
}

// lastingName are the names of tables that stay: whoever makes others with Prefix has to keep away from these.
var lastingName = regexp.MustCompile("^" + Prefix + "[0-9a-f]{16}$")

// IsLasting says whether a hold of that name is one that stays.
func IsLasting(name string) bool { return lastingName.MatchString(name) }

// Sweep removes the tables of holds that stayed until their time was up.
func Sweep() error {
	l, err := dial()
	if err != nil {
		return err
	}
	defer l.fd.Close()
	all, err := l.tables()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range all {
		if !IsLasting(t.name) {
			continue
		}
		p, err := l.elements(t.name)
		if err != nil || len(p.Conns)+len(p.Ports) > 0 {
			errs = append(errs, err)
			continue
		}
		// By its handle: another that has been made meanwhile has the name only.
		del := l.begin()
		del.message(unix.NFT_MSG_DELTABLE, 0, attr(tableHandle, binary.BigEndian.AppendUint64(nil, t.handle)))
		if err := l.commit(del); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("removing table %s: %w", t.name, err))
		}
	}
	return errors.Join(errs...)
}

// table is what the kernel says of a table.
type table struct {
	name, note string
	handle     uint64
}

func (l *link) tables() ([]table, error) {
	var all []table
	err := l.ask("its tables", unix.NFT_MSG_GETTABLE, nil, func(attrs []byte) {
		var t table
		each(attrs, func(kind uint16, value []byte) {
			switch kind {
			case unix.NFTA_TABLE_NAME:
				t.name = string(bytes.TrimRight(value, "\x00"))
			case tableNote:
				t.note = noteOf(value)
			case tableHandle:
				if len(value) == 8 {
					t.handle = binary.BigEndian.Uint64(value)
				}
			}
		})
		if strings.HasPrefix(t.name, Prefix) && !slices.Contains(all, t) {
			all = append(all, t)
		}
	})
	return all, err
}

// elements reads what a hold still drops.
func (l *link) elements(name string) (Packets, error) {
	var p Packets
	seen, ports := map[Conn]bool{}, map[uint16]bool{}
	for _, set := range []string{setIPv4, setIPv6, setPorts} {
		request := [][]byte{stringAttr(unix.NFTA_SET_ELEM_LIST_TABLE, name), stringAttr(unix.NFTA_SET_ELEM_LIST_SET, set)}
		err := l.ask("the elements of table "+name, unix.NFT_MSG_GETSETELEM, request, func(attrs []byte) {
			walk(attrs, []uint16{unix.NFTA_SET_ELEM_LIST_ELEMENTS, unix.NFTA_LIST_ELEM, unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE}, func(key []byte) {
				if set == setPorts {
					if len(key) == 2 && !ports[binary.BigEndian.Uint16(key)] {
						ports[binary.BigEndian.Uint16(key)] = true
						p.Ports = append(p.Ports, binary.BigEndian.Uint16(key))
					}
					return
				}
				// Each is there in both directions; which end is the local one is not known from here.
				if c, ok := connOfKey(key); ok && !seen[c] && !seen[Conn{c.Remote, c.Local}] {
					seen[c] = true
					p.Conns = append(p.Conns, c)
				}
			})
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // a set that nothing is in has not been made
			return p, err
		}
	}
	return p, nil
}

// connOfKey undoes Conn.key.
func connOfKey(b []byte) (Conn, bool) {
	size := (len(b) - 4) / 2
	if size != 4 && size != 16 || len(b) != 2*size+4 {
		return Conn{}, false
	}
	src, _ := netip.AddrFromSlice(b[:size])
	dst, _ := netip.AddrFromSlice(b[size : 2*size])
	return Conn{netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[2*size:])), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2*size+2:]))}, true
}

// noteValue is a note as nft(8) has the comment of a table (nftnl_udata in libnftnl): type 0, length, text.
func noteValue(s string) []byte {
	s = s[:min(len(s), 127)]
	return append([]byte{0, byte(len(s) + 1)}, s+"\x00"...)
}

func noteOf(b []byte) string {
	if len(b) < 2 || b[0] != 0 || int(b[1]) > len(b)-2 {
		return ""
	}
	return string(bytes.TrimRight(b[2:2+int(b[1])], "\x00"))
}

// ask has the kernel list something, and calls f with the attributes of each message, of some more than once.
func (l *link) ask(what string, kind int, attrs [][]byte, f func(attrs []byte)) error {
	wrap := func(err error) error { return fmt.Errorf("asking nf_tables for %s: %w", what, err) }
	for range 100 {
		torn, err := l.askOnce(kind, attrs, f)
		if errors.Is(err, unix.EPERM) {
			return lacking(wrap(err))
		}
		if err != nil {
			return wrap(err)
		}
		if !torn {
			return nil
		}
	}
	return wrap(errors.New("they change all the time"))
}

// askOnce asks once. torn: the list has changed in between, and f has seen some of it.
func (l *link) askOnce(kind int, attrs [][]byte, f func(attrs []byte)) (torn bool, err error) {
	t := &transaction{seq: &l.seq}
	t.put(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(kind), unix.NLM_F_REQUEST|unix.NLM_F_DUMP, familyInet, 0, attrs...)
	if err := unix.Sendto(l.fd.Int(), t.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(l.fd.Int(), buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, err
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return false, errors.New("a message that is none")
			}
			torn = torn || binary.NativeEndian.Uint16(b[6:])&unix.NLM_F_DUMP_INTR != 0
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return torn, nil
			case unix.NLMSG_ERROR:
				if size < unix.NLMSG_HDRLEN+4 {
					return false, errors.New("a message that is none")
				}
				return false, unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])))
			}
			const head = unix.NLMSG_HDRLEN + 4 // and struct nfgenmsg
			f(b[min(size, head):size])
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// each goes through attributes.
func each(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// walk finds the values at the end of a path of nested attributes.
func walk(b []byte, path []uint16, f func(value []byte)) {
	each(b, func(kind uint16, value []byte) {
		switch {
		case kind != path[0]:
		case len(path) == 1:
			f(value)
		default:
			walk(value, path[1:], f)
		}
	})
}
