/*
 * A server that has not accepted its connections yet. By default its clients are children of it: one has sent nothing, others something, one
 * has closed its end. With an ADDRESS they are outside (TestTCPWaiting): it listens there, on a port of its own choice (DIR/port), accepts as
 * many as the second argument says once it is told to check itself, and sends back every byte that comes, of a counter, to each.
 */
#include "fixture.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define CLIENTS 5

/* the byte at a place of the stream */
static unsigned char at(uint64_t n)
{
	return fx_mix(n / 8) >> n % 8 * 8;
}

static void echo(int c)
{
	static unsigned char buf[50000];
	uint64_t n = 0;
	ssize_t got;
	while ((got = MUST(read(c, buf, sizeof buf))) > 0) {
		for (ssize_t i = 0; i < got; i++)
			if (buf[i] != at(n + i))
				FAIL("byte %" PRIu64 " is %#x, not %#x", n + i, buf[i], at(n + i));
		for (ssize_t put = 0; put < got;)
			put += MUST(write(c, buf + put, got - put));
		n += got;
	}
	_exit(0);
}

static void outside(const char *address, int count)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	if (inet_pton(AF_INET, address, &a.sin_addr) != 1)
		exit(2);
	int l = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, sizeof a)), MUST(listen(l, 20));
	socklen_t len = sizeof a;
	MUST(getsockname(l, (void *)&a, &len));
	char text[20];
	snprintf(text, sizeof text, "%d\n", ntohs(a.sin_port));
	fx_touch("port", text);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < count; i++) {
		int c = MUST(accept(l, 0, 0));
		if (!MUST(fork()))
			echo(c);
		close(c);
	}
	for (int i = 0; i < count; i++) {
		int status;
		MUST(wait(&status));
		CHECK(status == 0, "a child ends with %#x", status);
	}
	fx_finish();
}

static size_t sent_by(int i) { return (size_t[CLIENTS]){ 0, 1, 5000, 40000, 3 }[i]; }

static void client(struct sockaddr_in6 *a, int i)
{
	static char data[40000], back[100];
	int c = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	MUST(connect(c, (void *)a, sizeof *a));
	fx_fill((uint64_t *)data, sizeof data, i);
	for (size_t n = 0; n < sent_by(i);)
		n += MUST(write(c, data + n, sent_by(i) - n));
	if (i == 4)
		MUST(shutdown(c, SHUT_WR));
	fx_up();
	ssize_t n = MUST(read(c, back, sizeof back)); /* across the restore */
	CHECK(n == 7 && !memcmp(back, "welcome", 7), "client %d hears %zd bytes", i, n);
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	if (argc > 3)
		outside(argv[2], atoi(argv[3]));
	struct sockaddr_in6 a = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	int l = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, sizeof a)), MUST(listen(l, CLIENTS));
	socklen_t len = sizeof a;
	MUST(getsockname(l, (void *)&a, &len));
	pid_t kid[CLIENTS];
	for (int i = 0; i < CLIENTS; i++) { /* one after the other: they have an order */
		if (!(kid[i] = MUST(fork())))
			client(&a, i);
		fx_await_up(i + 1);
	}
	fx_ready();
	fx_wait_check();
	static char want[40000], got[40001];
	for (int i = 0; i < CLIENTS; i++) {
		int c = MUST(accept(l, 0, 0));
		size_t n = 0;
		fx_fill((uint64_t *)want, sizeof want, i);
		while (n < sent_by(i)) {
			ssize_t r = MUST(read(c, got + n, sent_by(i) - n));
			if (!r)
				break;
			n += r;
		}
		CHECK(n == sent_by(i) && !memcmp(got, want, n), "connection %d has %zu bytes, or others than were sent", i, n);
		if (i == 4)
			CHECK(MUST(read(c, got, 1)) == 0, "connection %d has no end", i);
		CHECK(MUST(write(c, "welcome", 7)) == 7, "too short a write");
		fx_reap_ok(kid[i]);
		close(c);
	}
	fx_finish();
}
