/*
 * The server of TestTCPMigration: it listens on ADDRESS and a port of its own choice (DIR/port), takes one connection, and sends back every
 * byte that comes. What comes is a counter, so that a byte that is lost, doubled or another one is found here as well as by the client.
 */
#include "fixture.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* the byte at a place of the stream */
static unsigned char at(uint64_t n)
{
	return fx_mix(n / 8) >> n % 8 * 8;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	struct sockaddr_in a = { .sin_family = AF_INET };
	if (argc < 3 || inet_pton(AF_INET, argv[2], &a.sin_addr) != 1)
		return 2;
	int l = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
	MUST(setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	MUST(bind(l, (void *)&a, sizeof a)), MUST(listen(l, 5));
	socklen_t len = sizeof a;
	MUST(getsockname(l, (void *)&a, &len));
	char text[20];
	snprintf(text, sizeof text, "%d\n", ntohs(a.sin_port));
	fx_touch("port", text);
	fx_ready();
	int c = MUST(accept(l, 0, 0));
	static unsigned char buf[50000];
	uint64_t n = 0;
	for (;;) {
		ssize_t got = read(c, buf, sizeof buf);
		if (got < 0)
			FAIL("after %" PRIu64 " bytes: %s", n, strerror(errno));
		if (got <= 0)
			break;
		for (ssize_t i = 0; i < got; i++)
			if (buf[i] != at(n + i)) {
				FAIL("byte %" PRIu64 " is %#x, not %#x", n + i, buf[i], at(n + i));
				break;
			}
		for (ssize_t put = 0; put < got;) {
			ssize_t w = write(c, buf + put, got - put);
			if (w < 0) {
				FAIL("sending back byte %" PRIu64 ": %s", n + put, strerror(errno));
				fx_finish();
			}
			put += w;
		}
		n += got;
	}
	close(c);
	fx_finish();
}
