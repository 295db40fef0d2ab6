/*
 * TCP sockets: listening (v4, v6, both, groups of one port, MPTCP), not bound, bound, connected with data on its way in both directions,
 * half-closed, closed by both ends, reset, refused; a child that is blocked in a read; every option that a program can set.
 */
#include "fixture.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

typedef struct sockaddr_storage addr_t;

static uint64_t buf[1 << 17];

static socklen_t size_of(const addr_t *a)
{
	return a->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static addr_t name_of(int fd, int peer)
{
	addr_t a;
	socklen_t n = sizeof a;
	memset(&a, 0, sizeof a);
	MUST(peer ? getpeername(fd, (void *)&a, &n) : getsockname(fd, (void *)&a, &n));
	return a;
}

static addr_t loopback(const char *text)
{
	addr_t a;
	memset(&a, 0, sizeof a);
	if (inet_pton(AF_INET, text, &((struct sockaddr_in *)&a)->sin_addr) == 1)
		a.ss_family = AF_INET;
	else if (inet_pton(AF_INET6, text, &((struct sockaddr_in6 *)&a)->sin6_addr) == 1)
		a.ss_family = AF_INET6;
	return a;
}

static int listener(const char *text, int backlog)
{
	addr_t a = loopback(text);
	int fd = MUST(socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(bind(fd, (void *)&a, size_of(&a)));
	MUST(listen(fd, backlog));
	return fd;
}

/* connects to a listener, by another address of it where one is given */
static void connect_to(int l, const char *text, int pair[2])
{
	addr_t a = name_of(l, 0);
	if (text) {
		in_port_t port = ((struct sockaddr_in *)&a)->sin_port;
		a = loopback(text);
		((struct sockaddr_in *)&a)->sin_port = port;
	}
	pair[0] = MUST(socket(a.ss_family, SOCK_STREAM, 0));
	MUST(connect(pair[0], (void *)&a, size_of(&a)));
	pair[1] = MUST(accept4(l, 0, 0, 0));
}

/* writes until nothing more fits; returns how much did */
static size_t stuff(int fd, uint64_t seed)
{
	size_t all = 0;
	fx_fill(buf, sizeof buf, seed);
	for (int quiet = 0; quiet < 20 && all < sizeof buf;) {
		ssize_t n = send(fd, (char *)buf + all, sizeof buf - all < 30000 ? sizeof buf - all : 30000, MSG_DONTWAIT);
		if (n > 0)
			all += n, quiet = 0;
		else
			usleep(5000), quiet++;
	}
	return all;
}

static void take(const char *what, int fd, size_t len, uint64_t seed)
{
	size_t got = 0;
	while (got < len) {
		ssize_t n = read(fd, (char *)buf + got, len - got);
		if (n <= 0) {
			FAIL("%s: only %zu of %zu bytes: %s", what, got, len, n ? strerror(errno) : "end of file");
			return;
		}
		got += n;
	}
	fx_verify(what, buf, len, seed);
}

static void expect_read(const char *what, int fd, int result, int error)
{
	char c;
	errno = 0;
	int n = read(fd, &c, 1);
	if (n != result || (n < 0 && errno != error))
		FAIL("%s: read gives %d (%s), not %d (%s)", what, n, strerror(errno), result, strerror(error));
}

static int state_of(int fd)
{
	struct tcp_info info;
	socklen_t n = sizeof info;
	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n));
	return info.tcpi_state;
}

static void await_state(int fd, int state)
{
	for (int i = 0; i < 5000 && state_of(fd) != state; i++)
		usleep(1000);
	if (state_of(fd) != state)
		FAIL("state %d does not come, it is %d", state, state_of(fd));
}

/* everything that getsockopt tells of a socket and that is the program's own doing */
struct options {
	int fd;
	struct {
		int ok, len;
		unsigned char value[64];
	} of[2][64];
	addr_t name[2];
	int fl, state, connected;
};

static const int levels[2] = { IPPROTO_TCP, SOL_SOCKET };

