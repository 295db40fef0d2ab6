/*
 * Bytes sent with MSG_OOB through unix(7) streams: one that waits amid others, first, last, two of which the first is a byte like others by now, in line
 * (SO_OOBINLINE), one that has been read and whose place still ends a read; and one that waits in a connection that nobody has accepted.
 */
#include "fixture.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef SIOCATMARK
#define SIOCATMARK 0x8905
#endif

static void pair(int s[2])
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
}

static void put(int fd, const char *text, int flags)
{
	MUST(send(fd, text, strlen(text), flags));
}

/* what a program sees that reads a stream to its end: reads in brackets, ! for a byte out of band that is there, ^ where the next read begins at the mark */
static void see(int fd, char *out)
{
	for (;;) {
		char b[32], c;
		int at = 0;
		struct pollfd p = { fd, POLLPRI | POLLIN, 0 };
		MUST(poll(&p, 1, 0));
		if (p.revents & POLLPRI)
			*out++ = '!';
		if (recv(fd, &c, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) == 1)
			*out++ = c;
		MUST(ioctl(fd, SIOCATMARK, &at));
		if (at)
			*out++ = '^';
		ssize_t n = recv(fd, b, sizeof b, MSG_DONTWAIT);
		if (n < 0) {
			*out = 0;
			return;
		}
		out += sprintf(out, "[%.*s]", (int)n, b);
		if (n == 0)
			return;
	}
}

enum { AMID, FIRST, LAST, TWICE, INLINE, SEEN, SEENFIRST, KINDS };

static void fill(int what, int s[2])
{
	char c;
	int on = 1;
	pair(s);
	switch (what) {
	case AMID:
		put(s[0], "before", 0), put(s[0], "!", MSG_OOB), put(s[0], "after", 0);
		break;
	case FIRST:
		put(s[0], "f", MSG_OOB), put(s[0], "rest", 0);
		break;
	case LAST:
		put(s[0], "begin", 0), put(s[0], "and?", MSG_OOB);
		break;
	case TWICE:
		put(s[0], "a", 0), put(s[0], "1", MSG_OOB), put(s[0], "b", 0), put(s[0], "2", MSG_OOB), put(s[0], "c", 0);
		break;
	case INLINE:
		MUST(setsockopt(s[1], SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
		put(s[0], "in", 0), put(s[0], "-", MSG_OOB), put(s[0], "line", 0);
		break;
	case SEEN:
		put(s[0], "one", 0), put(s[0], "#", MSG_OOB), put(s[0], "two", 0);
		MUST(recv(s[1], &c, 1, MSG_OOB));
		break;
	case SEENFIRST:
		put(s[0], "#", MSG_OOB), put(s[0], "x", 0), put(s[0], "y", MSG_OOB), put(s[0], "z", 0);
		MUST(recv(s[1], &c, 1, MSG_OOB));
		put(s[0], "w", MSG_OOB), put(s[0], "v", 0);
		break;
	}
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(chdir(fx_dir));
	int kept[KINDS][2], twin[2];
	char want[KINDS][128], got[128];
	for (int i = 0; i < KINDS; i++) {
		fill(i, twin); /* what this kernel makes of it */
		see(twin[1], want[i]);
		close(twin[0]), close(twin[1]);
		fill(i, kept[i]);
	}
	struct sockaddr_un a = { .sun_family = AF_UNIX, .sun_path = "listens" };
	int l = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, sizeof a));
	MUST(listen(l, 2));
	MUST(connect(c, (void *)&a, sizeof a));
	put(c, "early", 0), put(c, "!", MSG_OOB);
	fx_ready();
	fx_wait_check();

	for (int i = 0; i < KINDS; i++) {
		see(kept[i][1], got);
		CHECK(!strcmp(got, want[i]), "stream %d: %s instead of %s", i, got, want[i]);
		put(kept[i][0], "on", 0);
		char b[8] = { 0 };
		CHECK(recv(kept[i][1], b, sizeof b, MSG_DONTWAIT) == 2 && !strcmp(b, "on"), "stream %d does not go on: \"%s\"", i, b);
	}
	int s = MUST(accept(l, NULL, NULL));
	see(s, got);
	CHECK(strstr(got, "!!") && strstr(got, "[early]"), "accepted: %s", got);
	fx_finish();
}
