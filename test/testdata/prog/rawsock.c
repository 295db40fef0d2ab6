/*
 * Raw, ICMP and packet sockets: bound, connected, with filters, options and memberships, and none of them hears anything. Afterwards
 * they are as before, and hear.
 */
#include "fixture.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <sys/socket.h>

#ifndef ICMP_FILTER
#define ICMP_FILTER 1
#endif

static void set(int fd, int level, int name, int value) { MUST(setsockopt(fd, level, name, &value, sizeof value)); }

static int get(int fd, int level, int name)
{
	int value = -12345;
	socklen_t n = sizeof value;
	if (getsockopt(fd, level, name, &value, &n))
		FAIL("getsockopt(%d, %d): %s", level, name, strerror(errno));
	return value;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	unsigned odd; /* programs of the same kind run beside this one */
	MUST(getentropy(&odd, sizeof odd));
	unsigned short proto = 0xa000 + odd % 0x1000;
	struct sockaddr_in lo = { .sin_family = AF_INET, .sin_addr = { htonl(0x7f000000 | (odd & 0x7fffff) | 0x100) } };

	/* protocol 253 is for experiments (RFC 3692): nobody sends it */
	int r4 = MUST(socket(AF_INET, SOCK_RAW, 253));
	MUST(bind(r4, (void *)&lo, sizeof lo));
	MUST(connect(r4, (void *)&lo, sizeof lo));
	set(r4, IPPROTO_IP, IP_HDRINCL, 1);
	set(r4, IPPROTO_IP, IP_TTL, 9);

	int icmp = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	struct sock_filter none[] = { BPF_STMT(BPF_RET | BPF_K, 0) };
	struct sock_fprog prog = { 1, none };
	MUST(setsockopt(icmp, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog)); /* others ping */
	unsigned filter = 0x12345;
	MUST(setsockopt(icmp, SOL_RAW, ICMP_FILTER, &filter, sizeof filter));

	int only = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_RAW)), without = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_RAW));
	set(without, IPPROTO_IP, IP_HDRINCL, 0);

	int r6 = MUST(socket(AF_INET6, SOCK_RAW, 253));
	set(r6, IPPROTO_IPV6, IPV6_CHECKSUM, 4);
	int icmp6 = MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
	struct icmp6_filter f6;
	ICMP6_FILTER_SETBLOCKALL(&f6);
	MUST(setsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &f6, sizeof f6));

	/* frames of protocols that nobody speaks */
	int pk = MUST(socket(AF_PACKET, SOCK_RAW, 0));
	struct sockaddr_ll ll = { .sll_family = AF_PACKET, .sll_protocol = htons(proto), .sll_ifindex = 1 };
	MUST(bind(pk, (void *)&ll, sizeof ll));
	set(pk, SOL_PACKET, PACKET_AUXDATA, 1);
	set(pk, SOL_PACKET, PACKET_ORIGDEV, 1);
	struct packet_mreq mr = { 1, PACKET_MR_MULTICAST, 6, { 1, 2, 3, 4, 5, 6 } };
	MUST(setsockopt(pk, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &mr, sizeof mr));
	int cooked = MUST(socket(AF_PACKET, SOCK_DGRAM, htons(0x88b6)));

	fx_ready();
	fx_wait_check();

	struct sockaddr_in peer = { 0 };
	socklen_t n = sizeof peer;
	CHECK_EQ(getsockname(r4, (void *)&peer, &n), 0, "getsockname");
	CHECK_EQ(peer.sin_addr.s_addr, lo.sin_addr.s_addr, "address");
	CHECK_EQ(get(r4, IPPROTO_IP, IP_HDRINCL), 1, "IP_HDRINCL");
	CHECK_EQ(get(r4, IPPROTO_IP, IP_TTL), 9, "IP_TTL");
	CHECK_EQ(get(only, IPPROTO_IP, IP_HDRINCL), 1, "IP_HDRINCL of IPPROTO_RAW");
	CHECK_EQ(get(without, IPPROTO_IP, IP_HDRINCL), 0, "IP_HDRINCL of IPPROTO_RAW, turned off");
	CHECK_EQ(get(icmp, SOL_RAW, ICMP_FILTER), 0x12345, "ICMP_FILTER");
	CHECK_EQ(get(r6, IPPROTO_IPV6, IPV6_CHECKSUM), 4, "IPV6_CHECKSUM");
	struct icmp6_filter now;
	n = sizeof now;
	CHECK_EQ(getsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &now, &n), 0, "ICMP6_FILTER");
	CHECK(!memcmp(&now, &f6, sizeof f6), "ICMP6_FILTER");
	CHECK_EQ(get(icmp, SOL_SOCKET, SO_PROTOCOL), IPPROTO_ICMP, "SO_PROTOCOL");

	/* the raw socket hears what is sent to it, from whom it is connected to */
	struct {
		unsigned char head[20];
		char text[4];
	} packet = { { 0x45, 0, 0, 24, 0, 1, 0, 0, 9, 253 }, "raw" }, got;
	memcpy(packet.head + 12, &lo.sin_addr, 4);
	memcpy(packet.head + 16, &lo.sin_addr, 4);
	CHECK_EQ(send(r4, &packet, sizeof packet, 0), (int)sizeof packet, "send");
	struct timeval patience = { 5, 0 };
	setsockopt(r4, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	setsockopt(pk, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	CHECK_EQ(recv(r4, &got, sizeof got, 0), (int)sizeof got, "recv");
	CHECK(!memcmp(got.text, packet.text, 4), "what it heard");

	struct sockaddr_ll is = { 0 };
	n = sizeof is;
	CHECK_EQ(getsockname(pk, (void *)&is, &n), 0, "getsockname");
	CHECK_EQ(ntohs(is.sll_protocol), proto, "protocol");
	CHECK_EQ(is.sll_ifindex, 1, "interface");
	CHECK_EQ(get(pk, SOL_PACKET, PACKET_AUXDATA), 1, "PACKET_AUXDATA");
	CHECK_EQ(get(pk, SOL_PACKET, PACKET_ORIGDEV), 1, "PACKET_ORIGDEV");
	CHECK_EQ(setsockopt(pk, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &mr, sizeof mr), 0, "PACKET_DROP_MEMBERSHIP");
	n = sizeof is;
	CHECK_EQ(getsockname(cooked, (void *)&is, &n), 0, "getsockname");
	CHECK_EQ(ntohs(is.sll_protocol), 0x88b6, "protocol");
	CHECK_EQ(is.sll_ifindex, 0, "interface");
	unsigned char frame[60] = { [12] = proto >> 8, proto & 0xff, 'h', 'i' }, heard[100];
	CHECK_EQ(send(pk, frame, sizeof frame, 0), (int)sizeof frame, "send");
	CHECK_EQ(recv(pk, heard, sizeof heard, 0), (int)sizeof frame, "recv");
	fx_finish();
}