static int moves(int level, int opt, int state)
{
	if (level == SOL_SOCKET)
		/* errors, cookies, who it came from, the CPU, the NAPI id, meminfo, buffers that adjust themselves */
		return opt == SO_ERROR || opt == 57 || opt == 55 || opt == 56 || opt == 49 || opt == 7 || opt == 8 || opt == 28;
	switch (opt) {
	case TCP_INFO: case TCP_TIMESTAMP: case TCP_CC_INFO: case TCP_QUICKACK: case TCP_ZEROCOPY_RECEIVE: case TCP_SAVED_SYN:
	case TCP_REPAIR_WINDOW: case TCP_REPAIR_OPTIONS:
		return 1;
	case TCP_MAXSEG: case TCP_WINDOW_CLAMP:
		return state != TCP_CLOSE && state != TCP_LISTEN;
	}
	return 0;
}

static void look(struct options *o, int fd)
{
	memset(o, 0, sizeof *o);
	o->fd = fd;
	o->state = state_of(fd);
	for (int l = 0; l < 2; l++)
		for (int i = 1; i < 64; i++) {
			socklen_t n = sizeof o->of[l][i].value;
			if (moves(levels[l], i, o->state))
				continue;
			o->of[l][i].ok = getsockopt(fd, levels[l], i, o->of[l][i].value, &n) == 0;
			o->of[l][i].len = o->of[l][i].ok ? n : 0;
		}
	o->name[0] = name_of(fd, 0);
	socklen_t n = sizeof o->name[1];
	o->connected = getpeername(fd, (void *)&o->name[1], &n) == 0;
	o->fl = fcntl(fd, F_GETFL);
}

static struct options before[64];
static int many;

static void watch(int fd)
{
	look(&before[many++], fd);
}

static void compare(void)
{
	static struct options now;
	for (int i = 0; i < many; i++) {
		struct options *was = &before[i];
		look(&now, was->fd);
		for (int l = 0; l < 2; l++)
			for (int k = 1; k < 64; k++)
				if (now.of[l][k].ok != was->of[l][k].ok || now.of[l][k].len != was->of[l][k].len || memcmp(now.of[l][k].value, was->of[l][k].value, now.of[l][k].len > 64 ? 64 : now.of[l][k].len))
					FAIL("socket %d: option %d of level %d: %d, %d bytes, %#x; was %d, %d bytes, %#x", i, k, levels[l], now.of[l][k].ok, now.of[l][k].len, *(int *)now.of[l][k].value, was->of[l][k].ok, was->of[l][k].len, *(int *)was->of[l][k].value);
		if (now.fl != was->fl || now.state != was->state || now.connected != was->connected)
			FAIL("socket %d: flags %#x, state %d, connected %d; was %#x, %d, %d", i, now.fl, now.state, now.connected, was->fl, was->state, was->connected);
		for (int p = 0; p < (now.connected ? 2 : 1); p++)
			if (memcmp(&now.name[p], &was->name[p], sizeof now.name[p]))
				FAIL("socket %d: another address", i);
	}
}

static void set(int fd, int level, int opt, int value)
{
	if (setsockopt(fd, level, opt, &value, sizeof value) < 0 && errno != ENOPROTOOPT && errno != EOPNOTSUPP)
		FAIL("setting option %d of level %d: %s", opt, level, strerror(errno));
}

