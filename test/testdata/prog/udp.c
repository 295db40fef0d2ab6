/*
 * UDP sockets: bound, connected, neither; options; groups; a port that two share; and datagrams that wait, of which who sent them, by
 * which interface, with which TTL and type of service is as it was, in order, and nothing comes twice.
 */
#include "fixture.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int port_of(int fd)
{
	struct sockaddr_storage a;
	socklen_t n = sizeof a;
	if (getsockname(fd, (void *)&a, &n))
		return -1;
	return ntohs(a.ss_family == AF_INET ? ((struct sockaddr_in *)&a)->sin_port : ((struct sockaddr_in6 *)&a)->sin6_port);
}

static void set(int fd, int level, int name, int value)
{
	MUST(setsockopt(fd, level, name, &value, sizeof value));
}

static int get(int fd, int level, int name)
{
	int value = -12345;
	socklen_t n = sizeof value;
	if (getsockopt(fd, level, name, &value, &n))
		FAIL("getsockopt(%d, %d): %s", level, name, strerror(errno));
	return value;
}

static struct sockaddr_in at4(const char *addr, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	inet_pton(AF_INET, addr, &a.sin_addr);
	return a;
}

static struct sockaddr_in6 at6(const char *addr, int port)
{
	struct sockaddr_in6 a = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	inet_pton(AF_INET6, addr, &a.sin6_addr);
	return a;
}

/* below what the kernel chooses by itself: programs of the same kind run beside this one */
static int free_port(void)
{
	unsigned n;
	MUST(getentropy(&n, sizeof n));
	return 10000 + n % 20000;
}

static int udp4(const char *addr, int port)
{
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	struct sockaddr_in a;
	for (int i = 0; i < 100; i++) {
		a = at4(addr, port < 0 ? free_port() : port);
		if (!bind(fd, (void *)&a, sizeof a))
			return fd;
	}
	FAIL("set-up: bind: %s", strerror(errno));
	fx_finish();
	return -1;
}

static int udp6(const char *addr)
{
	int fd = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	struct sockaddr_in6 a;
	for (int i = 0; i < 100; i++) {
		a = at6(addr, free_port());
		if (!bind(fd, (void *)&a, sizeof a))
			return fd;
	}
	FAIL("set-up: bind: %s", strerror(errno));
	fx_finish();
	return -1;
}

struct msg {
	size_t len;
	int from, ttl, tos, ifindex, port;
	char addr[64];
};

static char buf[70000];

/* one datagram with all that can be told of it; len -1: none */
static struct msg take(int fd)
{
	struct msg m = { .len = -1, .ttl = -1, .tos = -1, .ifindex = -1 };
	struct sockaddr_storage from;
	char control[512];
	struct iovec v = { buf, sizeof buf };
	struct msghdr h = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(fd, &h, MSG_DONTWAIT);
	if (n < 0)
		return m;
	m.len = n;
	if (from.ss_family == AF_INET) {
		inet_ntop(AF_INET, &((struct sockaddr_in *)&from)->sin_addr, m.addr, sizeof m.addr);
		m.port = ntohs(((struct sockaddr_in *)&from)->sin_port);
	} else {
		inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&from)->sin6_addr, m.addr, sizeof m.addr);
		m.port = ntohs(((struct sockaddr_in6 *)&from)->sin6_port);
	}
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL)
			memcpy(&m.ttl, CMSG_DATA(c), 4);
		else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS)
			m.tos = *CMSG_DATA(c);
		else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
			m.ifindex = ((struct in_pktinfo *)CMSG_DATA(c))->ipi_ifindex;
		else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT)
			memcpy(&m.ttl, CMSG_DATA(c), 4);
		else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS)
			memcpy(&m.tos, CMSG_DATA(c), 4);
		else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
			m.ifindex = ((struct in6_pktinfo *)CMSG_DATA(c))->ipi6_ifindex;
	}
	return m;
}

/* what was sent: its size and a seed say all of its bytes */
static void fill(char *p, size_t len, int seed)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (char)fx_mix(seed * 1000003ull + i);
}

