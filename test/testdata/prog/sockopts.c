/*
 * Sockets of all kinds of datagrams with every option that takes an int set to another value than a new socket has. Afterwards every
 * option, by number, says what it said, those too that this program knows nothing of.
 */
#include "fixture.h"
#include <linux/filter.h>
#include <sys/socket.h>
#include "sockopts.h"

/* SO_ERROR and PACKET_STATISTICS forget what they tell, SO_PEERPIDFD makes a descriptor, SO_GET_FILTER counts otherwise; the cookie, the
   memory in use, and who had the last packet, are of the day; the firewall has its own from 64 on */
static int asked(int level, int opt)
{
	if (level == 1)
		return opt != 4 && opt != 77 && opt != 26 && opt != 57 && opt != 55 && opt != 56 && opt != 49;
	if (level == 0)
		return opt < 64;
	if (level == 41)
		return opt < 64 || opt > 65;
	return level != 263 || (opt != 6 && opt != 21);
}

struct said {
	int err, len;
	unsigned char value[64];
};

enum { KINDS = 8, LEVELS = 9, OPTS = 128 };
static const int levels[LEVELS] = { 1, 0, 41, 17, 136, 255, 58, 270, 263 };
static struct said before[KINDS][LEVELS][OPTS];

static struct said ask(int fd, int level, int opt)
{
	struct said s = { 0 };
	socklen_t n = sizeof s.value;
	if (getsockopt(fd, level, opt, s.value, &n))
		s.err = errno;
	s.len = n;
	return s;
}

int main(int argc, char **argv)
{
	static const int kinds[KINDS][3] = {
		{ AF_INET, SOCK_DGRAM, 0 }, { AF_INET6, SOCK_DGRAM, 0 }, { AF_INET, SOCK_RAW, 254 }, { AF_INET6, SOCK_RAW, 254 },
		{ AF_NETLINK, SOCK_RAW, 0 }, { AF_PACKET, SOCK_RAW, 0 }, { AF_PACKET, SOCK_DGRAM, 0 }, { AF_INET, SOCK_RAW, 1 },
	};
	fx_init(argc, argv);
	int fds[KINDS], ever[512] = { 0 };
	for (int k = 0; k < KINDS; k++) {
		int i = 0;
		fds[k] = MUST(socket(kinds[k][0], kinds[k][1], kinds[k][2]));
#define X(LEVEL, NUMBER, NAME, VALUE) do { \
			int v_ = (VALUE); \
			if (!(k == 7 && LEVEL == 0 && NUMBER == 5) && !setsockopt(fds[k], LEVEL, NUMBER, &v_, sizeof v_)) \
				ever[i] = 1; \
			i++; \
		} while (0);
		if (k == 7) { /* others ping */
			struct sock_filter none[] = { BPF_STMT(BPF_RET | BPF_K, 0) };
			struct sock_fprog prog = { 1, none };
			MUST(setsockopt(fds[k], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog));
		}
		FX_SOCKOPTS(X)
#undef X
	}
	int i = 0;
#define X(LEVEL, NUMBER, NAME, VALUE) do { if (!ever[i++]) fx_append("unset", #NAME "\n", sizeof #NAME); } while (0);
	FX_SOCKOPTS(X)
#undef X
	for (int k = 0; k < KINDS; k++)
		for (int l = 0; l < LEVELS; l++)
			for (int o = 0; o < OPTS; o++)
				if (asked(levels[l], o))
					before[k][l][o] = ask(fds[k], levels[l], o);

	fx_ready();
	fx_wait_check();

	for (int k = 0; k < KINDS; k++)
		for (int l = 0; l < LEVELS; l++)
			for (int o = 0; o < OPTS; o++) {
				if (!asked(levels[l], o))
					continue;
				struct said now = ask(fds[k], levels[l], o), *was = &before[k][l][o];
				if (now.err != was->err || now.len != was->len || memcmp(now.value, was->value, sizeof now.value))
					FAIL("socket %d, level %d, option %d: error %d, %d bytes, %02x%02x%02x%02x; it was error %d, %d bytes, %02x%02x%02x%02x", k, levels[l], o,
					     now.err, now.len, now.value[3], now.value[2], now.value[1], now.value[0],
					     was->err, was->len, was->value[3], was->value[2], was->value[1], was->value[0]);
			}
	fx_finish();
}
