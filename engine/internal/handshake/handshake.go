// Package handshake has a listening TCP socket take the last segment of a handshake that it knows nothing of.
//
// A socket that waits for accept(2) is made by the kernel alone, when that segment comes; no call can put one into the queue. But a program
// of BPF at the ingress of a device may vouch for it and tell what both ends have agreed upon (bpf_sk_assign_tcp_reqsk in net/core/filter.c,
// Linux 6.9, made for SYN cookies that a load balancer has sent), and the kernel goes on as after a SYN cookie of its own: the numbers in the
// segment are those of the connection (cookie_v4_check in net/ipv4/syncookies.c).
//
// The program is attached to the loopback device, where what this machine sends to itself comes by, and lets everything pass but the one
// segment that it has been armed for. It goes with this process, however that ends.
package handshake

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Request is a connection that is to be made, as a listening socket sees it.
type Request struct {
	From, To           netip.AddrPort // of a packet: addresses of IPv4 are such, not mapped to IPv6
	MSS                uint16         // bytes; what the peer takes at most
	SACK               bool
	Scaling            bool // of windows, by
	SndScale, RcvScale uint8
	Stamps             bool
	Stamp, Recent      uint32 // the next own time stamp, and the last one of the peer
}

// LeastMSS is what the kernel makes a connection with at least, by the size of an address.
func LeastMSS(a netip.Addr) uint16 {
	if a.Is4() {
		return 536 // TCP_MIN_MSS is less, but bpf_sk_assign_tcp_reqsk does not take it
	}
	return 1220 // IPV6_MIN_MTU less both headers
}

// MissingError says that this kernel or user cannot do it.
type MissingError struct{ Err error }

func (e *MissingError) Error() string {
	return "putting connections into the queue of a listening socket: " + e.Err.Error()
}
func (e *MissingError) Unwrap() error { return e.Err }
func (e *MissingError) ExitCode() int { return 5 } // the kernel or the privileges lack something
func (e *MissingError) Hint() string {
	return "restore as root on Linux 6.9 or later with BTF, SYN cookies (net.ipv4.tcp_syncookies) and net.ipv4.tcp_fwmark_accept of 0, or give the connections up with --tcp drop"
}

// A Maker has the program attached, in the network namespace of the thread that opened it.
type Maker struct {
	array *ebpf.Map
	prog  *ebpf.Program
	link  link.Link
	mark  uint32
}

// Places in what the program and this process share.
const (
	atArmed  = 0  // 1: the next segment with the mark is the one; 2: it has come
	atMark   = 4  // SO_MARK of the segment
	atSize   = 8  // of the addresses and ports: 12 or 36 bytes
	atResult = 12 // what the kernel has said: 0 or an errno, negative
	atTuple  = 16 // struct bpf_sock_tuple (linux/bpf.h)
	atAttrs  = 56 // struct bpf_tcp_req_attrs (net/tcp.h)
	attrSize = 20
	allSize  = atAttrs + attrSize + 4

	loopback = 1 // LOOPBACK_IFINDEX
	notFound = -int64(unix.ENOTCONN)
	markAt   = 8  // in struct __sk_buff
	passOn   = -1 // TCX_NEXT
	unused   = 0
)

// Open attaches the program, for segments with a mark. A *MissingError: that cannot be.
func Open(mark uint32) (*Maker, error) {
	// Else the new socket would have the mark of the segment for all that it sends, or there would be none.
	for _, s := range []struct {
		name string
		bad  func(value string) bool
	}{{"tcp_fwmark_accept", func(v string) bool { return v != "0" }}, {"tcp_syncookies", func(v string) bool { return v == "0" }}} {
		b, err := os.ReadFile("/proc/sys/net/ipv4/" + s.name)
		if err != nil {
			return nil, fmt.Errorf("reading net.ipv4.%s: %w", s.name, err)
		}
		if v := strings.TrimSpace(string(b)); s.bad(v) {
			return nil, &MissingError{fmt.Errorf("net.ipv4.%s is %s", s.name, v)}
		}
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, &MissingError{err}
	}
	var assign *btf.Func
	if err := spec.TypeByName("bpf_sk_assign_tcp_reqsk", &assign); err != nil {
		return nil, &MissingError{fmt.Errorf("the kernel has no bpf_sk_assign_tcp_reqsk: %w", err)}
	}
	id, err := spec.TypeID(assign)
	if err != nil {
		return nil, &MissingError{err}
	}
	m := &Maker{mark: mark}
	if m.array, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: allSize, MaxEntries: 1}); err != nil {
		return nil, &MissingError{err}
	}
	if m.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: program(m.array.FD(), int64(id))}); err != nil {
		_ = m.Close()
		return nil, &MissingError{err}
	}
	if m.link, err = link.AttachTCX(link.TCXOptions{Interface: loopback, Program: m.prog, Attach: ebpf.AttachTCXIngress}); err != nil {
		_ = m.Close()
		return nil, &MissingError{err}
	}
	return m, nil
}

