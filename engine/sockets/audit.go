package sockets

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Many daemons hold a netlink socket of the audit system, to write a message to it now and then (audit_open(3)). The kernel keeps something
// only for that of the audit daemon, which has registered itself with AUDIT_SET (kernel/audit.c).

// refuseAuditDaemon refuses the socket if the audit daemon is in the tree.
func refuseAuditDaemon(d *object.Dumper) error {
	pid, err := object.Memo(d, auditMemo{}, auditDaemon)
	if err != nil {
		return &object.Lacking{What: "asking who the audit daemon is, whose socket could not be kept", Err: err, Do: "give cr-dump CAP_AUDIT_CONTROL"}
	}
	for _, p := range d.Processes {
		if pid != 0 && p.PID == pid {
			return object.Unsupportedf("the socket on which the audit daemon, process %d, is told of events, cannot be checkpointed", pid)
		}
	}
	return nil
}

type auditMemo struct{}

// auditDaemon returns the pid of the audit daemon; 0: it is nobody whom this process can see. Only in the initial user and pid namespaces may
// one register (audit_netlink_ok), or ask.
func auditDaemon() (int, error) {
	pid, err := askAudit()
	if errors.Is(err, unix.ECONNREFUSED) { // in another user namespace
		return 0, nil
	}
	if errors.Is(err, unix.EPERM) {
		const initial = "pid:[4026531836]" // PROC_PID_INIT_INO, linux/proc_ns.h
		if ns, err := os.Readlink("/proc/self/ns/pid"); err == nil && ns != initial {
			return 0, nil
		}
	}
	return pid, err
}

// askAudit asks the kernel (AUDIT_GET) for the pid of the audit daemon.
func askAudit() (int, error) {
	const (
		auditGet  = 1000 // linux/audit.h
		offsetPID = 12   // struct audit_status: mask, enabled, failure, pid
	)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_AUDIT)
	if err != nil {
		return 0, err
	}
	s := sys.NewFD(fd)
	defer s.Close() //nolint:errcheck // a socket of ours
	ask := binary.NativeEndian.AppendUint32(nil, unix.NLMSG_HDRLEN)
	ask = binary.NativeEndian.AppendUint16(ask, auditGet)
	ask = binary.NativeEndian.AppendUint16(ask, unix.NLM_F_REQUEST)
	ask = append(ask, make([]byte, unix.NLMSG_HDRLEN-len(ask))...)
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return 0, err
	}
	buf := make([]byte, 8<<10)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return 0, err
	}
	messages, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		switch {
		case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
			return 0, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
		case m.Header.Type == auditGet && len(m.Data) >= offsetPID+4:
			return int(binary.NativeEndian.Uint32(m.Data[offsetPID:])), nil
		}
	}
	return 0, errors.New("the kernel gave another answer")
}
