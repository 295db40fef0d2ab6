package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"crpipe/test/harness"
)

// keptElsewhere are options of sockets that are not an int, or of kinds that the fixture sockopts has not, and where a test sets them.
var keptElsewhere = map[string]string{
	"SO_LINGER": "engine/sockets", "SO_RCVTIMEO": "engine/sockets", "SO_RCVTIMEO_NEW": "engine/sockets", "SO_RCVTIMEO_OLD": "engine/sockets",
	"SO_SNDTIMEO": "engine/sockets", "SO_SNDTIMEO_NEW": "engine/sockets", "SO_SNDTIMEO_OLD": "engine/sockets", "SO_DEBUG": "engine/sockets",
	"SO_TIMESTAMP": "udp.c is refused with datagrams", "SO_TIMESTAMP_NEW": "as SO_TIMESTAMP", "SO_TIMESTAMP_OLD": "as SO_TIMESTAMP",
	"SO_TIMESTAMPNS_NEW": "as SO_TIMESTAMP", "SO_TIMESTAMPNS_OLD": "as SO_TIMESTAMP", "SO_TIMESTAMPING": "engine/sockets",
	"SO_TIMESTAMPING_NEW": "engine/sockets", "SO_TIMESTAMPING_OLD": "engine/sockets", "SO_BINDTODEVICE": "engine/sockets", "SO_BINDTOIFINDEX": "as SO_BINDTODEVICE",
	"SO_ATTACH_FILTER": "rawsock.c", "SO_LOCK_FILTER": "engine/sockets", "SO_TXTIME": "engine/sockets", "SO_INQ": "engine/sockets",
	"IP_OPTIONS": "engine/sockets/ip_test.go", "IP_MULTICAST_IF": "udp.c", "IP_RECVRETOPTS": "IP_RETOPTS", "IP_ORIGDSTADDR": "IP_RECVORIGDSTADDR",
	"IPV6_PKTINFO": "engine/sockets/ip_test.go", "IPV6_HOPOPTS": "engine/sockets/ip_test.go", "IPV6_RTHDR": "engine/sockets/ip_test.go",
	"IPV6_RTHDRDSTOPTS": "engine/sockets/ip_test.go", "IPV6_DSTOPTS": "engine/sockets/ip_test.go", "IPV6_ORIGDSTADDR": "IPV6_RECVORIGDSTADDR",
	"IPV6_RXHOPOPTS": "IPV6_RECVHOPOPTS", "IPV6_RXDSTOPTS": "IPV6_RECVDSTOPTS", "PACKET_VNET_HDR": "PACKET_VNET_HDR_SZ", "PACKET_FANOUT": "engine/sockets",
	"NETLINK_LIST_MEMBERSHIPS": "netlinks.c", "ICMPV6_FILTER": "rawsock.c",
}

// refusedOptions are options of which a dump refuses whoever has them, or that only a kind has that is refused.
var refusedOptions = []string{"IP_IPSEC_POLICY", "IP_XFRM_POLICY", "IPV6_IPSEC_POLICY", "IPV6_XFRM_POLICY", "IPV6_JOIN_ANYCAST", "IPV6_LEAVE_ANYCAST", "IPV6_ROUTER_ALERT",
	"UDP_ENCAP", "PACKET_RX_RING", "PACKET_TX_RING", "PACKET_FANOUT_DATA", "NETLINK_RX_RING", "NETLINK_TX_RING", "SO_ATTACH_BPF", "SO_ATTACH_REUSEPORT_CBPF",
	"SO_ATTACH_REUSEPORT_EBPF", "SO_DEVMEM_DMABUF", "SO_DEVMEM_LINEAR"}

