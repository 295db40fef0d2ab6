package nethold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The numbers of <linux/netfilter/nf_tables.h> and <linux/netfilter.h> that x/sys lacks.
const (
	tableOwner   = 2    // NFT_TABLE_F_OWNER
	tableNote    = 6    // NFTA_TABLE_USERDATA (Linux 5.10)
	tableHandle  = 4    // NFTA_TABLE_HANDLE
	setTimeout   = 0x10 // NFT_SET_TIMEOUT
	reg32        = 8    // NFT_REG32_00: registers of 4 bytes
	cmpEq        = 0    // NFT_CMP_EQ
	baseNetwork  = 1    // NFT_PAYLOAD_NETWORK_HEADER
	baseTransp   = 2    // NFT_PAYLOAD_TRANSPORT_HEADER
	dropVerdict  = 0    // NF_DROP
	acceptedOnes = 1    // NF_ACCEPT
	nfProtoIPv4  = 2    // NFPROTO_IPV4
	nfProtoIPv6  = 10   // NFPROTO_IPV6
	familyInet   = 1    // NFPROTO_INET
	chunk        = 256  // elements of a set in one message: the length of an attribute has 16 bits

	// Before connection tracking (-200), which must not see the end of a connection that goes on elsewhere, and behind its
	// defragmentation (-400), without which there are no port numbers.
	priority = -300

	tcpFlags      = 13   // offset of the flags in the header (RFC 9293)
	flagsOfSYN    = 0x02 // SYN alone, of
	flagsMaskSYN  = 0x17 // FIN, SYN, RST, ACK
	portOffset    = 2    // of the destination
	addressesIPv4 = 12
	addressesIPv6 = 8
)

type tableOptions struct {
	owner        bool
	replace      bool // whatever has the name
	note         string
	mark         uint32
	conns, ports time.Duration // until what is held is forgotten; 0: never
}

// The names of the sets of a table.
const (
	setIPv4  = "connections4"
	setIPv6  = "connections6"
	setPorts = "ports"
)

// set is one set of keys of one length.
type set struct {
	name string
	size int
	keys [][]byte
}

// makeTable makes a table that drops the packets, in one transaction: either all of it is there or nothing.
func (l *link) makeTable(name string, p Packets, o tableOptions) error {
	v4 := &set{name: setIPv4, size: 4 + 4 + 2 + 2}
	v6 := &set{name: setIPv6, size: 16 + 16 + 2 + 2}
	ports := &set{name: setPorts, size: 2}
	for _, c := range p.Conns {
		s := v4
		if c.Local.Addr().Is6() {
			s = v6
		}
		for _, d := range []Conn{c, {Local: c.Remote, Remote: c.Local}} { // packets out and in
			key, err := d.key()
			if err != nil {
				return err
			}
			s.keys = append(s.keys, key)
		}
	}
	for _, n := range p.Ports {
		ports.keys = append(ports.keys, binary.BigEndian.AppendUint16(nil, n))
	}
	t := l.begin()
	if o.replace { // what is not there could not be removed
		t.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, stringAttr(unix.NFTA_TABLE_NAME, name))
		t.message(unix.NFT_MSG_DELTABLE, 0, stringAttr(unix.NFTA_TABLE_NAME, name))
	}
	flags := uint32(0)
	if o.owner {
		flags = tableOwner
	}
	attrs := [][]byte{stringAttr(unix.NFTA_TABLE_NAME, name), u32Attr(unix.NFTA_TABLE_FLAGS, flags)}
	if o.note != "" {
		attrs = append(attrs, attr(tableNote, noteValue(o.note)))
	}
	t.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, attrs...)
	t.addSet(name, v4, 1, o.conns)
	t.addSet(name, v6, 2, o.conns)
	t.addSet(name, ports, 3, o.ports)
	for _, c := range []struct {
		name string
		hook uint32
	}{{"input", unix.NF_INET_LOCAL_IN}, {"output", unix.NF_INET_LOCAL_OUT}} {
		t.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
			stringAttr(unix.NFTA_CHAIN_TABLE, name), stringAttr(unix.NFTA_CHAIN_NAME, c.name),
			nest(unix.NFTA_CHAIN_HOOK, u32Attr(unix.NFTA_HOOK_HOOKNUM, c.hook), u32Attr(unix.NFTA_HOOK_PRIORITY, uint32(priority&math.MaxUint32))),
			stringAttr(unix.NFTA_CHAIN_TYPE, "filter"))
		if o.mark != 0 {
			var m [4]byte
			binary.NativeEndian.PutUint32(m[:], o.mark)
			t.rule(name, c.name, meta(unix.NFT_META_MARK), equals(m[:]), verdict(acceptedOnes))
		}
		for _, f := range []struct {
			proto  byte
			s      *set
			offset uint32
			length uint32
		}{{nfProtoIPv4, v4, addressesIPv4, 8}, {nfProtoIPv6, v6, addressesIPv6, 32}} {
			if len(f.s.keys) > 0 {
				t.rule(name, c.name, meta(unix.NFT_META_NFPROTO), equals([]byte{f.proto}), meta(unix.NFT_META_L4PROTO), equals([]byte{unix.IPPROTO_TCP}),
					payload(reg32, baseNetwork, f.offset, f.length), payload(reg32+f.length/4, baseTransp, 0, 4), lookup(f.s.name), verdict(dropVerdict))
			}
		}
		if len(ports.keys) > 0 && c.hook == unix.NF_INET_LOCAL_IN {
			t.rule(name, c.name, meta(unix.NFT_META_L4PROTO), equals([]byte{unix.IPPROTO_TCP}),
				payload(reg32, baseTransp, tcpFlags, 1), mask([]byte{flagsMaskSYN}), equals([]byte{flagsOfSYN}),
				payload(reg32, baseTransp, portOffset, 2), lookup(ports.name), verdict(dropVerdict))
		}
	}
	err := l.commit(t)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("making table %s: %w", name, err)
	}
	return lacking(fmt.Errorf("making table %s: %w", name, err))
}