static void set_many(int fd)
{
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 123), set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 45), set(fd, IPPROTO_TCP, TCP_KEEPCNT, 6);
	set(fd, IPPROTO_TCP, TCP_SYNCNT, 3), set(fd, IPPROTO_TCP, TCP_LINGER2, 17), set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 98765), set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384), set(fd, IPPROTO_TCP, TCP_MAXSEG, 1000);
	set(fd, IPPROTO_TCP, 36 /* TCP_INQ */, 1), set(fd, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1), set(fd, IPPROTO_TCP, 44 /* TCP_RTO_MAX_MS */, 30000);
	set(fd, SOL_SOCKET, SO_KEEPALIVE, 1), set(fd, SOL_SOCKET, SO_OOBINLINE, 1), set(fd, SOL_SOCKET, SO_RCVLOWAT, 3), set(fd, SOL_SOCKET, SO_PRIORITY, 5), set(fd, SOL_SOCKET, SO_MARK, 77);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	struct linger linger = { 1, 10 };
	MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	signal(SIGPIPE, SIG_IGN);

	int four = listener("127.0.0.1", 7), six = -1, both = -1, group[2] = { -1, -1 }, mp;
	int probe = socket(AF_INET6, SOCK_STREAM, 0);
	addr_t a6 = loopback("::1");
	int v6 = probe >= 0 && bind(probe, (void *)&a6, size_of(&a6)) == 0;
	close(probe);
	if (v6) {
		addr_t a = loopback("::");
		six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
		set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
		MUST(bind(six, (void *)&a, size_of(&a))), MUST(listen(six, 3));
		both = MUST(socket(AF_INET6, SOCK_STREAM, 0));
		set(both, IPPROTO_IPV6, IPV6_V6ONLY, 0);
		MUST(bind(both, (void *)&a, size_of(&a))), MUST(listen(both, 3));
	}
	addr_t g = loopback("127.0.0.1");
	for (int i = 0; i < 2; i++) {
		group[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
		set(group[i], SOL_SOCKET, SO_REUSEPORT, 1);
		MUST(bind(group[i], (void *)&g, size_of(&g))), MUST(listen(group[i], 4));
		g = name_of(group[i], 0);
	}
	set_many(four);
	set(four, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3), set(four, IPPROTO_TCP, TCP_FASTOPEN, 5);
	mp = socket(AF_INET, SOCK_STREAM, 262);
	if (mp >= 0) {
		addr_t a = loopback("127.0.0.1");
		MUST(bind(mp, (void *)&a, size_of(&a))), MUST(listen(mp, 9));
	}

	int fresh = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), bound = MUST(socket(AF_INET, SOCK_STREAM, 0)), shut = MUST(socket(AF_INET, SOCK_STREAM, 0));
	set_many(fresh);
	addr_t any = loopback("127.0.0.1");
	MUST(bind(bound, (void *)&any, size_of(&any)));
	shutdown(shut, SHUT_RD);

	int plain = listener("127.0.0.1", 8);
	int full[2], mapped[2] = { -1, -1 }, pair6[2] = { -1, -1 }, half[2], eof[2], over[2], reset[2], told[2], opts[2], ask[2], deaf[2];
	connect_to(plain, 0, full);
	if (v6)
		connect_to(both, "127.0.0.1", mapped), connect_to(six, "::1", pair6);
	connect_to(plain, 0, half), connect_to(plain, 0, eof), connect_to(plain, 0, over), connect_to(plain, 0, reset), connect_to(plain, 0, told), connect_to(plain, 0, opts), connect_to(plain, 0, ask), connect_to(plain, 0, deaf);
	set_many(opts[0]), set(opts[1], IPPROTO_TCP, TCP_CORK, 1);

	/* data on its way in both directions, more than the receiver takes */
	size_t there = stuff(full[0], 1), back = stuff(full[1], 2), mapped_there = 0, six_there = 0;
	if (v6)
		mapped_there = stuff(mapped[0], 3), six_there = stuff(pair6[1], 4);

	/* one end has said all, and the other one has not read it, or has */
	fx_fill(buf, 40000, 5);
	for (size_t at = 0; at < 40000;)
		at += MUST(write(half[0], (char *)buf + at, 40000 - at));
	MUST(shutdown(half[0], SHUT_WR));
	await_state(half[1], TCP_CLOSE_WAIT), await_state(half[0], TCP_FIN_WAIT2);
	MUST(shutdown(eof[0], SHUT_WR));
	await_state(eof[1], TCP_CLOSE_WAIT), await_state(eof[0], TCP_FIN_WAIT2);
	expect_read("end before", eof[1], 0, 0);

	/* both have, with something unread */
	MUST(write(over[0], "unread", 6));
	MUST(shutdown(over[0], SHUT_WR));
	await_state(over[1], TCP_CLOSE_WAIT);
	MUST(shutdown(over[1], SHUT_WR));
	await_state(over[1], TCP_CLOSE);

	/* reset by the peer: not known yet, and known */
	struct linger hard = { 1, 0 };
	MUST(write(reset[0], "last words", 10));
	while (MUST(ioctl(reset[1], FIONREAD, buf)), *(int *)buf < 10)
		usleep(1000);
	setsockopt(reset[0], SOL_SOCKET, SO_LINGER, &hard, sizeof hard), close(reset[0]);
	await_state(reset[1], TCP_CLOSE);
	setsockopt(told[0], SOL_SOCKET, SO_LINGER, &hard, sizeof hard), close(told[0]);
	await_state(told[1], TCP_CLOSE);
	expect_read("reset before", told[1], -1, ECONNRESET);

	/* a connect that is refused, which nobody has asked for yet */
	int gone = listener("127.0.0.1", 1), refused = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	addr_t nobody = name_of(gone, 0);
	close(gone);
	connect(refused, (void *)&nobody, size_of(&nobody));
	await_state(refused, TCP_CLOSE);

	MUST(shutdown(deaf[0], SHUT_RD));

	/* a child waits for a question, and answers */
	pid_t child = MUST(fork());
	if (child == 0) {
		char c[4];
		for (int fd = 3; fd < 100; fd++)
			if (fd != ask[1])
				close(fd);
		for (;;) {
			int n = read(ask[1], c, 4);
			if (n <= 0)
				_exit(n == 0 ? 0 : 1);
			if (write(ask[1], c, n) != n)
				_exit(2);
		}
	}
	close(ask[1]);

	int all[] = { four, six, both, group[0], group[1], mp, fresh, bound, shut, plain, full[0], full[1], mapped[0], mapped[1], pair6[0], pair6[1], half[0], half[1], eof[0], eof[1], opts[0], opts[1], ask[0], deaf[0], deaf[1] };
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (all[i] >= 0)
			watch(all[i]);

	fx_ready();
	fx_wait_check();

	compare();
	int ask2 = write(ask[0], "how?", 4);
	if (ask2 != 4)
		FAIL("asking: %s", strerror(errno));
	char answer[5] = "";
	if (read(ask[0], answer, 4) != 4 || strcmp(answer, "how?"))
		FAIL("the child answers %s (%s)", answer, strerror(errno));

	take("there", full[1], there, 1), take("back", full[0], back, 2);
	if (v6)
		take("mapped", mapped[1], mapped_there, 3), take("six", pair6[0], six_there, 4);
	for (int i = 0; i < 2; i++) { /* and it goes on */
		MUST(write(full[i], "on", 2));
		if (read(full[!i], answer, 4) != 2 || memcmp(answer, "on", 2))
			FAIL("it does not go on: %s", strerror(errno));
	}
	take("half", half[1], 40000, 5);
	expect_read("half", half[1], 0, 0);
	expect_read("eof", eof[1], 0, 0);
	MUST(write(half[1], "answer", 6)), MUST(write(eof[1], "answer", 6));
	if (read(half[0], buf, 100) != 6 || read(eof[0], buf, 100) != 6)
		FAIL("a half-closed connection gives nothing: %s", strerror(errno));
	close(half[1]);
	expect_read("closed half", half[0], 0, 0);
	if (read(over[1], buf, 100) != 6 || memcmp(buf, "unread", 6))
		FAIL("what came before the end is lost");
	expect_read("over", over[1], 0, 0);
	if (read(reset[1], buf, 100) != 10 || memcmp(buf, "last words", 10))
		FAIL("what came before the reset is lost");
	expect_read("reset", reset[1], -1, ECONNRESET);
	expect_read("reset again", reset[1], 0, 0);
	expect_read("told", told[1], 0, 0);
	if (write(told[1], "x", 1) != -1 || errno != EPIPE)
		FAIL("writing to a connection that was reset: %s", strerror(errno));
	int err = 0;
	socklen_t n = sizeof err;
	MUST(getsockopt(refused, SOL_SOCKET, SO_ERROR, &err, &n));
	if (err != ECONNREFUSED)
		FAIL("the connect ended with %s", strerror(err));
	expect_read("deaf", deaf[0], 0, 0);
	errno = 0;
	if (read(shut, buf, 1) != 0)
		FAIL("a socket that was shut down without a connection: %s", strerror(errno));

	/* listening sockets take new connections */
	int on[2], list[] = { plain, six, both, mp };
	for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
		if (list[i] < 0)
			continue;
		connect_to(list[i], i == 1 ? "::1" : i == 2 ? "127.0.0.1" : 0, on);
		MUST(write(on[0], "new", 3));
		if (read(on[1], buf, 100) != 3)
			FAIL("a new connection gives nothing");
		close(on[0]), close(on[1]);
	}
	MUST(listen(bound, 1));
	connect_to(bound, 0, on);
	close(ask[0]);
	int status;
	MUST(waitpid(child, &status, 0));
	if (status)
		FAIL("the child ended with %#x", status);
	fx_finish();
}
