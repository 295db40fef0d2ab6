/*
 * unix(7) sockets: pairs of streams, packets and datagrams with what waits in them; paths (relative, unlinked, renamed, replaced), abstract and
 * autobound names; who listens, with connections that are accepted, that wait, with data, and whose client is gone; datagrams of senders with and
 * without a name that are closed by now; shutdown, end of file, ECONNRESET; descriptors in flight (a file, a pipe whose other end is here, sockets
 * with queues, a cycle), credentials of messages and peers; options; epoll.
 */
#include "fixture.h"
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

static char abstract[64];

static socklen_t address(struct sockaddr_un *a, const char *name)
{
	memset(a, 0, sizeof *a);
	a->sun_family = AF_UNIX;
	strcpy(a->sun_path, name);
	socklen_t len = offsetof(struct sockaddr_un, sun_path) + strlen(name);
	if (*name == '@')
		a->sun_path[0] = 0;
	else
		len++;
	return len;
}

static int bound(int type, const char *name)
{
	struct sockaddr_un a;
	int s = MUST(socket(AF_UNIX, type, 0));
	socklen_t len = address(&a, name);
	MUST(bind(s, (void *)&a, len));
	return s;
}

static void connect_to(int s, const char *name)
{
	struct sockaddr_un a;
	socklen_t len = address(&a, name);
	MUST(connect(s, (void *)&a, len));
}

static int client(int type, const char *name)
{
	int s = MUST(socket(AF_UNIX, type, 0));
	connect_to(s, name);
	return s;
}

static void send_to(int s, const char *name, const char *text)
{
	struct sockaddr_un a;
	socklen_t len = address(&a, name);
	MUST(sendto(s, text, strlen(text), 0, (void *)&a, len));
}

static void named(const char *what, int s, int peer, const char *name)
{
	struct sockaddr_un a, want;
	socklen_t len = sizeof a, n = name ? address(&want, name) : sizeof(sa_family_t);
	memset(&a, 0, sizeof a);
	if (peer ? getpeername(s, (void *)&a, &len) : getsockname(s, (void *)&a, &len))
		FAIL("%s: %s", what, strerror(errno));
	else if (len != n || (name && memcmp(&a, &want, n)))
		FAIL("%s: its name is %d bytes, %s%s, want %s", what, (int)len, a.sun_path[0] ? "" : "@", a.sun_path + !a.sun_path[0], name);
}

static void expect(const char *what, int s, const char *text)
{
	char buf[300];
	ssize_t n = recv(s, buf, sizeof buf, MSG_DONTWAIT);
	if (n < 0)
		FAIL("%s: %s instead of \"%s\"", what, strerror(errno), text);
	else if (n != (ssize_t)strlen(text) || memcmp(buf, text, n))
		FAIL("%s: %zd bytes, \"%.*s\" instead of \"%s\"", what, n, (int)n, buf, text);
}

static void expect_from(const char *what, int s, const char *text, const char *from)
{
	char buf[300];
	struct sockaddr_un a, want;
	socklen_t len = sizeof a, wlen = from ? address(&want, from) : 0;
	ssize_t n = recvfrom(s, buf, sizeof buf, MSG_DONTWAIT, (void *)&a, &len);
	if (n != (ssize_t)strlen(text) || memcmp(buf, text, n))
		FAIL("%s: %zd bytes, want \"%s\" (%s)", what, n, text, strerror(errno));
	if (len != wlen || (from && memcmp(&a, &want, len)))
		FAIL("%s: comes from a name of %d bytes, want %s", what, (int)len, from ? from : "none");
}

static void error(const char *what, int s, int want)
{
	char c;
	ssize_t n = recv(s, &c, 1, MSG_DONTWAIT);
	if (want == 0)
		CHECK(n == 0, "%s: %zd, %s, want the end of file", what, n, strerror(errno));
	else
		CHECK(n < 0 && errno == want, "%s: %zd, %s, want %s", what, n, strerror(errno), strerror(want));
}

static void peer(const char *what, int s, pid_t pid)
{
	struct ucred c;
	socklen_t len = sizeof c;
	if (getsockopt(s, SOL_SOCKET, SO_PEERCRED, &c, &len))
		FAIL("%s: %s", what, strerror(errno));
	else if (c.pid != pid || c.uid != geteuid() || c.gid != getegid())
		FAIL("%s: the peer is %d, %d:%d, want %d", what, (int)c.pid, (int)c.uid, (int)c.gid, (int)pid);
}