// key is what a packet of the connection that goes out has: its addresses, then its ports, as in the headers.
func (c Conn) key() ([]byte, error) {
	src, dst := c.Local.Addr(), c.Remote.Addr()
	if src.Is4In6() || dst.Is4In6() || src.Is4() != dst.Is4() {
		return nil, errors.New("internal error: a connection between addresses of two families")
	}
	b := append(raw(src), raw(dst)...)
	b = binary.BigEndian.AppendUint16(b, c.Local.Port())
	return binary.BigEndian.AppendUint16(b, c.Remote.Port()), nil
}

func raw(a netip.Addr) []byte { return a.AsSlice() }

func (t *transaction) addSet(table string, s *set, id uint32, timeout time.Duration) {
	if len(s.keys) == 0 {
		return
	}
	attrs := [][]byte{stringAttr(unix.NFTA_SET_TABLE, table), stringAttr(unix.NFTA_SET_NAME, s.name),
		u32Attr(unix.NFTA_SET_KEY_TYPE, 0), u32Attr(unix.NFTA_SET_KEY_LEN, uint32(s.size)), u32Attr(unix.NFTA_SET_ID, id)}
	if timeout > 0 {
		ms := binary.BigEndian.AppendUint64(nil, uint64(timeout.Milliseconds()))
		attrs = append(attrs, u32Attr(unix.NFTA_SET_FLAGS, setTimeout), attr(unix.NFTA_SET_TIMEOUT, ms))
	}
	t.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, attrs...)
	seen := map[string]bool{}
	var elements [][]byte
	flush := func() {
		if len(elements) > 0 {
			t.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, stringAttr(unix.NFTA_SET_ELEM_LIST_TABLE, table),
				stringAttr(unix.NFTA_SET_ELEM_LIST_SET, s.name), u32Attr(unix.NFTA_SET_ELEM_LIST_SET_ID, id),
				nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elements...))
		}
		elements = nil
	}
	for _, k := range s.keys {
		if seen[string(k)] { // both ends of a connection to the machine itself
			continue
		}
		seen[string(k)] = true
		elements = append(elements, nest(unix.NFTA_LIST_ELEM, nest(unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, k))))
		if len(elements) == chunk {
			flush()
		}
	}
	flush()
}

func (t *transaction) rule(table, chain string, expressions ...[]byte) {
	t.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, stringAttr(unix.NFTA_RULE_TABLE, table),
		stringAttr(unix.NFTA_RULE_CHAIN, chain), nest(unix.NFTA_RULE_EXPRESSIONS, expressions...))
}

