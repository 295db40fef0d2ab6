/*
 * Urgent data of TCP (MSG_OOB): that waits, first, last and amid other bytes; that was read before the others; in line (SO_OOBINLINE); that has been written and not sent
 * because the reader takes nothing, and that the reader has heard of; behind which the writer has closed. Each connection has both ends here. SIGURG has come once for each, and never comes again.
 */
#include "fixture.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static volatile sig_atomic_t urged;
static char big[1 << 20];

static void on_urgent(int sig)
{
	(void)sig;
	urged++;
}

static void connected(int l, int pair[2], int room)
{
	struct sockaddr_in a;
	socklen_t len = sizeof a;
	MUST(getsockname(l, (void *)&a, &len));
	pair[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(pair[0], (void *)&a, len));
	pair[1] = MUST(accept(l, NULL, NULL));
	if (room)
		MUST(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
	MUST(fcntl(pair[1], F_SETOWN, getpid()));
}

static void put(int fd, const char *text, int flags)
{
	MUST(send(fd, text, strlen(text), flags));
}

/* waits until the reader has an urgent byte, or knows that there will be one, and what was sent behind it */
static void arrived(int fd)
{
	for (int i = 0; i < 2000; i++) {
		struct pollfd p = { fd, POLLPRI, 0 };
		char c;
		if (poll(&p, 1, 0) == 1 || (recv(fd, &c, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN)) {
			fx_pause_ms(20);
			return;
		}
		fx_pause_ms(2);
	}
	FAIL("set-up: nothing came");
}

static void expect(const char *what, int fd, const char *text)
{
	char b[64];
	ssize_t n = recv(fd, b, sizeof b, MSG_DONTWAIT);
	if (n != (ssize_t)strlen(text) || memcmp(b, text, n))
		FAIL("%s: \"%.*s\" instead of \"%s\" (%s)", what, n > 0 ? (int)n : 0, b, text, n < 0 ? strerror(errno) : "");
}

static void urgent(const char *what, int fd, char want)
{
	char c = 0;
	struct pollfd p = { fd, POLLPRI, 0 };
	CHECK_EQ(poll(&p, 1, 0), 1, what);
	CHECK_EQ(recv(fd, &c, 1, MSG_OOB), 1, what);
	CHECK_EQ(c, want, what);
}

static void mark(const char *what, int fd, int want)
{
	int at = -1;
	MUST(ioctl(fd, SIOCATMARK, &at));
	CHECK_EQ(at, want, what);
}

static void none(const char *what, int fd)
{
	char c;
	struct pollfd p = { fd, POLLPRI, 0 };
	CHECK_EQ(poll(&p, 1, 0), 0, what);
	CHECK(recv(fd, &c, 1, MSG_OOB) < 0 && errno == EINVAL, "%s: %s", what, strerror(errno));
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	signal(SIGURG, on_urgent);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int l = MUST(socket(AF_INET, SOCK_STREAM, 0)), small = 4096, on = 1;
	MUST(setsockopt(l, SOL_SOCKET, SO_RCVBUF, &small, sizeof small));
	MUST(bind(l, (void *)&a, sizeof a));
	MUST(listen(l, 8));
	int amid[2], first[2], last[2], seen[2], in[2], stuck[2], over[2];
	connected(l, amid, 0), connected(l, first, 0), connected(l, last, 0), connected(l, seen, 0), connected(l, in, 0), connected(l, over, 0);
	connected(l, stuck, 2 << 20);
	put(amid[0], "before", 0), put(amid[0], "!", MSG_OOB), put(amid[0], "after", 0);
	put(first[0], "!", MSG_OOB), put(first[0], "rest", 0);
	put(last[0], "begin", 0), put(last[0], "and?", MSG_OOB);
	put(seen[0], "one", 0), put(seen[0], "#", MSG_OOB), put(seen[0], "two", 0);
	MUST(setsockopt(in[1], SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
	put(in[0], "in", 0), put(in[0], "-", MSG_OOB), put(in[0], "line", 0);
	put(over[0], "bye", 0), put(over[0], "!", MSG_OOB), put(over[0], ".", 0);
	MUST(shutdown(over[0], SHUT_WR));
	arrived(amid[1]), arrived(first[1]), arrived(last[1]), arrived(seen[1]), arrived(in[1]), arrived(over[1]);
	urgent("set-up", seen[1], '#');
	/* the reader takes nothing: what is urgent stays with the writer */
	size_t filled = 0;
	fx_fill(big, sizeof big, 7);
	for (int quiet = 0; quiet < 20 && filled < sizeof big / 2;) {
		ssize_t n = send(stuck[0], big + filled, 16384, MSG_DONTWAIT);
		if (n > 0)
			filled += n, quiet = 0;
		else
			fx_pause_ms(5), quiet++;
	}
	MUST(send(stuck[0], big + filled, 1, MSG_OOB | MSG_DONTWAIT));
	MUST(send(stuck[0], big + filled + 1, 1000, MSG_DONTWAIT));
	fx_pause_ms(300);
	int before = urged;
	CHECK(before >= 1, "set-up: no SIGURG");
	fx_ready();
	fx_wait_check();

	/* the last connection may hear of its urgent byte only now */
	CHECK(urged == before || urged == before + 1, "SIGURG came %d times, it was %d", urged, before);
	mark("amid", amid[1], 0);
	expect("amid", amid[1], "before");
	mark("amid", amid[1], 1);
	urgent("amid", amid[1], '!');
	expect("amid", amid[1], "after");
	none("amid", amid[1]);
	mark("first", first[1], 1);
	urgent("first", first[1], '!');
	expect("first", first[1], "rest");
	expect("last", last[1], "beginand");
	mark("last", last[1], 1);
	urgent("last", last[1], '?');
	none("read", seen[1]);
	expect("read", seen[1], "one");
	mark("read", seen[1], 1);
	expect("read", seen[1], "two");
	expect("in line", in[1], "in");
	mark("in line", in[1], 1);
	expect("in line", in[1], "-line");
	mark("in line", in[1], 0);
	int opt = 0;
	socklen_t len = sizeof opt;
	MUST(getsockopt(in[1], SOL_SOCKET, SO_OOBINLINE, &opt, &len));
	CHECK_EQ(opt, 1, "SO_OOBINLINE");
	expect("over", over[1], "bye");
	urgent("over", over[1], '!');
	expect("over", over[1], ".");
	char c;
	CHECK_EQ(recv(over[1], &c, 1, MSG_DONTWAIT), 0, "end of file");
	/* urgent data goes on */
	put(amid[0], "again", 0), put(amid[0], "%", MSG_OOB);
	arrived(amid[1]);
	expect("again", amid[1], "again");
	urgent("again", amid[1], '%');
	/* what was stuck comes, with its mark in its place */
	size_t got = 0;
	static char back[sizeof big];
	for (int at = 0; !at && got < filled;) {
		ssize_t n = read(stuck[1], back + got, sizeof back - got);
		if (n <= 0) {
			FAIL("stuck: after %zu bytes: %s", got, n ? strerror(errno) : "end of file");
			break;
		}
		got += n;
		if (got == filled)
			MUST(ioctl(stuck[1], SIOCATMARK, &at));
	}
	CHECK_EQ(got, filled, "bytes before the mark");
	for (int i = 0; i < 1000 && recv(stuck[1], &c, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) < 0; i++)
		fx_pause_ms(5);
	mark("stuck", stuck[1], 1);
	urgent("stuck", stuck[1], big[filled]);
	back[got++] = big[filled];
	while (got < filled + 1001) {
		ssize_t n = read(stuck[1], back + got, sizeof back - got);
		if (n <= 0) {
			FAIL("stuck: after %zu bytes: %s", got, n ? strerror(errno) : "end of file");
			break;
		}
		got += n;
	}
	CHECK(got == filled + 1001 && !memcmp(back, big, got), "stuck: other bytes");
	fx_finish();
}
