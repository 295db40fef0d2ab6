package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What getsockopt(2) tells of a socket is asked by number, all of them up to maxSockopt at every level that the family has, so that an
// option is compared too of which nobody here has heard. The names are for the lists of what is not asked or not compared, and for the
// comparison with the headers.

const maxSockopt = 128

// sockoptLevels are the levels of a family, by the prefix of their options.
var sockoptLevels = map[int]map[string]int{
	unix.AF_UNIX: {"SO": unix.SOL_SOCKET},
	unix.AF_INET: {"SO": unix.SOL_SOCKET, "IP": unix.IPPROTO_IP, "TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "UDPLITE": unix.IPPROTO_UDPLITE, "ICMP": 255},
	unix.AF_INET6: {"SO": unix.SOL_SOCKET, "IP": unix.IPPROTO_IP, "IPV6": unix.IPPROTO_IPV6, "TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP,
		"UDPLITE": unix.IPPROTO_UDPLITE, "ICMPV6": unix.IPPROTO_ICMPV6},
	unix.AF_NETLINK: {"SO": unix.SOL_SOCKET, "NETLINK": unix.SOL_NETLINK},
	unix.AF_PACKET:  {"SO": unix.SOL_SOCKET, "PACKET": unix.SOL_PACKET},
}

// notAsked are options that no comparison may ask for, or that need a question.
var notAsked = map[string]string{
	"SO_ERROR": "telling it takes it away", "SO_PEERPIDFD": "makes a descriptor", "SO_GET_FILTER": "its length is in instructions; asked by itself",
	"PACKET_STATISTICS": "telling it takes it away", "TCP_SAVED_SYN": "telling it takes it away", "TCP_ZEROCOPY_RECEIVE": "takes data",
	"IP_MSFILTER": "asks about one group: udp.c", "MCAST_MSFILTER": "asks about one group: udp.c", "IPV6_FLOWLABEL_MGR": "asks about one label: refused if there is one",
	"TCP_AO_GET_KEYS": "asks about keys", "TCP_AO_INFO": "asks about keys", "TCP_AO_REPAIR": "needs TCP_REPAIR", "TCP_REPAIR_WINDOW": "needs TCP_REPAIR",
	"TCP_FASTOPEN_KEY": "of the network namespace where the socket has none",
}

// ignoredSockopt are options that by nature differ afterwards.
var ignoredSockopt = map[string]string{
	"SO_COOKIE":             "a number that the kernel gives at birth",
	"SO_INCOMING_CPU":       "which processor had the last packet",
	"SO_INCOMING_NAPI_ID":   "as SO_INCOMING_CPU",
	"SO_MEMINFO":            "memory in use",
	"IP_MTU":                "of the route at the moment",
	"IPV6_MTU":              "as IP_MTU",
	"IPV6_PATHMTU":          "as IP_MTU",
	"PACKET_ROLLOVER_STATS": "history",
	"TCP_INFO":              "times and counts: history",
	"TCP_CC_INFO":           "as TCP_INFO",
	"TCP_TIMESTAMP":         "a clock",
	"TCP_MAXSEG":            "what goes into a packet just now",
	"TCP_QUICKACK":          "which the kernel turns on and off",
}

// numbers are options by name. What is not here is compared under its number.
var sockoptNumbers = map[string]int{
	"SO_ERROR": unix.SO_ERROR, "SO_PEERPIDFD": unix.SO_PEERPIDFD, "SO_GET_FILTER": unix.SO_ATTACH_FILTER, "SO_COOKIE": unix.SO_COOKIE,
	"SO_INCOMING_CPU": unix.SO_INCOMING_CPU, "SO_INCOMING_NAPI_ID": unix.SO_INCOMING_NAPI_ID, "SO_MEMINFO": unix.SO_MEMINFO,
	"PACKET_STATISTICS": unix.PACKET_STATISTICS, "PACKET_ROLLOVER_STATS": unix.PACKET_ROLLOVER_STATS,
	"IP_MSFILTER": unix.IP_MSFILTER, "MCAST_MSFILTER": unix.MCAST_MSFILTER, "IPV6_FLOWLABEL_MGR": 32, "IP_MTU": unix.IP_MTU, "IPV6_MTU": unix.IPV6_MTU,
	"IPV6_PATHMTU": unix.IPV6_PATHMTU, "TCP_SAVED_SYN": unix.TCP_SAVED_SYN, "TCP_ZEROCOPY_RECEIVE": unix.TCP_ZEROCOPY_RECEIVE, "TCP_INFO": unix.TCP_INFO,
	"TCP_CC_INFO": unix.TCP_CC_INFO, "TCP_TIMESTAMP": unix.TCP_TIMESTAMP, "TCP_MAXSEG": unix.TCP_MAXSEG, "TCP_QUICKACK": unix.TCP_QUICKACK, "TCP_REPAIR_WINDOW": unix.TCP_REPAIR_WINDOW, "TCP_FASTOPEN_KEY": unix.TCP_FASTOPEN_KEY,
	"TCP_AO_INFO": 40, "TCP_AO_GET_KEYS": 41, "TCP_AO_REPAIR": 42,
}

// notCompared are the same by level and number.
var notCompared = func() map[[2]int]bool {
	all := map[[2]int]bool{}
	for _, list := range []map[string]string{notAsked, ignoredSockopt} {
		for name := range list {
			prefix, _, _ := strings.Cut(name, "_")
			for _, levels := range sockoptLevels {
				if level, ok := levels[prefix]; ok {
					all[[2]int{level, sockoptNumbers[name]}] = true
				}
				if prefix == "MCAST" {
					all[[2]int{unix.IPPROTO_IP, sockoptNumbers[name]}], all[[2]int{unix.IPPROTO_IPV6, sockoptNumbers[name]}] = true, true
				}
			}
		}
	}
	for n := 64; n < maxSockopt; n++ { // the firewall's: IPT_SO_GET_INFO ... SO_ORIGINAL_DST of linux/netfilter_ipv4.h
		all[[2]int{unix.IPPROTO_IP, n}] = true
	}
	for _, n := range []int{64, 65, 80} { // and IP6T_SO_GET_INFO ... of linux/netfilter_ipv6
		all[[2]int{unix.IPPROTO_IPV6, n}] = true
	}
	return all
}()

// ofOpening are options that tell of a TCP connection what the packet that opened it had, and that nobody can set; and IPV6_V6ONLY, which
// bind(2) to an address sets and which has no effect on a connection.
var ofOpening = map[[2]int]bool{{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}: true, {unix.IPPROTO_IP, unix.IP_MULTICAST_TTL}: true, {unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF}: true, {unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS}: true}

// askSocket puts what getsockopt(2), getsockname(2), getpeername(2) and ioctl(2) say of a socket into the snapshot.
func askSocket(fd int, put func(name, value string)) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return // no socket
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	tcp := err == nil && kind == unix.SOCK_STREAM && family != unix.AF_UNIX
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	listening := err == nil && listens != 0
	for prefix, level := range sockoptLevels[family] {
		for n := range maxSockopt {
			if notCompared[[2]int{level, n}] || tcp && !listening && ofOpening[[2]int{level, n}] {
				continue
			}
			if value, ok := sockopt(fd, level, n); ok {
				put(fmt.Sprintf("%s option %d", prefix, n), value)
			}
		}
	}
	if n, err := unix.IoctlGetInt(fd, unix.SIOCINQ); err == nil {
		put("SIOCINQ", strconv.Itoa(n))
	}
	if family == unix.AF_UNIX {
		return // autobound names and names in removed files have their own tests
	}
	if _, err := unix.Getpeername(fd); tcp && !listening && err != nil {
		return // a connection that has ended may tell another address afterwards
	}
	for name, call := range map[string]func(int) (unix.Sockaddr, error){"getsockname": unix.Getsockname, "getpeername": unix.Getpeername} {
		a, err := call(fd)
		put(name, fmt.Sprintf("%+v %v", a, err))
	}
}

// IgnoredSockopts and NotAskedSockopts are the names in the lists.
func IgnoredSockopts() map[string]string { return ignoredSockopt }

// NotAskedSockopts are the options that are not asked for.
func NotAskedSockopts() map[string]string { return notAsked }

var sockoptLine = regexp.MustCompile(`(?m)^\tX\(\d+, \d+, (\w+), `)

// SetSockopts are the names of the options that the fixture sockopts sets.
func SetSockopts() (map[string]bool, error) {
	all := map[string]bool{}
	text, err := os.ReadFile(filepath.Join(Root(), "test", "testdata", "prog", "sockopts.h"))
	for _, m := range sockoptLine.FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = true
	}
	return all, err
}
