/*
 * Pseudo-terminals, both sides in the tree: unread input by lines (with an end of file, a byte that is taken literally, a line that is
 * being edited) and by bytes, up to full; unread output, up to full; modes, speeds, window size, packet mode and what it has to tell,
 * output stopped both ways, exclusive and locked ones, one whose slave was never open, one whose slave is closed again, one that has
 * hung up, several opens of a slave; readers and writers that wait; columns and tabulators.
 */
#include "fixture.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <asm/ioctls.h>

#ifndef BOTHER
#define BOTHER 0010000 /* asm-generic/termbits.h */
#endif

/* the kernel's own struct, with speeds that have no name */
struct termios2 {
	tcflag_t c_iflag, c_oflag, c_cflag, c_lflag;
	cc_t c_line;
	cc_t c_cc[19];
	speed_t c_ispeed, c_ospeed;
};

struct pty {
	int m, s, n;
};

/* far from the numbers that others take while this program is not there */
static int far_master(void)
{
	static int wait[4096];
	int n = 0, m, index, want = 60 + getpid() % 100;
	for (;;) {
		m = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
		MUST(ioctl(m, TIOCGPTN, &index));
		if (index >= want)
			break;
		wait[n++] = m;
	}
	while (n)
		close(wait[--n]);
	return m;
}

static struct pty make(int slave)
{
	struct pty p = { .m = far_master(), .s = -1 };
	int zero = 0;
	MUST(ioctl(p.m, TIOCGPTN, &p.n));
	MUST(ioctl(p.m, TIOCSPTLCK, &zero));
	if (slave) {
		char name[64];
		snprintf(name, sizeof name, "/dev/pts/%d", p.n);
		p.s = MUST(open(name, O_RDWR | O_NOCTTY));
	}
	return p;
}

static void modes(int fd, int clear, int set, int raw)
{
	struct termios t;
	MUST(tcgetattr(fd, &t));
	if (raw)
		cfmakeraw(&t);
	t.c_lflag = (t.c_lflag & ~clear) | set;
	MUST(tcsetattr(fd, TCSANOW, &t));
}

static void put(int fd, const char *text, size_t len)
{
	if (write(fd, text, len) != (ssize_t)len)
		FAIL("write to a terminal: %s", strerror(errno));
}

#define PUT(fd, text) put((fd), (text), sizeof(text) - 1)

/* what a read returns */
static void expect(const char *what, int fd, const char *want, ssize_t len)
{
	char got[8192];
	ssize_t n = read(fd, got, sizeof got);
	if (n != len || (n > 0 && memcmp(got, want, n)))
		FAIL("%s: read %zd bytes (%s), want %zd; \"%.*s\" instead of \"%.*s\"", what, n, n < 0 ? strerror(errno) : "", len, n < 0 ? 0 : (int)n, got, (int)(len < 0 ? 0 : len), want);
}

#define EXPECT(what, fd, text) expect((what), (fd), (text), sizeof(text) - 1)

/* what comes out of a master in the end: what a slave has just written may come in pieces */
static void stream(const char *what, int fd, const char *want, size_t len)
{
	char got[256];
	size_t n = 0;
	for (struct pollfd f = { .fd = fd, .events = POLLIN }; n < len && poll(&f, 1, 5000) == 1;) {
		ssize_t some = MUST(read(fd, got + n, len - n));
		if (!some)
			break;
		n += some;
	}
	if (n != len || memcmp(got, want, n))
		FAIL("%s: read \"%.*s\" instead of \"%.*s\"", what, (int)n, got, (int)len, want);
}

#define STREAM(what, fd, text) stream((what), (fd), (text), sizeof(text) - 1)

static void nothing(const char *what, int fd)
{
	struct pollfd f = { .fd = fd, .events = POLLIN };
	if (poll(&f, 1, 0) != 0)
		FAIL("%s: poll says %#x", what, f.revents);
}