// notState are names that are no state of a socket, by what they are.
var notState = map[string]*regexp.Regexp{
	"does something once": regexp.MustCompile(`^(SO_DETACH_.*|SO_CNX_ADVICE|SO_DEVMEM_DONTNEED|SO_(SND|RCV)BUFFORCE|IP_(ADD|DROP)_.*MEMBERSHIP|IP_(UN)?BLOCK_SOURCE|` +
		`MCAST_(UN)?BLOCK_SOURCE|MCAST_(JOIN|LEAVE)_.*|IPV6_(ADD|DROP)_MEMBERSHIP|IPV6_(JOIN|LEAVE)_GROUP|IPV6_ADDRFORM|(NETLINK|PACKET)_(ADD|DROP)_MEMBERSHIP)$`),
	"tells what is told otherwise, or of the kernel": regexp.MustCompile(`^(SO_(ACCEPTCONN|BPF_EXTENSIONS|DOMAIN|PROTOCOL|TYPE|NETNS_COOKIE|PEERCRED|PEERGROUPS|PEERNAME|PEERSEC)|` +
		`IP_PROTOCOL|IP_PKTOPTIONS|IPV6_2292PKTOPTIONS|PACKET_HDRLEN)$`),
	"does nothing in Linux, or not any more": regexp.MustCompile(`^(SO_BSDCOMPAT|SO_SECURITY_.*|SO_SNDLOWAT|IPV6_AUTHHDR|IPV6_NEXTHOP|IPV6_USE_MIN_MTU|PACKET_RECV_OUTPUT|PACKET_TX_TIMESTAMP)$`),
	"is in a message":                        regexp.MustCompile(`^IPV6_HOPLIMIT$`),
	"is a value, not an option": regexp.MustCompile(`^(ICMPV6_FILTER_.*|IPV6_(FLOW|FLOWINFO_.*(MASK|LABEL|PRIORITY)|FLOWLABEL_MASK|FL_.*|PMTUDISC_.*|PREFER_SRC_.*|PRIORITY_.*|` +
		`RTHDR_.*|TLV_.*|USER_FLOW|VERSION.*)|IP_(DEFAULT_.*|DF|MF|RF|OFFMASK|MAXPACKET|MAX_MEMBERSHIPS|MSS|MSFILTER_SIZE|PMTUDISC.*|USER_FLOW)|MCAST_(EX|IN)CLUDE|` +
		`NETLINK_(AUDIT|CONNECTED|CONNECTOR|CRYPTO|DNRTMSG|ECRYPTFS|FIB_LOOKUP|FIREWALL|GENERIC|INET_DIAG|IP6_FW|ISCSI|KOBJECT_UEVENT|NETFILTER|NFLOG|RDMA|ROUTE|` +
		`SCSITRANSPORT|SELINUX|SMC|SOCK_DIAG|UNCONNECTED|UNUSED|USERSOCK|XFRM)|PACKET_(BROADCAST|FANOUT_(CBPF|CPU|EBPF|FLAG_.*|HASH|LB|QM|RND|ROLLOVER)|FASTROUTE|HOST|KERNEL|` +
		`LOOPBACK|MR_.*|MULTICAST|OTHERHOST|OUTGOING|USER)|SO_EE_.*|SO_VM_SOCKETS_.*|UDP_ENCAP_.*|UDP_V[46]_FLOW)$`),
}