static void expect(const char *what, int fd, size_t len, int seed, const char *addr, int port, int ttl, int tos, int ifindex)
{
	static char want[70000];
	struct msg m = take(fd);
	if (m.len == (size_t)-1) {
		FAIL("%s: nothing to read: %s", what, strerror(errno));
		return;
	}
	fill(want, len, seed);
	CHECK_EQ(m.len, len, what);
	CHECK(m.len != len || !memcmp(buf, want, len), "%s: other bytes", what);
	CHECK(!strcmp(m.addr, addr), "%s: from %s, not %s", what, m.addr, addr);
	CHECK_EQ(m.port, port, what);
	CHECK_EQ(m.ttl, ttl, what);
	CHECK_EQ(m.tos, tos, what);
	CHECK_EQ(m.ifindex, ifindex, what);
}

static void nothing(const char *what, int fd)
{
	struct msg m = take(fd);
	CHECK(m.len == (size_t)-1 && errno == EAGAIN, "%s: %zd bytes from %s", what, m.len, m.addr);
}

static void sends(int fd, const void *to, socklen_t n, size_t len, int seed)
{
	fill(buf, len, seed);
	MUST(sendto(fd, buf, len, 0, to, n));
}

/* whether a group is told of, and by how many sources */
static int sources(int fd, const char *group, unsigned *mode)
{
	struct {
		struct group_filter f;
		struct sockaddr_storage more[8];
	} b = { .f = { .gf_interface = 1, .gf_numsrc = 8 } };
	socklen_t n = sizeof b;
	struct sockaddr_in g = at4(group, 0);
	memcpy(&b.f.gf_group, &g, sizeof g);
	if (getsockopt(fd, IPPROTO_IP, MCAST_MSFILTER, &b, &n))
		return -1;
	*mode = b.f.gf_fmode;
	return b.f.gf_numsrc;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct sockaddr_in to4;
	struct sockaddr_in6 to6;
	static const size_t sizes[] = { 10, 0, 1472, 9000, 65000, 1 };

	/* options and a queue, over IPv4 */
	int a = udp4("127.0.0.1", -1), pa = port_of(a);
	set(a, SOL_SOCKET, SO_RCVBUF, 1 << 20);
	set(a, SOL_SOCKET, SO_BROADCAST, 1);
	set(a, IPPROTO_IP, IP_TTL, 7);
	set(a, IPPROTO_IP, IP_TOS, 0x48);
	set(a, IPPROTO_IP, IP_RECVTTL, 1);
	set(a, IPPROTO_IP, IP_RECVTOS, 1);
	set(a, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
	int rcvbuf = get(a, SOL_SOCKET, SO_RCVBUF), priority = get(a, SOL_SOCKET, SO_PRIORITY);
	int s1 = udp4("127.0.0.5", -1), s2 = udp4("127.9.9.9", -1), p1 = port_of(s1), p2 = port_of(s2);
	set(s2, IPPROTO_IP, IP_TTL, 3);
	set(s2, IPPROTO_IP, IP_TOS, 0x20);
	to4 = at4("127.0.0.1", pa);
	for (int i = 0; i < 6; i++) {
		if (i == 3)
			set(a, IPPROTO_IP, IP_PKTINFO, 1);
		sends(i % 2 ? s2 : s1, &to4, sizeof to4, sizes[i], i);
	}

	/* over IPv6, with one of IPv4 among them */
	int b = udp6("::"), pb = port_of(b);
	set(b, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	set(b, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	set(b, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	set(b, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 77);
	set(b, SOL_SOCKET, SO_RCVBUF, 1 << 20);
	int s6 = udp6("::1"), p6 = port_of(s6);
	set(s6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 99);
	set(s6, IPPROTO_IPV6, IPV6_TCLASS, 0x54);
	to6 = at6("::1", pb);
	for (int i = 0; i < 5; i++)
		sends(s6, &to6, sizeof to6, sizes[i], 100 + i);
	to4 = at4("127.0.0.1", pb);
	sends(s1, &to4, sizeof to4, 300, 200);
	sends(s6, &to6, sizeof to6, 33, 201);

	/* connected, port and address chosen by the kernel; something waits in it, of before and of after */
	int c = udp4("0.0.0.0", 0), pc = port_of(c);
	to4 = at4("127.0.0.1", pc);
	sends(s2, &to4, sizeof to4, 5, 300);
	to4 = at4("127.0.0.5", p1);
	MUST(connect(c, (void *)&to4, sizeof to4));
	to4 = at4("127.0.0.1", pc);
	sends(s1, &to4, sizeof to4, 6, 301);
	int cd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	to4 = at4("127.0.0.5", p1);
	MUST(connect(cd, (void *)&to4, sizeof to4));
	int pcd = port_of(cd);
	shutdown(cd, SHUT_RD);

	/* a port that two share */
	int shared[2], ps = 0, which = -1;
	for (int i = 0; i < 2; i++) {
		shared[i] = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
		set(shared[i], SOL_SOCKET, SO_REUSEPORT, 1);
		for (int k = 0; k < 100; k++) {
			to4 = at4("127.0.0.1", i ? ps : free_port());
			if (!bind(shared[i], (void *)&to4, sizeof to4))
				break;
		}
		ps = port_of(shared[0]);
	}
	CHECK_EQ(port_of(shared[1]), ps, "set-up: the shared port");
	sends(s1, &to4, sizeof to4, 20, 400);
	struct pollfd p[2] = { { shared[0], POLLIN, 0 }, { shared[1], POLLIN, 0 } };
	CHECK_EQ(poll(p, 2, 1000), 1, "set-up: one of the two has it");
	which = p[1].revents ? 1 : 0;

	/* nothing but options; groups */
	int o = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	struct ip_mreqn mr = { .imr_multiaddr = at4("239.7.7.7", 0).sin_addr, .imr_ifindex = 1 };
	MUST(setsockopt(o, IPPROTO_IP, IP_ADD_MEMBERSHIP, &mr, sizeof mr));
	struct group_source_req gs = { .gsr_interface = 1 };
	struct sockaddr_in g = at4("239.7.7.8", 0), src = at4("127.3.3.3", 0);
	memcpy(&gs.gsr_group, &g, sizeof g);
	memcpy(&gs.gsr_source, &src, sizeof src);
	MUST(setsockopt(o, IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &gs, sizeof gs));
	MUST(setsockopt(o, IPPROTO_IP, IP_MULTICAST_IF, &mr, sizeof mr));
	set(o, IPPROTO_IP, IP_MULTICAST_TTL, 5);
	set(o, IPPROTO_IP, IP_MULTICAST_ALL, 0);
	set(o, IPPROTO_UDP, UDP_CORK, 1);
	int v6only = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	set(v6only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	struct ipv6_mreq m6 = { .ipv6mr_interface = 1 };
	inet_pton(AF_INET6, "ff02::4:5", &m6.ipv6mr_multiaddr);
	MUST(setsockopt(v6only, IPPROTO_IPV6, IPV6_JOIN_GROUP, &m6, sizeof m6));

	fx_ready();
	fx_wait_check();

	CHECK_EQ(port_of(a), pa, "port");
	CHECK_EQ(port_of(b), pb, "port");
	CHECK_EQ(get(a, SOL_SOCKET, SO_RCVBUF), rcvbuf, "SO_RCVBUF");
	CHECK_EQ(get(a, SOL_SOCKET, SO_PRIORITY), priority, "SO_PRIORITY");
	CHECK_EQ(get(a, SOL_SOCKET, SO_BROADCAST), 1, "SO_BROADCAST");
	CHECK_EQ(get(a, IPPROTO_IP, IP_TTL), 7, "IP_TTL");
	CHECK_EQ(get(a, IPPROTO_IP, IP_TOS), 0x48, "IP_TOS");
	CHECK_EQ(get(a, IPPROTO_IP, IP_MTU_DISCOVER), IP_PMTUDISC_DO, "IP_MTU_DISCOVER");
	for (int i = 0; i < 6; i++)
		expect("waiting over IPv4", a, sizes[i], i, i % 2 ? "127.9.9.9" : "127.0.0.5", i % 2 ? p2 : p1, i % 2 ? 3 : 64, i % 2 ? 0x20 : 0, i < 3 ? 0 : 1);
	nothing("after the last", a);
	for (int i = 0; i < 5; i++)
		expect("waiting over IPv6", b, sizes[i], 100 + i, "::1", p6, 99, 0x54, 1);
	expect("waiting, of IPv4", b, 300, 200, "::ffff:127.0.0.5", p1, -1, -1, 1);
	expect("waiting over IPv6", b, 33, 201, "::1", p6, 99, 0x54, 1);
	nothing("after the last of IPv6", b);
	CHECK_EQ(get(b, IPPROTO_IPV6, IPV6_UNICAST_HOPS), 77, "IPV6_UNICAST_HOPS");
	expect("of before the connect", c, 5, 300, "127.9.9.9", p2, -1, -1, -1);
	expect("of after it", c, 6, 301, "127.0.0.5", p1, -1, -1, -1);
	nothing("after these", c);
	CHECK_EQ(port_of(c), pc, "chosen port");
	CHECK_EQ(port_of(cd), pcd, "chosen port");
	CHECK_EQ(recv(cd, buf, 10, 0), 0, "after SHUT_RD");
	struct sockaddr_in peer;
	socklen_t n = sizeof peer;
	CHECK_EQ(getpeername(c, (void *)&peer, &n), 0, "getpeername");
	CHECK_EQ(ntohs(peer.sin_port), p1, "the peer");
	expect("shared", shared[which], 20, 400, "127.0.0.5", p1, -1, -1, -1);
	nothing("shared, once", shared[0]);
	nothing("shared, once", shared[1]);

	/* it goes on: what is sent arrives, and what is forgotten by a disconnect is what the kernel had chosen */
	fill(buf, 50, 500);
	CHECK_EQ(send(c, buf, 50, 0), 50, "send");
	expect("sent now", s1, 50, 500, "127.0.0.1", pc, -1, -1, -1);
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	CHECK_EQ(connect(cd, &none, sizeof none), 0, "disconnect");
	int range;
	n = sizeof range;
	if (!getsockopt(cd, IPPROTO_IP, 51, &range, &n)) /* IP_LOCAL_PORT_RANGE, without which the choice cannot be had again */
		CHECK_EQ(port_of(cd), 0, "a port that the kernel chose is forgotten");
	CHECK_EQ(connect(a, &none, sizeof none), 0, "disconnect");
	CHECK_EQ(port_of(a), pa, "a port that bind gave is not");
	sends(s2, &(struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(pa), .sin_addr = { htonl(INADDR_LOOPBACK) } }, sizeof to4, 70, 501);
	expect("sent now", a, 70, 501, "127.9.9.9", p2, 3, 0x20, 1);

	unsigned mode = 9;
	CHECK_EQ(sources(o, "239.7.7.7", &mode), 0, "sources of a group");
	CHECK_EQ(mode, MCAST_EXCLUDE, "its mode");
	CHECK_EQ(sources(o, "239.7.7.8", &mode), 1, "sources of a group");
	CHECK_EQ(mode, MCAST_INCLUDE, "its mode");
	CHECK_EQ(get(o, IPPROTO_IP, IP_MULTICAST_TTL), 5, "IP_MULTICAST_TTL");
	CHECK_EQ(get(o, IPPROTO_IP, IP_MULTICAST_ALL), 0, "IP_MULTICAST_ALL");
	CHECK_EQ(get(o, IPPROTO_UDP, UDP_CORK), 1, "UDP_CORK");
	CHECK_EQ(setsockopt(o, IPPROTO_IP, IP_DROP_MEMBERSHIP, &mr, sizeof mr), 0, "IP_DROP_MEMBERSHIP");
	CHECK_EQ(get(v6only, IPPROTO_IPV6, IPV6_V6ONLY), 1, "IPV6_V6ONLY");
	CHECK_EQ(setsockopt(v6only, IPPROTO_IPV6, IPV6_LEAVE_GROUP, &m6, sizeof m6), 0, "IPV6_LEAVE_GROUP");
	CHECK_EQ(setsockopt(v6only, IPPROTO_IPV6, IPV6_LEAVE_GROUP, &m6, sizeof m6), -1, "IPV6_LEAVE_GROUP twice");
	fx_finish();
}
