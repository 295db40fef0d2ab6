package nethold

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
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
	t := &transaction{seq: &l.seq}
	t.put(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, familyInet, 0)
	if err := unix.Sendto(l.fd.Int(), t.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("asking nf_tables for its tables: %w", err)
	}
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(l.fd.Int(), buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking nf_tables for its tables: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return nil, errors.New("asking nf_tables for its tables: a message that is none")
			}
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return names, nil
			case unix.NLMSG_ERROR:
				if size < unix.NLMSG_HDRLEN+4 {
					return nil, errors.New("asking nf_tables for its tables: a message that is none")
				}
				return nil, fmt.Errorf("asking nf_tables for its tables: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))))
			}
			if name := tableName(b[:size]); strings.HasPrefix(name, Prefix) {
				names = append(names, name)
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// tableName finds the name in a message about a table.
func tableName(m []byte) string {
	const head = unix.NLMSG_HDRLEN + 4 // and struct nfgenmsg
	for b := m[min(len(m), head):]; len(b) >= 4; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return ""
		}
		if binary.NativeEndian.Uint16(b[2:]) == unix.NFTA_TABLE_NAME {
			return string(bytes.TrimRight(b[4:size], "\x00"))
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return ""
}