// TestSocketGettersAreAll: every option of sockets in the headers, but for TCP's, is set to another value than a new socket has and
// compared before and after (fixture sockopts), is set by another test, is on a list of what cannot be compared, or is no state. A name
// that nobody here has heard of fails.
func TestSocketGettersAreAll(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatalf("finding golang.org/x/sys: %v", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "unix")
	headers := []string{filepath.Join(dir, "zerrors_linux.go"), filepath.Join(dir, "zerrors_linux_amd64.go"), filepath.Join(dir, "ztypes_linux.go")}
	for _, h := range []string{"linux/in.h", "linux/in6.h", "linux/udp.h", "linux/netlink.h", "linux/if_packet.h", "linux/icmp.h", "linux/icmpv6.h", "asm-generic/socket.h"} {
		headers = append(headers, filepath.Join("/usr/include", h))
	}
	name := regexp.MustCompile(`(?m)^(?:#\s*define)?\s+((?:SO|IP|IPV6|UDP|UDPLITE|NETLINK|PACKET|MCAST)_[A-Z0-9_]+|ICMP_FILTER|ICMPV6_FILTER\w*)\b`)
	found := map[string]bool{}
	for i, h := range headers {
		text, err := os.ReadFile(h)
		if err != nil && i > 2 && os.IsNotExist(err) {
			continue // no C headers here
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
	}
	if len(found) < 300 {
		t.Errorf("only %d names in %v", len(found), headers)
	}
	set, err := harness.SetSockopts()
	if err != nil {
		t.Fatal(err)
	}
	for n := range found {
		_, elsewhere := keptElsewhere[n]
		known := set[n] || elsewhere || slices.Contains(refusedOptions, n) || harness.IgnoredSockopts()[n] != "" || harness.NotAskedSockopts()[n] != ""
		for _, re := range notState {
			known = known || re.MatchString(n)
		}
		if !known {
			t.Errorf("%s: is it kept? Set it in test/testdata/prog/sockopts.h, or put it on one of the lists here or in test/harness/sockopts.go", n)
		}
	}
	for n := range set {
		if !found[n] {
			t.Errorf("%s, which sockopts.h sets, is in no header", n)
		}
	}
}

// tcpNotState are names of TCP that are no state of a socket that is kept, by what they are.
var tcpNotState = map[string]*regexp.Regexp{
	"is for a restore alone":    regexp.MustCompile(`^TCP_(REPAIR|REPAIR_QUEUE|REPAIR_OPTIONS|QUEUE_SEQ)$`),
	"is refused":                regexp.MustCompile(`^TCP_(ULP|MD5SIG|MD5SIG_EXT|AO_(ADD|DEL)_KEY)$`),
	"does nothing in Linux":     regexp.MustCompile(`^TCP_(THIN_DUPACK|COOKIE_TRANSACTIONS)$`),
	"is a value, not an option": regexp.MustCompile(`^TCP_(NLA|ACCECN|BPF|CA|COOKIE|FLAG|ENCAP|S_DATA|RECEIVE_ZEROCOPY|REPAIR_O|MD5SIG_(FLAG|MAX)|AO_(KEYF|MAX)|V[46]_FLOW)_?.*|^TCP_(CM_INQ|DATA_OFFSET|MAXWIN|MAX_WINSHIFT|MSS.*|NO_QUEUE|QUEUES_NR|RECV_QUEUE|SEND_QUEUE|RESERVED_BITS)$`),
}

// TestTCPGettersAreAll is the same for TCP, by the table of options of its kind.
func TestTCPGettersAreAll(t *testing.T) {
	table, err := os.ReadFile(filepath.Join(harness.Root(), "engine", "sockets", "tcp_options.go"))
	if os.IsNotExist(err) {
		t.Skip("TCP sockets are not kept")
	}
	out, err2 := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	kept := map[string]bool{}
	for _, m := range regexp.MustCompile(`"(TCP_[A-Z0-9_]+)"`).FindAllStringSubmatch(string(table), -1) {
		kept[m[1]] = true
	}
	found := map[string]bool{}
	for _, h := range []string{filepath.Join(strings.TrimSpace(string(out)), "unix", "zerrors_linux.go"), filepath.Join(strings.TrimSpace(string(out)), "unix", "ztypes_linux.go"), "/usr/include/linux/tcp.h"} {
		text, err := os.ReadFile(h)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^(?:#\s*define)?\s+(TCP_[A-Z0-9_]+)\b`).FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
	}
	if len(found) < 60 || len(kept) < 15 {
		t.Errorf("only %d names in the headers, %d in the table", len(found), len(kept))
	}
	for n := range found {
		known := kept[n] || harness.IgnoredSockopts()[n] != "" || harness.NotAskedSockopts()[n] != ""
		for _, re := range tcpNotState {
			known = known || re.MatchString(n)
		}
		if !known {
			t.Errorf("%s: is it kept? Put it into engine/sockets/tcp_options.go, or on one of the lists here or in test/harness/sockopts.go", n)
		}
	}
}

// TestSockoptsAreSet: the fixture has set what it says, but for what only other kinds of sockets take.
func TestSockoptsAreSet(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "sockopts", harness.Options{})
	unset, err := os.ReadFile(filepath.Join(j.Dir, "unset"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	others := []string{"SO_RESERVE_MEM", "SO_TXREHASH", "SO_PASSPIDFD", "SO_PASSRIGHTS"} // TCP, unix sockets
	for _, n := range strings.Fields(string(unset)) {
		if !slices.Contains(others, n) {
			t.Errorf("%s was never set", n)
		}
	}
	j.Finish()
}