static int ready_for(int fd, int events)
{
	struct pollfd f = { .fd = fd, .events = events };
	poll(&f, 1, 0);
	return f.revents & events;
}

static void await_ready(const char *what, int fd, int events, int on)
{
	for (int i = 0; i < 2000; i++) {
		if (!ready_for(fd, events) == !on)
			return;
		fx_pause_ms(5);
	}
	FAIL("%s: never %sready", what, on ? "" : "un");
}

/* fills a side, and returns with how much */
static size_t stuff(int fd, uint64_t seed)
{
	static unsigned char b[1 << 16];
	size_t done = 0;
	fx_fill(b, sizeof b, seed);
	int flags = fcntl(fd, F_GETFL);
	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	for (int idle = 0; idle < 20;) { /* the kernel makes room once more when its worker has run */
		ssize_t n = write(fd, b + done, sizeof b - done > 777 ? 777 : sizeof b - done);
		if (n > 0)
			done += n, idle = 0;
		else
			idle++, fx_pause_ms(2);
	}
	fcntl(fd, F_SETFL, flags);
	return done;
}

static void drain(const char *what, int fd, size_t len, uint64_t seed)
{
	static unsigned char b[1 << 16], want[1 << 16];
	size_t got = 0;
	fx_fill(want, sizeof want, seed);
	while (got < len) {
		ssize_t n = read(fd, b + got, len - got);
		if (n <= 0) {
			FAIL("%s: only %zu of %zu bytes: %s", what, got, len, n ? strerror(errno) : "end of file");
			return;
		}
		got += n;
	}
	if (memcmp(b, want, len))
		FAIL("%s: other bytes", what);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	signal(SIGHUP, SIG_IGN);
	struct termios t;
	struct termios2 t2, now2;

	struct pty lines = make(1);
	PUT(lines.m, "line one\nline two\nhalf");
	await_ready("lines", lines.s, POLLIN, 1);

	struct pty marks = make(1);
	modes(marks.s, ECHO, 0, 0);
	MUST(tcgetattr(marks.s, &t));
	t.c_cc[VEOL] = ';', t.c_cc[VEOL2] = 0xff;
	MUST(tcsetattr(marks.s, TCSANOW, &t));
	PUT(marks.m, "abc\004\004a;b\xff" "\026\n\026\004c\nopen\026\001\026");
	await_ready("marks", marks.s, POLLIN, 1);

	struct pty bytes = make(1);
	modes(bytes.s, 0, 0, 1);
	MUST(ioctl(bytes.s, TCGETS2, &t2));
	t2.c_cflag = (t2.c_cflag & ~CBAUD) | BOTHER;
	t2.c_ospeed = 12345, t2.c_ispeed = 12345;
	t2.c_cc[VMIN] = 3, t2.c_cc[VTIME] = 0, t2.c_cc[VQUIT] = 'q', t2.c_cc[VLNEXT] = 0;
	t2.c_oflag |= OLCUC, t2.c_iflag |= IUTF8;
	MUST(ioctl(bytes.s, TCSETS2, &t2));
	MUST(ioctl(bytes.s, TCGETS2, &t2));
	unsigned char all[256];
	for (int i = 0; i < 256; i++)
		all[i] = i;
	put(bytes.m, (char *)all, 256);
	struct winsize w = { 43, 132, 1056, 688 }, w2;
	MUST(ioctl(bytes.m, TIOCSWINSZ, &w));
	MUST(fchmod(bytes.s, 0642));

	struct pty fullin = make(1), fullout = make(1);
	modes(fullin.s, 0, 0, 1), modes(fullout.s, 0, 0, 1);
	size_t in = stuff(fullin.m, 5), out = stuff(fullout.s, 6);
	CHECK(in > 4096 && out > 4096, "%zu and %zu bytes fit", in, out);

	struct pty packet = make(1);
	int one = 1, value;
	modes(packet.s, ECHO, 0, 0);
	PUT(packet.s, "data\n");
	MUST(ioctl(packet.m, TIOCPKT, &one));
	MUST(tcflow(packet.s, TCOOFF));
	MUST(tcgetattr(packet.s, &t));
	t.c_iflag &= ~IXON;
	MUST(tcsetattr(packet.s, TCSANOW, &t));

	struct pty stopped = make(1);
	PUT(stopped.m, "typed\n");
	for (int n = 0; n < 7; fx_pause_ms(1)) /* else its echo would be stopped too */
		MUST(ioctl(stopped.m, FIONREAD, &n));
	PUT(stopped.m, "\023");
	await_ready("stopped", stopped.s, POLLOUT, 0);

	struct pty alone = make(1), locked = make(1), never = make(0), closed = make(1), dead = make(1), many = make(1);
	MUST(ioctl(alone.s, TIOCEXCL, 0));
	MUST(ioctl(locked.m, TIOCSPTLCK, &one));
	PUT(closed.s, "bye\n");
	PUT(closed.m, "left\n");
	close(closed.s);
	PUT(dead.s, "nobody reads this");
	close(dead.m);
	char name[64];
	snprintf(name, sizeof name, "/dev/pts/%d", many.n);
	int reader = MUST(open(name, O_RDONLY | O_NOCTTY | O_NONBLOCK)), writer = MUST(open(name, O_WRONLY | O_NOCTTY | O_CLOEXEC)), copy = MUST(dup(many.s));

	struct pty tabs = make(1);
	MUST(tcgetattr(tabs.s, &t));
	t.c_oflag |= XTABS;
	MUST(tcsetattr(tabs.s, TCSANOW, &t));
	PUT(tabs.s, "abc");
	EXPECT("tabs", tabs.m, "abc");

	/* children that wait in a read with half a line there, in a read of a master, and in a write to what is full */
	struct pty waitr = make(1), waitm = make(1), waitw = make(1);
	modes(waitw.s, 0, 0, 1);
	size_t before = stuff(waitw.s, 7);
	pid_t kid[3];
	PUT(waitr.m, "par");
	for (int i = 0; i < 3; i++) {
		kid[i] = MUST(fork());
		if (kid[i])
			continue;
		fx_up();
		if (i == 0)
			EXPECT("a reader", waitr.s, "partial\n");
		else if (i == 1)
			EXPECT("a reader of a master", waitm.m, "news\r\n");
		else
			PUT(waitw.s, "there is room now");
		fx_finish();
	}
	fx_await_up(3);
	for (int i = 0; i < 3; i++)
		fx_await_state(kid[i], 'S');

	fx_ready();
	fx_wait_check();

	EXPECT("the echo of lines", lines.m, "line one\r\nline two\r\nhalf");
	EXPECT("line one", lines.s, "line one\n");
	EXPECT("line two", lines.s, "line two\n");
	nothing("half a line", lines.s);
	PUT(lines.m, "\177F done\n");
	EXPECT("the rest of half a line", lines.s, "halF done\n");
	EXPECT("its echo", lines.m, "\b \bF done\r\n");

	EXPECT("an end of file behind text", marks.s, "abc");
	EXPECT("an end of file", marks.s, "");
	EXPECT("another end of line", marks.s, "a;");
	EXPECT("a second one", marks.s, "b\xff");
	EXPECT("literal bytes", marks.s, "\n\004c\n");
	nothing("an open line", marks.s);
	PUT(marks.m, "\003x\n");
	EXPECT("a literal interrupt", marks.s, "open\001\003x\n");
	nothing("no echo", marks.m);

	CHECK(ioctl(bytes.s, TCGETS2, &now2) == 0 && !memcmp(&now2, &t2, sizeof t2), "modes differ: %o %o %o %o, %u, %u", now2.c_iflag, now2.c_oflag, now2.c_cflag, now2.c_lflag, now2.c_ispeed, now2.c_ospeed);
	CHECK(ioctl(bytes.s, TIOCGWINSZ, &w2) == 0 && !memcmp(&w, &w2, sizeof w), "window size %dx%d", w2.ws_row, w2.ws_col);
	struct stat st;
	CHECK(fstat(bytes.s, &st) == 0 && (st.st_mode & 07777) == 0642, "mode %o", st.st_mode);
	expect("all bytes", bytes.s, (char *)all, 256);
	put(bytes.m, (char *)all, 2);
	nothing("fewer than VMIN", bytes.s);
	drain("full input", fullin.s, in, 5);
	drain("full output", fullout.m, out, 6);
	nothing("more input", fullin.s), nothing("more output", fullout.m);

	int index;
	CHECK(ioctl(bytes.m, TIOCGPTN, &index) == 0 && index == bytes.n, "number %d, was %d", index, bytes.n);

	CHECK(ioctl(packet.m, TIOCGPKT, &value) == 0 && value == 1, "packet mode %d", value);
	CHECK(!ready_for(packet.s, POLLOUT), "held output");
	char status[2] = { TIOCPKT_STOP | TIOCPKT_NOSTOP, 0 };
	expect("packet status", packet.m, status, 1);
	expect("packet data", packet.m, "\0data\r\n", 7);
	CHECK(tcflow(packet.s, TCOON) == 0, "tcflow");
	status[0] = TIOCPKT_START;
	expect("packet status", packet.m, status, 1);
	PUT(packet.s, "on");
	expect("packet data", packet.m, "\0on", 3);

	EXPECT("the echo before the stop", stopped.m, "typed\r\n");
	EXPECT("what was typed", stopped.s, "typed\n");
	CHECK(!ready_for(stopped.s, POLLOUT), "stopped output");
	PUT(stopped.m, "\021");
	await_ready("started", stopped.s, POLLOUT, 1);

	CHECK(ioctl(alone.s, TIOCGEXCL, &value) == 0 && value == 1, "exclusive mode %d", value);
	CHECK(ioctl(locked.m, TIOCGPTLCK, &value) == 0 && value == 1, "lock %d", value);
	CHECK(ioctl(lines.m, TIOCGPTLCK, &value) == 0 && value == 0, "lock %d", value);
	nothing("a slave that was never open", never.m);
	EXPECT("output of a closed slave", closed.m, "bye\r\nleft\r\n");
	expect("its end", closed.m, "", -1);
	CHECK_EQ(errno, EIO, "its end");
	snprintf(name, sizeof name, "/dev/pts/%d", closed.n);
	closed.s = open(name, O_RDWR | O_NOCTTY);
	EXPECT("input of a closed slave", closed.s, "left\n");
	EXPECT("a terminal that has hung up", dead.s, "");
	CHECK(write(dead.s, "x", 1) == -1 && errno == EIO, "writing to it: %s", strerror(errno));
	CHECK(tcgetattr(dead.s, &t) == -1 && errno == EIO, "asking it: %s", strerror(errno));

	CHECK_EQ(fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK, "flags");
	CHECK_EQ(fcntl(writer, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY, "flags");
	PUT(many.m, "for all\n");
	await_ready("many", copy, POLLIN, 1);
	EXPECT("one of many", reader, "for all\n");
	STREAM("the echo of many", many.m, "for all\r\n");
	PUT(writer, "from one\n");
	STREAM("the master of many", many.m, "from one\r\n");

	PUT(tabs.s, "\td");
	EXPECT("a tabulator", tabs.m, "     d");

	PUT(waitr.m, "tial\n");
	PUT(waitm.s, "news\n");
	drain("before the writer that waits", waitw.m, before, 7);
	EXPECT("the writer that waits", waitw.m, "there is room now");
	for (int i = 0; i < 3; i++)
		fx_reap_ok(kid[i]);
	fx_finish();
}
