/*
 * Has a socket of the kind that its argument names, which no checkpoint keeps so far: the dump says which. It goes on unharmed. Where the kernel has no such socket it makes
 * DIR/absent.
 */
#include "fixture.h"
#include <arpa/inet.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int one(int family, int type, int protocol)
{
	int fd = socket(family, type, protocol);
	if (fd < 0)
		fx_touch("absent", "");
	return fd;
}

static void pair(int fd[2])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int l = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, sizeof a));
	MUST(listen(l, 1));
	MUST(getsockname(l, (void *)&a, &len));
	fd[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(fd[0], (void *)&a, len));
	fd[1] = MUST(accept(l, NULL, NULL));
	close(l);
}

/* a socket that listens, and signs with a key what it sends to one address */
static void signs(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct tcp_md5sig key = { .tcpm_keylen = 6, .tcpm_key = "secret" };
	memcpy(&key.tcpm_addr, &a, sizeof a);
	int l = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, sizeof a));
	MUST(listen(l, 1));
	if (setsockopt(l, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key))
		fx_touch("absent", "");
}

static void authenticates(void)
{
	/* struct tcp_ao_add of linux/tcp.h, since 6.7 */
	struct {
		struct sockaddr_storage addr;
		char algorithm[64];
		int32_t ifindex;
		uint32_t bits;
		uint16_t reserved;
		uint8_t prefix, sndid, rcvid, maclen, keyflags, keylen, key[80];
	} __attribute__((aligned(8))) add = { .algorithm = "hmac(sha1)", .sndid = 1, .rcvid = 1, .keylen = 6, .prefix = 32, .key = "secret" };
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	memcpy(&add.addr, &a, sizeof a);
	const int add_key = 38; /* TCP_AO_ADD_KEY */
	int s = MUST(socket(AF_INET, SOCK_STREAM, 0));
	if (setsockopt(s, IPPROTO_TCP, add_key, &add, sizeof add))
		fx_touch("absent", "");
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	const char *what = fx_argc ? fx_argv[0] : "";
	int fd[2];
	if (!strcmp(what, "vsock")) {
		one(40, SOCK_STREAM, 0);
	} else if (!strcmp(what, "xdp")) {
		one(44, SOCK_RAW, 0);
	} else if (!strcmp(what, "alg")) {
		one(38, SOCK_SEQPACKET, 0);
	} else if (!strcmp(what, "can")) {
		one(29, SOCK_RAW, 1);
	} else if (!strcmp(what, "tipc")) {
		one(30, SOCK_RDM, 0);
	} else if (!strcmp(what, "rds")) {
		one(21, SOCK_SEQPACKET, 0);
	} else if (!strcmp(what, "smc")) {
		one(43, SOCK_STREAM, 0);
	} else if (!strcmp(what, "bluetooth")) {
		one(31, SOCK_RAW, 1);
	} else if (!strcmp(what, "sctp")) {
		one(AF_INET, SOCK_STREAM, 132);
	} else if (!strcmp(what, "ktls")) {
		pair(fd);
		if (setsockopt(fd[0], IPPROTO_TCP, TCP_ULP, "tls", 3))
			fx_touch("absent", "");
	} else if (!strcmp(what, "md5")) {
		signs();
	} else if (!strcmp(what, "ao")) {
		authenticates();
	}
	fx_ready();
	fx_wait_check();
	fx_finish();
}