// program looks the listening socket up and gives the packet to it as one of a handshake that is known.
func program(array int, assign int64) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R7, array, 0),
		asm.LoadMem(asm.R2, asm.R6, markAt, asm.Word),
		asm.LoadMem(asm.R3, asm.R7, atMark, asm.Word),
		asm.JNE.Reg(asm.R2, asm.R3, "pass"),
		asm.LoadMem(asm.R2, asm.R7, atArmed, asm.Word),
		asm.JNE.Imm(asm.R2, 1, "pass"),
		asm.StoreImm(asm.R7, atArmed, 2, asm.Word),
		asm.StoreImm(asm.R7, atResult, notFound, asm.Word),

		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, atTuple),
		asm.Mov.Imm(asm.R3, 36), // a size has to be a constant
		asm.LoadMem(asm.R4, asm.R7, atSize, asm.Word),
		asm.JNE.Imm(asm.R4, 12, "look"),
		asm.Mov.Imm(asm.R3, 12),
		asm.Mov.Imm(asm.R4, -1).WithSymbol("look"), // BPF_F_CURRENT_NETNS
		asm.Mov.Imm(asm.R5, unused),
		asm.FnSkcLookupTcp.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R8, asm.R0),

		asm.Mov.Reg(asm.R1, asm.R8),
		asm.FnSkcToTcpSock.Call(),
		asm.JEq.Imm(asm.R0, 0, "release"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Add.Imm(asm.R3, atAttrs),
		asm.Mov.Imm(asm.R4, attrSize),
		asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: assign},
		asm.StoreMem(asm.R7, atResult, asm.R0, asm.Word),

		asm.Mov.Reg(asm.R1, asm.R8).WithSymbol("release"),
		asm.FnSkRelease.Call(),
		asm.Mov.Imm(asm.R0, passOn).WithSymbol("pass"),
		asm.Return(),
	}
}

// Arm has the next segment with the mark be taken for the last one of a handshake. Nobody else may send one that has it.
func (m *Maker) Arm(r *Request) error {
	b := make([]byte, allSize)
	binary.NativeEndian.PutUint32(b[atArmed:], 1)
	binary.NativeEndian.PutUint32(b[atMark:], m.mark)
	tuple := append(r.From.Addr().AsSlice(), r.To.Addr().AsSlice()...)
	tuple = binary.BigEndian.AppendUint16(tuple, r.From.Port())
	tuple = binary.BigEndian.AppendUint16(tuple, r.To.Port())
	binary.NativeEndian.PutUint32(b[atSize:], uint32(copy(b[atTuple:atAttrs], tuple)))
	a := b[atAttrs:]
	binary.NativeEndian.PutUint32(a, r.Recent)
	binary.NativeEndian.PutUint32(a[4:], r.Stamp)
	binary.NativeEndian.PutUint16(a[8:], r.MSS)
	if r.Scaling {
		a[10], a[11], a[13] = r.RcvScale, r.SndScale, 1
	}
	if r.SACK {
		a[14] = 1
	}
	if r.Stamps {
		a[15] = 1
	}
	if err := m.array.Put(uint32(0), b); err != nil {
		return fmt.Errorf("arming a BPF program: %w", err)
	}
	return nil
}

// Taken says whether the segment has come, and what the kernel has against it.
func (m *Maker) Taken() (bool, error) {
	b := make([]byte, allSize)
	if err := m.array.Lookup(uint32(0), &b); err != nil {
		return false, fmt.Errorf("asking a BPF program: %w", err)
	}
	if binary.NativeEndian.Uint32(b[atArmed:]) != 2 {
		return false, nil
	}
	if code := int32(binary.NativeEndian.Uint32(b[atResult:])); code < 0 {
		return true, unix.Errno(-code)
	}
	return true, nil
}

// Close detaches the program. It can be nil.
func (m *Maker) Close() error {
	if m == nil {
		return nil
	}
	var errs []error
	if m.link != nil {
		errs = append(errs, m.link.Close())
	}
	if m.prog != nil {
		errs = append(errs, m.prog.Close())
	}
	return errors.Join(append(errs, m.array.Close())...)
}
