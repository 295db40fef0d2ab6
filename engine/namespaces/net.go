package namespaces

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Net is the record of a network namespace of the tree's own that has nothing but the loopback interface, as unshare -n makes it
// (network_namespaces(7)). One that differs from a fresh one in anything else is refused: other interfaces, addresses, routes, rules,
// packet filters, settings below /proc/sys/net. Sockets are objects of their own.
type Net struct {
	Up bool `msgpack:"up,omitempty"` // lo
}

// NetKind is the kind of record "ns.net".
var NetKind = object.NewKind[Net]("ns.net", nil)

// DumpNet adds the record where the root is in another network namespace than the caller.
func DumpNet(d *object.Dumper) error {
	own, err := ownNamespace(d, "net")
	if err != nil || !own {
		return err
	}
	s := &Net{}
	var theirs, fresh map[string]string
	if err := within(d, "net", unix.CLONE_NEWNET, func() error {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range all {
			if i.Name != "lo" {
				return &object.Unsupported{What: fmt.Sprintf("is in a network namespace of its own, with the interface %s: one with lo alone could be kept", i.Name),
					Do: "run cr-dump inside it (nsenter -n -t PID), and cr-restore in one that is set up alike"}
			}
			s.Up = i.Flags&net.FlagUp != 0
		}
		theirs, err = netState()
		return err
	}); err != nil {
		return refusal(d, err)
	}
	if err := onThread(func() error {
		if err := s.Make(); err != nil {
			return err
		}
		var err error
		fresh, err = netState()
		return err
	}); err != nil {
		return err
	}
	var names []string
	for name := range theirs {
		if theirs[name] != fresh[name] {
			names = append(names, name)
		}
	}
	for name := range fresh {
		if _, ok := theirs[name]; !ok {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		sort.Strings(names)
		d.Refuse(d.Root.Error("", &object.Unsupported{
			What: fmt.Sprintf("its network namespace differs from a fresh one in %s (%s)", names[0], clip(theirs[names[0]])),
			Do:   "run cr-dump inside it (nsenter -n -t PID), and cr-restore in one that is set up alike"}))
	}
	d.AddPlain(NetKind.Type, s)
	return nil
}

// refusal keeps what is unsupported for the end, and passes other errors on.
func refusal(d *object.Dumper, err error) error {
	var u *object.Unsupported
	if errors.As(err, &u) {
		d.Refuse(d.Root.Error("", u))
		return nil
	}
	return err
}

func clip(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 60 {
		s = s[:60] + "..."
	}
	return s
}

// netState collects, on a thread in a network namespace, what was set in it.
func netState() (map[string]string, error) {
	out := map[string]string{}
	const dir = "/proc/thread-self/net/"
	for _, f := range []string{"fib_trie", "if_inet6", "ip_tables_names", "ip6_tables_names", "arp_tables_names", "ip_vs", "vlan/config", "bonding"} {
		if b, err := os.ReadFile(dir + f); err == nil {
			out["/proc/PID/net/"+f] = string(b)
		}
	}
	if b, err := os.ReadFile(dir + "ipv6_route"); err == nil {
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) == 10 { // without the counts of users
				out["/proc/PID/net/ipv6_route"] += strings.Join(append(f[:6:6], f[8:]...), " ") + "\n"
			}
		}
	}
	for _, ask := range []struct {
		name string
		kind int
	}{{"rules of routing", unix.RTM_GETRULE}} {
		b, err := syscall.NetlinkRIB(ask.kind, unix.AF_UNSPEC)
		if err != nil {
			return nil, fmt.Errorf("asking for %s: %w", ask.name, err)
		}
		messages, err := syscall.ParseNetlinkMessage(b)
		if err != nil {
			return nil, err
		}
		var all bytes.Buffer
		for _, m := range messages {
			if m.Header.Type != unix.NLMSG_DONE {
				fmt.Fprintf(&all, "%x\n", m.Data)
			}
		}
		out[ask.name] = all.String()
	}
	tables, err := filterTables()
	if err != nil {
		return nil, err
	}
	out["its packet filter's tables (nftables)"] = tables
	return out, filepath.WalkDir("/proc/sys/net", func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		info, err := e.Info()
		if err != nil || info.Mode()&0o400 == 0 || info.Mode()&0o200 == 0 { // what nobody can set, or read
			return nil
		}
		if b, err := os.ReadFile(path); err == nil {
			out[path] = string(b)
		}
		return nil
	})
}

// filterTables asks nf_tables for the names of its tables (NFT_MSG_GETTABLE); empty also where the kernel has none.
func filterTables() (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("asking for packet filters: %w", err)
	}
	s := sys.NewFD(fd)
	defer s.Close() //nolint:errcheck // a socket of ours
	const getTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE
	b := make([]byte, 0, 20)
	b = binary.NativeEndian.AppendUint32(b, 20)
	b = binary.NativeEndian.AppendUint16(b, getTable)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = binary.NativeEndian.AppendUint32(b, 1)
	b = append(b, 0, 0, 0, 0, unix.AF_UNSPEC, 0, 0, 0)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return "", fmt.Errorf("asking for packet filters: %w", err)
	}
	var all strings.Builder
	buf := make([]byte, 64<<10)
	for range 100 {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return "", fmt.Errorf("asking for packet filters: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return "", err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR: // a kernel without nf_tables says EINVAL
				return all.String(), nil
			}
			fmt.Fprintf(&all, "%x\n", m.Data)
		}
	}
	return all.String(), nil
}

// Make gives the calling thread, which must be locked to its goroutine and end with it or return by Setns, such a namespace.
func (s *Net) Make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	if !s.Up {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("setting up lo: %w", err)
	}
	sock := sys.NewFD(fd)
	defer sock.Close() //nolint:errcheck // a socket of ours
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOOPBACK)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("setting up lo: %w", err)
	}
	return nil
}

// HasNet says whether the tree is in another network namespace than the caller.
func HasNet(d *object.Dumper) (bool, error) { return ownNamespace(d, "net") }

// InNet runs f in the network namespace of a task, on a thread of its own.
func InNet(tid int, f func() error) error {
	fd, err := sys.Open("/proc/"+strconv.Itoa(tid)+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a network namespace: %w", err)
	}
	return inNet(fd, f)
}

// InNetOf runs f in the network namespace of a socket, on a thread of its own.
func InNetOf(socket int, f func() error) error {
	const getNamespace = 0x894c // SIOCGSKNS of linux/sockios.h
	n, err := unix.IoctlRetInt(socket, getNamespace)
	if err != nil {
		return fmt.Errorf("asking for the network namespace of a socket: %w", err)
	}
	return inNet(sys.NewFD(n), f)
}

// inNet runs f in a network namespace, whose descriptor it closes.
func inNet(fd *sys.FD, f func() error) error {
	defer fd.Close() //nolint:errcheck // only entered
	return onThread(func() error {
		if err := unix.Setns(fd.Int(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return f()
	})
}