/* sends text with n descriptors, which are closed here when done says so */
static void pass(int s, const char *text, int n, const int *fds, int done)
{
	char control[CMSG_SPACE(16 * sizeof(int))] = { 0 };
	struct iovec v = { (void *)text, strlen(text) };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(n * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	MUST(sendmsg(s, &m, 0));
	for (int i = 0; done && i < n; i++)
		close(fds[i]);
}

/* receives what pass has sent; *cred is filled in when there are credentials */
static int receive(const char *what, int s, const char *text, int *fds, struct ucred *cred)
{
	char control[512] = { 0 }, buf[300];
	struct iovec v = { buf, sizeof buf };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(s, &m, MSG_DONTWAIT);
	int count = 0;
	if (n != (ssize_t)strlen(text) || memcmp(buf, text, n)) {
		FAIL("%s: %zd bytes, want \"%s\" (%s)", what, n, text, strerror(errno));
		return 0;
	}
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_type == SCM_RIGHTS) {
			count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			if (fds)
				memcpy(fds, CMSG_DATA(c), count * sizeof(int));
		} else if (c->cmsg_type == SCM_CREDENTIALS && cred)
			memcpy(cred, CMSG_DATA(c), sizeof *cred);
	}
	return count;
}

static void add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
}

static uint64_t big[20000];

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(chdir(fx_dir));
	signal(SIGPIPE, SIG_IGN);
	snprintf(abstract, sizeof abstract, "@crpipe-unixsocks-%d", (int)getpid());
	int on = 1, sv[2], pk[2], dg[2];
	/* pairs */
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv));
	fx_fill(big, sizeof big, 1);
	int size = 1 << 20;
	MUST(setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
	MUST(write(sv[0], big, sizeof big));
	MUST(write(sv[1], "one", 3));
	MUST(write(sv[1], "two", 3));
	MUST(read(sv[0], big, 2));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pk));
	MUST(send(pk[0], "packet", 6, 0));
	MUST(send(pk[0], "", 0, 0));
	MUST(send(pk[0], "behind an empty one", 19, 0));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, dg));
	MUST(send(dg[0], "", 0, 0));
	MUST(send(dg[0], "datagram", 8, 0));
	MUST(send(dg[1], "back", 4, 0));
	/* shutdown, end of file, reset */
	int half[2], over[2], reset[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
	MUST(write(half[0], "last words", 10));
	MUST(shutdown(half[0], SHUT_WR));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, over));
	MUST(write(over[0], "left", 4));
	close(over[0]);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, reset));
	MUST(write(reset[1], "unread", 6));
	close(reset[0]);
	/* who listens at a path, in the working directory */
	int lp = bound(SOCK_STREAM, "l.sock");
	MUST(chmod("l.sock", 0660));
	MUST(listen(lp, 5));
	int c1 = client(SOCK_STREAM, "l.sock"), a1 = MUST(accept4(lp, NULL, NULL, SOCK_NONBLOCK));
	MUST(write(a1, "welcome", 7));
	MUST(write(c1, "thanks", 6));
	int w1 = bound(SOCK_STREAM, "./client.sock"), w2 = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	connect_to(w1, "l.sock");
	MUST(write(w1, "waits", 5));
	connect_to(w2, "l.sock");
	int gone = client(SOCK_STREAM, "l.sock");
	MUST(write(gone, "gone", 4));
	close(gone);
	/* an abstract one, with an autobound client, and a child as a client */
	int la = bound(SOCK_SEQPACKET, abstract);
	MUST(listen(la, 3));
	int cb = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	struct sockaddr_un family = { .sun_family = AF_UNIX }, autobound = { 0 };
	MUST(bind(cb, (void *)&family, sizeof(sa_family_t)));
	socklen_t autolen = sizeof autobound;
	MUST(getsockname(cb, (void *)&autobound, &autolen));
	connect_to(cb, abstract);
	int ab = MUST(accept(la, NULL, NULL));
	int cred[2], toparent[2];
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, cred));
	MUST(setsockopt(cred[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, toparent));
	pid_t kid = MUST(fork());
	if (!kid) {
		int s = client(SOCK_SEQPACKET, abstract);
		close(toparent[0]);
		MUST(send(cred[0], "of a child", 10, 0));
		fx_up();
		char b[100];
		ssize_t n;
		while ((n = recv(s, b, sizeof b, 0)) > 0 || (n < 0 && errno == EINTR))
			MUST(send(s, b, n, 0));
		peer("of the child", s, getppid());
		MUST(write(toparent[1], "bye", 3));
		_exit(0);
	}
	close(toparent[1]);
	int ak = MUST(accept(la, NULL, NULL));
	fx_await_up(1);
	MUST(send(cred[0], "of the parent", 13, 0));
	/* one whose listener is gone, with its file, and one that was renamed */
	int lg = bound(SOCK_STREAM, "gone.sock");
	MUST(listen(lg, 1));
	int cg = client(SOCK_STREAM, "gone.sock"), ag = MUST(accept(lg, NULL, NULL));
	close(lg);
	unlink("gone.sock");
	int lr = bound(SOCK_STREAM, "temporary.sock");
	MUST(listen(lr, 1));
	MUST(rename("temporary.sock", "renamed.sock"));
	/* an absolute path whose file is another's by now */
	char absolute[64];
	snprintf(absolute, sizeof absolute, "/tmp/crpipe-unixsocks-%d", (int)getpid());
	int dr = bound(SOCK_DGRAM, absolute);
	int dc = client(SOCK_DGRAM, absolute);
	unlink(absolute);
	close(MUST(open(absolute, O_CREAT | O_EXCL | O_WRONLY, 0600)));
	MUST(send(dc, "by the connection", 17, 0));
	/* datagrams */
	char other[80], third[80];
	snprintf(other, sizeof other, "%s-sender", abstract);
	snprintf(third, sizeof third, "%s-third", abstract);
	int ds = bound(SOCK_DGRAM, "d.sock"), dn = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), db = bound(SOCK_DGRAM, other), dt = bound(SOCK_DGRAM, third);
	send_to(dn, "d.sock", "nobody's");
	close(dn);
	connect_to(db, "d.sock");
	MUST(send(db, "named", 5, 0));
	send_to(dt, "d.sock", "of one who closes");
	close(dt);
	/* descriptors in flight: a file, a pipe, sockets with queues, themselves */
	int fl[2], in[2], self[2], pp[2], fds[8];
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, fl));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, in));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, self));
	int file = MUST(open("file", O_CREAT | O_RDWR, 0600));
	MUST(write(file, "contents", 8));
	MUST(lseek(file, 3, SEEK_SET));
	pass(in[0], "deep", 1, (int[]){ file }, 0);
	MUST(pipe(pp));
	MUST(write(pp[1], "pipe", 4));
	MUST(write(fl[0], "plain", 5));
	pass(fl[0], "with", 3, (int[]){ file, in[1], pp[0] }, 1);
	pass(fl[0], "again", 2, (int[]){ sv[0], fl[1] }, 0);
	pass(self[0], "self", 2, (int[]){ self[0], self[1] }, 0);
	/* options */
	struct timeval wait = { 3, 500000 };
	struct linger linger = { 1, 7 };
	int number = 5, flags;
	MUST(setsockopt(ds, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait));
	MUST(setsockopt(ds, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	MUST(setsockopt(ds, SOL_SOCKET, SO_PEEK_OFF, &number, sizeof number));
	int sizes[2];
	socklen_t len = sizeof(int);
	MUST(getsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &sizes[0], &len));
	MUST(getsockopt(ds, SOL_SOCKET, SO_RCVBUF, &sizes[1], &len));
	MUST(fchmod(ds, 0640));
	/* epoll */
	int ep = MUST(epoll_create1(0));
	struct epoll_event ev[8];
	add(ep, dg[0], EPOLLOUT | EPOLLONESHOT, 1);
	CHECK_EQ(epoll_wait(ep, ev, 8, 0), 1, "set-up of epoll");
	add(ep, half[0], EPOLLIN, 2);
	add(ep, pk[1], EPOLLIN | EPOLLET, 3);
	add(ep, lp, EPOLLIN, 4);
	struct stat before, after;
	MUST(fstat(ds, &before));
	fx_ready();
	fx_wait_check();

	int n = epoll_wait(ep, ev, 8, 0);
	uint64_t seen = 0;
	for (int i = 0; i < n; i++)
		seen |= 1ull << ev[i].data.u64;
	CHECK_EQ(seen, 1 << 3 | 1 << 4, "what epoll says");
	struct epoll_event rearm = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 1 };
	CHECK_EQ(epoll_ctl(ep, EPOLL_CTL_MOD, dg[0], &rearm), 0, "arming again");
	CHECK(epoll_wait(ep, ev, 1, 0) == 1, "armed again");
	/* pairs */
	memset(big, 0, sizeof big);
	size_t got = 0;
	for (ssize_t k; got < sizeof big && (k = recv(sv[1], (char *)big + got, sizeof big - got, MSG_DONTWAIT)) > 0;)
		got += k;
	CHECK_EQ(got, sizeof big, "bytes in the pair");
	fx_verify("pair", big, sizeof big, 1);
	expect("pair", sv[0], "etwo");
	CHECK_EQ(fcntl(sv[0], F_GETFD), FD_CLOEXEC, "close-on-exec");
	peer("pair", sv[0], getpid());
	peer("pair", sv[1], getpid());
	named("pair", sv[0], 0, NULL);
	named("pair", sv[0], 1, NULL);
	expect("packets", pk[1], "packet");
	error("packets", pk[1], 0);
	expect("packets", pk[1], "behind an empty one");
	error("packets", pk[1], EAGAIN);
	CHECK_EQ(fcntl(pk[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK");
	CHECK_EQ(fcntl(dg[0], F_GETFL) & O_NONBLOCK, 0, "no O_NONBLOCK");
	error("datagrams", dg[1], 0);
	expect("datagrams", dg[1], "datagram");
	error("datagrams", dg[1], EAGAIN);
	expect("datagrams", dg[0], "back");
	MUST(send(dg[0], "more", 4, 0));
	expect("datagrams", dg[1], "more");
	/* shutdown, end of file, reset */
	expect("half", half[1], "last words");
	error("half", half[1], 0);
	CHECK(send(half[0], "x", 1, 0) < 0 && errno == EPIPE, "half: %s", strerror(errno));
	MUST(write(half[1], "answer", 6));
	expect("half", half[0], "answer");
	expect("over", over[1], "left");
	error("over", over[1], 0);
	CHECK(send(over[1], "x", 1, 0) < 0 && errno == EPIPE, "over: %s", strerror(errno));
	error("reset", reset[1], ECONNRESET);
	error("reset", reset[1], 0);
	/* a path */
	named("listener", lp, 0, "l.sock");
	named("accepted", a1, 0, "l.sock");
	named("client", c1, 1, "l.sock");
	named("client", c1, 0, NULL);
	peer("accepted", a1, getpid());
	peer("client", c1, getpid());
	expect("client", c1, "welcome");
	expect("accepted", a1, "thanks");
	CHECK_EQ(fcntl(a1, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK of what was accepted");
	struct stat st;
	CHECK_EQ(stat("l.sock", &st), 0, "the file of a socket");
	CHECK_EQ(st.st_mode, S_IFSOCK | 0660, "mode of the file");
	int x = accept(lp, NULL, NULL);
	named("waited", x, 1, "./client.sock");
	named("waited", x, 0, "l.sock");
	peer("waited", x, getpid());
	expect("waited", x, "waits");
	MUST(write(x, "served", 6));
	expect("who waited", w1, "served");
	x = accept(lp, NULL, NULL);
	MUST(write(w2, "later", 5));
	expect("second", x, "later");
	x = accept(lp, NULL, NULL);
	expect("of one who is gone", x, "gone");
	error("of one who is gone", x, 0);
	MUST(fcntl(lp, F_SETFL, O_NONBLOCK));
	CHECK(accept(lp, NULL, NULL) < 0 && errno == EAGAIN, "a fourth: %s", strerror(errno));
	x = client(SOCK_STREAM, "l.sock");
	n = accept(lp, NULL, NULL);
	MUST(write(x, "new", 3));
	expect("a new connection", n, "new");
	/* abstract */
	named("abstract", la, 0, abstract);
	struct sockaddr_un now = { 0 };
	len = sizeof now;
	MUST(getpeername(ab, (void *)&now, &len));
	CHECK(len == autolen && !memcmp(&now, &autobound, len), "autobound name, %d bytes", (int)len);
	MUST(send(cb, "packet", 6, 0));
	expect("abstract", ab, "packet");
	peer("of a child", ak, kid);
	MUST(send(ak, "echo", 4, 0));
	char echo[8];
	CHECK_EQ(recv(ak, echo, sizeof echo, 0), 4, "echo of the child");
	close(ak);
	CHECK_EQ(read(toparent[0], echo, 8), 3, "the child's last words");
	CHECK_EQ(read(toparent[0], echo, 8), 0, "its end");
	struct ucred c = { 0 };
	receive("credentials", cred[1], "of a child", NULL, &c);
	CHECK_EQ(c.pid, kid, "pid of a message of the child");
	CHECK_EQ(c.uid, getuid(), "uid of a message");
	receive("credentials", cred[1], "of the parent", NULL, &c);
	CHECK_EQ(c.pid, getpid(), "pid of a message of the parent");
	fx_reap_ok(kid);
	/* gone, renamed, replaced */
	named("without a listener", ag, 0, "gone.sock");
	named("without a listener", cg, 1, "gone.sock");
	MUST(write(cg, "still", 5));
	expect("without a listener", ag, "still");
	CHECK(access("gone.sock", F_OK) < 0, "the removed file is back");
	named("renamed", lr, 0, "temporary.sock");
	x = client(SOCK_STREAM, "renamed.sock");
	MUST(accept(lr, NULL, NULL));
	CHECK(access("temporary.sock", F_OK) < 0, "the old name is back");
	named("replaced", dr, 0, absolute);
	named("replaced", dc, 1, absolute);
	expect("replaced", dr, "by the connection");
	MUST(send(dc, "another", 7, 0));
	expect("replaced", dr, "another");
	CHECK(stat(absolute, &st) == 0 && S_ISREG(st.st_mode), "the file in its place");
	unlink(absolute);
	/* datagrams */
	len = sizeof number;
	MUST(getsockopt(ds, SOL_SOCKET, SO_PEEK_OFF, &number, &len));
	CHECK_EQ(number, 5, "SO_PEEK_OFF");
	number = -1;
	MUST(setsockopt(ds, SOL_SOCKET, SO_PEEK_OFF, &number, sizeof number));
	MUST(fstat(ds, &after));
	CHECK_EQ(after.st_mode, before.st_mode, "mode of a socket");
	CHECK_EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec, "time of a socket");
	expect_from("datagrams", ds, "nobody's", NULL);
	expect_from("datagrams", ds, "named", other);
	expect_from("datagrams", ds, "of one who closes", third);
	error("datagrams", ds, EAGAIN);
	MUST(send(db, "more", 4, 0));
	expect_from("datagrams", ds, "more", other);
	send_to(ds, other, "answer");
	expect_from("datagrams", db, "answer", "d.sock");
	/* in flight */
	len = sizeof number;
	MUST(getsockopt(fl[1], SOL_SOCKET, SO_PEEK_OFF, &number, &len));
	CHECK_EQ(number, -1, "SO_PEEK_OFF of a socket with descriptors in flight");
	int k = receive("in flight", fl[1], "plainwith", fds, NULL);
	if (k == 3) {
		char b[20] = { 0 };
		CHECK(read(fds[0], b, 20) == 5 && !strcmp(b, "tents"), "file in flight: \"%s\"", b);
		int deep[8];
		if (receive("in flight, deep", fds[1], "deep", deep, NULL) == 1) {
			CHECK_EQ(lseek(deep[0], 0, SEEK_CUR), 8, "one file, twice in flight");
			MUST(send(in[0], "reaches", 7, 0));
			expect("socket in flight", fds[1], "reaches");
		} else
			FAIL("nothing was deep in flight");
		memset(b, 0, sizeof b);
		CHECK(read(fds[2], b, 20) == 4 && !strcmp(b, "pipe"), "pipe in flight: \"%s\"", b);
		MUST(write(pp[1], "on", 2));
		CHECK_EQ(read(fds[2], b, 20), 2, "pipe in flight");
		close(pp[1]);
		CHECK_EQ(read(fds[2], b, 20), 0, "end of the pipe in flight");
	} else
		FAIL("%d descriptors in flight", k);
	if (receive("in flight", fl[1], "again", fds, NULL) == 2) {
		MUST(write(fds[0], "x", 1));
		expect("a duplicate", sv[1], "x");
		MUST(write(fl[0], "y", 1));
		expect("a duplicate", fds[1], "y");
	} else
		FAIL("nothing came again");
	if (receive("a cycle", self[1], "self", fds, NULL) == 2) {
		MUST(write(fds[0], "round", 5));
		expect("a cycle", self[1], "round");
	} else
		FAIL("no cycle");
	/* options */
	struct timeval t2;
	struct linger l2;
	len = sizeof t2;
	MUST(getsockopt(ds, SOL_SOCKET, SO_RCVTIMEO, &t2, &len));
	CHECK(t2.tv_sec == wait.tv_sec && t2.tv_usec == wait.tv_usec, "SO_RCVTIMEO");
	len = sizeof l2;
	MUST(getsockopt(ds, SOL_SOCKET, SO_LINGER, &l2, &len));
	CHECK(l2.l_onoff && l2.l_linger == 7, "SO_LINGER");
	int now2;
	len = sizeof now2;
	MUST(getsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &now2, &len));
	CHECK_EQ(now2, sizes[0], "SO_SNDBUF");
	MUST(getsockopt(ds, SOL_SOCKET, SO_RCVBUF, &now2, &len));
	CHECK_EQ(now2, sizes[1], "SO_RCVBUF");
	MUST(getsockopt(cred[1], SOL_SOCKET, SO_PASSCRED, &flags, &len));
	CHECK_EQ(flags, 1, "SO_PASSCRED");
	fx_finish();
}