func expression(name string, attrs ...[]byte) []byte {
	return nest(unix.NFTA_LIST_ELEM, stringAttr(unix.NFTA_EXPR_NAME, name), nest(unix.NFTA_EXPR_DATA, attrs...))
}

func meta(key uint32) []byte {
	return expression("meta", u32Attr(unix.NFTA_META_DREG, reg32), u32Attr(unix.NFTA_META_KEY, key))
}

func equals(b []byte) []byte {
	return expression("cmp", u32Attr(unix.NFTA_CMP_SREG, reg32), u32Attr(unix.NFTA_CMP_OP, cmpEq), nest(unix.NFTA_CMP_DATA, attr(unix.NFTA_DATA_VALUE, b)))
}

func mask(b []byte) []byte {
	return expression("bitwise", u32Attr(unix.NFTA_BITWISE_SREG, reg32), u32Attr(unix.NFTA_BITWISE_DREG, reg32), u32Attr(unix.NFTA_BITWISE_LEN, uint32(len(b))),
		nest(unix.NFTA_BITWISE_MASK, attr(unix.NFTA_DATA_VALUE, b)), nest(unix.NFTA_BITWISE_XOR, attr(unix.NFTA_DATA_VALUE, make([]byte, len(b)))))
}

func payload(reg, base, offset, length uint32) []byte {
	return expression("payload", u32Attr(unix.NFTA_PAYLOAD_DREG, reg), u32Attr(unix.NFTA_PAYLOAD_BASE, base),
		u32Attr(unix.NFTA_PAYLOAD_OFFSET, offset), u32Attr(unix.NFTA_PAYLOAD_LEN, length))
}

func lookup(set string) []byte {
	return expression("lookup", stringAttr(unix.NFTA_LOOKUP_SET, set), u32Attr(unix.NFTA_LOOKUP_SREG, reg32))
}

func verdict(code uint32) []byte {
	return expression("immediate", u32Attr(unix.NFTA_IMMEDIATE_DREG, 0),
		nest(unix.NFTA_IMMEDIATE_DATA, nest(unix.NFTA_DATA_VERDICT, u32Attr(unix.NFTA_VERDICT_CODE, code))))
}

// transaction is a batch of messages (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c).
type transaction struct {
	b     []byte
	seq   *uint32
	first uint32 // sequence number of its beginning
	asked int    // answers to come
}

func (l *link) begin() *transaction {
	t := &transaction{seq: &l.seq}
	t.first = l.seq + 1
	t.put(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES)
	return t
}

func (t *transaction) end() {
	t.put(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES)
}

// message adds a request for which an answer comes.
func (t *transaction) message(kind int, flags uint16, attrs ...[]byte) {
	t.put(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(kind), unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags, familyInet, 0, attrs...)
	t.asked++
}

func (t *transaction) put(kind, flags uint16, family byte, resource uint16, attrs ...[]byte) {
	*t.seq++
	at := len(t.b)
	t.b = append(t.b, make([]byte, 4)...)
	t.b = binary.NativeEndian.AppendUint16(t.b, kind)
	t.b = binary.NativeEndian.AppendUint16(t.b, flags)
	t.b = binary.NativeEndian.AppendUint32(t.b, *t.seq)
	t.b = binary.NativeEndian.AppendUint32(t.b, 0)
	t.b = append(t.b, family, 0)
	t.b = binary.BigEndian.AppendUint16(t.b, resource)
	for _, a := range attrs {
		t.b = append(t.b, a...)
	}
	binary.NativeEndian.PutUint32(t.b[at:], uint32(len(t.b)-at))
}

// attr is one attribute, padded to 4 bytes. Its length is that without the padding (netlink(7)).
func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func nest(kind uint16, attrs ...[]byte) []byte {
	var b []byte
	for _, a := range attrs {
		b = append(b, a...)
	}
	return attr(kind|unix.NLA_F_NESTED, b)
}

func u32Attr(kind uint16, v uint32) []byte { return attr(kind, binary.BigEndian.AppendUint32(nil, v)) }

func stringAttr(kind uint16, s string) []byte { return attr(kind, append([]byte(s), 0)) }
