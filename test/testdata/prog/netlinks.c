/*
 * Netlink sockets: bound to a port id of their own, to one that the kernel chose, not bound, connected, in groups beyond the 32nd, with
 * options. Afterwards they are the same, are told what they want to be told, and get answers.
 */
#include "fixture.h"
#include <linux/audit.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

static void set(int fd, int name, int value) { MUST(setsockopt(fd, SOL_NETLINK, name, &value, sizeof value)); }

static int get(int fd, int name)
{
	int value = -12345;
	socklen_t n = sizeof value;
	if (getsockopt(fd, SOL_NETLINK, name, &value, &n))
		FAIL("getsockopt(%d): %s", name, strerror(errno));
	return value;
}

static unsigned port_of(int fd)
{
	struct sockaddr_nl a = { 0 };
	socklen_t n = sizeof a;
	if (getsockname(fd, (void *)&a, &n))
		FAIL("getsockname: %s", strerror(errno));
	return a.nl_pid;
}

static int member(int fd, int group)
{
	unsigned words[64] = { 0 };
	socklen_t n = sizeof words;
	if (getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &n))
		FAIL("NETLINK_LIST_MEMBERSHIPS: %s", strerror(errno));
	return words[(group - 1) / 32] >> ((group - 1) % 32) & 1;
}

/* asks for the loopback device; the name in the answer */
static void ask(int fd)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg i;
	} q = { { sizeof q, RTM_GETLINK, NLM_F_REQUEST, 77, 0 }, { .ifi_family = AF_UNSPEC, .ifi_index = 1 } };
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	static char answer[65536];
	if (sendto(fd, &q, sizeof q, 0, (void *)&kernel, sizeof kernel) < 0) {
		FAIL("request: %s", strerror(errno));
		return;
	}
	ssize_t n = recv(fd, answer, sizeof answer, 0);
	struct nlmsghdr *h = (void *)answer;
	CHECK(n > (ssize_t)sizeof *h && h->nlmsg_type == RTM_NEWLINK && h->nlmsg_seq == 77, "answer of %zd bytes", n);
}

/* an answer comes to each question, if only that it may not be asked */
static void audit_ask(int fd, unsigned seq)
{
	struct nlmsghdr ask = { .nlmsg_len = sizeof ask, .nlmsg_type = AUDIT_GET, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = seq };
	union { struct nlmsghdr h; char b[4096]; } answer;
	if (send(fd, &ask, sizeof ask, 0) < 0)
		return;
	ssize_t n = recv(fd, &answer, sizeof answer, 0);
	CHECK(n >= (ssize_t)sizeof answer.h && answer.h.nlmsg_seq == seq, "the audit system answers with %zd bytes to %u", n, answer.h.nlmsg_seq);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	unsigned n;
	MUST(getentropy(&n, sizeof n));
	struct sockaddr_nl a = { .nl_family = AF_NETLINK, .nl_pid = n | 0x40000000, .nl_groups = 0 };

	int own = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	MUST(bind(own, (void *)&a, sizeof a));
	set(own, NETLINK_PKTINFO, 1);
	set(own, NETLINK_NO_ENOBUFS, 1);
	set(own, NETLINK_BROADCAST_ERROR, 1);
	set(own, NETLINK_CAP_ACK, 1);
	set(own, NETLINK_EXT_ACK, 1);
	set(own, NETLINK_GET_STRICT_CHK, 1);

	int chosen = MUST(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE));
	struct sockaddr_nl any = { .nl_family = AF_NETLINK };
	MUST(bind(chosen, (void *)&any, sizeof any));
	unsigned id = port_of(chosen);
	ask(chosen);

	/* quiet groups: of labels of MPLS, which is the 27th, and of nexthops and tunnels, beyond the 32nd */
	int groups = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE));
	set(groups, NETLINK_ADD_MEMBERSHIP, 27);
	set(groups, NETLINK_ADD_MEMBERSHIP, 34);

	int unbound = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG));
	int connected = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK));
	struct sockaddr_nl to = { .nl_family = AF_NETLINK, .nl_pid = 4711, .nl_groups = 0 };
	MUST(connect(connected, (void *)&to, sizeof to));
	int uevents = MUST(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT));

	/* as daemons that may have a word to say to the audit system hold one */
	int audit = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT);
	if (audit >= 0)
		audit_ask(audit, 1);

	fx_ready();
	fx_wait_check();
	if (audit >= 0)
		audit_ask(audit, 2);

	CHECK_EQ(port_of(own), a.nl_pid, "port id");
	CHECK_EQ(get(own, NETLINK_PKTINFO), 1, "NETLINK_PKTINFO");
	CHECK_EQ(get(own, NETLINK_NO_ENOBUFS), 1, "NETLINK_NO_ENOBUFS");
	CHECK_EQ(get(own, NETLINK_BROADCAST_ERROR), 1, "NETLINK_BROADCAST_ERROR");
	CHECK_EQ(get(own, NETLINK_CAP_ACK), 1, "NETLINK_CAP_ACK");
	CHECK_EQ(get(own, NETLINK_EXT_ACK), 1, "NETLINK_EXT_ACK");
	CHECK_EQ(get(own, NETLINK_GET_STRICT_CHK), 1, "NETLINK_GET_STRICT_CHK");
	CHECK_EQ(port_of(chosen), id, "chosen port id");
	ask(chosen);
	CHECK_EQ(port_of(groups), 0, "port id of one that is not bound");
	for (int i = 1; i <= 40; i++)
		CHECK_EQ(member(groups, i), i == 27 || i == 34, "member of a group");
	CHECK_EQ(port_of(unbound), 0, "port id of one that is not bound");
	CHECK_EQ(port_of(uevents), 0, "port id of one that is not bound");
	struct sockaddr_nl peer = { 0 };
	socklen_t len = sizeof peer;
	CHECK_EQ(getpeername(connected, (void *)&peer, &len), 0, "getpeername");
	CHECK_EQ(peer.nl_pid, 4711, "the peer");
	int type = 0;
	len = sizeof type;
	CHECK_EQ(getsockopt(chosen, SOL_SOCKET, SO_TYPE, &type, &len), 0, "SO_TYPE");
	CHECK_EQ(type, SOCK_DGRAM, "SO_TYPE");
	ask(unbound == -1 ? unbound : own);
	fx_finish();
}
