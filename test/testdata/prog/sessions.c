/*
 * Controlling terminals: sessions each with its own, the foreground group (that of the leader, of another job, and of one that has
 * died), a process that has none although its session does, /dev/tty open, a session whose terminal has hung up, one whose leader has
 * died. Nobody gets a signal that nobody sent; Ctrl-C and a changed window reach the foreground alone.
 */
#include "fixture.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>

static volatile sig_atomic_t got[65];
static volatile sig_atomic_t order[65];

static void count(int sig)
{
	got[sig]++;
	order[sig] = 1;
}

static const int watched[] = { SIGHUP, SIGINT, SIGQUIT, SIGCONT, SIGTTIN, SIGTTOU, SIGTSTP, SIGWINCH };

static void watch(void)
{
	for (size_t i = 0; i < sizeof watched / sizeof *watched; i++)
		signal(watched[i], count);
}

/* which of the watched signals have come: name them */
static void signals(const char *who, int a, int b)
{
	for (size_t i = 0; i < sizeof watched / sizeof *watched; i++) {
		int sig = watched[i], want = sig == a || sig == b;
		if ((got[sig] != 0) != want)
			FAIL("%s: signal %d came %d times", who, sig, (int)got[sig]);
	}
}

static int far_master(void)
{
	static int wait[4096];
	int n = 0, m, index, zero = 0, want = 160 + getpid() % 100;
	for (;;) {
		m = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
		MUST(ioctl(m, TIOCGPTN, &index));
		if (index >= want)
			break;
		wait[n++] = m;
	}
	while (n)
		close(wait[--n]);
	MUST(ioctl(m, TIOCSPTLCK, &zero));
	return m;
}

static int slave(int m)
{
	char name[64];
	int n;
	MUST(ioctl(m, TIOCGPTN, &n));
	snprintf(name, sizeof name, "/dev/pts/%d", n);
	return MUST(open(name, O_RDWR | O_NOCTTY));
}

/* tty_nr and tpgid of the caller */
static void tty_of(int *nr, int *group)
{
	char buf[1024];
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, sizeof buf - 1);
	close(fd);
	buf[n > 0 ? n : 0] = 0;
	char *p = strrchr(buf, ')');
	*nr = *group = -2;
	if (p)
		sscanf(p + 2, "%*c %*d %*d %*d %d %d", nr, group);
}

static int seen_nr, seen_group;

static void up(void)
{
	tty_of(&seen_nr, &seen_group);
	fx_up();
}

/* waits until the master's side has done its part: the file says so */
static void wait_for(const char *name)
{
	while (!fx_exists(name))
		fx_pause_ms(5);
}

static void same_tty(const char *who)
{
	int nr, group;
	tty_of(&nr, &group);
	CHECK(nr == seen_nr && group == seen_group, "%s: terminal %#x, group %d; was %#x, %d", who, nr, group, seen_nr, seen_group);
	signals(who, 0, 0);
}

enum { LEADER_FRONT, JOB_FRONT, DEAD_FRONT, SESSIONS };

static void session(int kind, int m)
{
	int s = slave(m);
	close(m);
	MUST(setsid());
	pid_t older = 0;
	if (kind == JOB_FRONT) {
		older = MUST(fork());
		if (!older) {
			up();
			CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO, "older: /dev/tty: %s", strerror(errno));
			wait_for("check");
			fx_compare();
			same_tty("older");
			CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO, "older: /dev/tty: %s", strerror(errno));
			wait_for("acted");
			signals("older", 0, 0);
			fx_finish();
		}
		fx_await_up(1);
	}
	MUST(ioctl(s, TIOCSCTTY, 0));
	int tty = MUST(open("/dev/tty", O_RDWR | O_NONBLOCK));
	int ep = MUST(epoll_create1(0));
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0x1122334455667788 };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, tty, &ev));
	pid_t job[2] = { 0 };
	for (int i = 0; i < 2 && kind == JOB_FRONT; i++) {
		job[i] = MUST(fork());
		if (job[i])
			continue;
		setpgid(0, 0);
		while (i == 1 ? tcgetpgrp(s) != getpid() : tcgetpgrp(s) == getsid(0))
			fx_pause_ms(1);
		up();
		wait_for("check");
		fx_compare();
		same_tty(i ? "front" : "back");
		CHECK(open("/dev/tty", O_RDWR) >= 0, "/dev/tty: %s", strerror(errno));
		wait_for("acted");
		if (i)
			for (int k = 0; k < 1000 && !(got[SIGINT] && got[SIGWINCH]); k++)
				fx_pause_ms(5);
		signals(i ? "front" : "back", i ? SIGINT : 0, i ? SIGWINCH : 0);
		fx_finish();
	}
	if (kind == JOB_FRONT) {
		setpgid(job[0], job[0]), setpgid(job[1], job[1]);
		MUST(tcsetpgrp(s, job[1]));
	}
	if (kind == DEAD_FRONT) {
		pid_t gone = MUST(fork());
		if (!gone)
			for (;;)
				pause();
		MUST(setpgid(gone, gone));
		MUST(tcsetpgrp(s, gone));
		kill(gone, SIGKILL);
		waitpid(gone, 0, 0);
	}
	up();
	wait_for("check");
	fx_compare();
	same_tty("leader");
	CHECK_EQ(tcgetsid(s), getsid(0), "session");
	CHECK_EQ(tcgetsid(tty), getsid(0), "session of /dev/tty");
	CHECK_EQ(fcntl(tty, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR | O_NONBLOCK, "flags of /dev/tty");
	char link[64] = "", path[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", tty);
	CHECK(readlink(path, link, sizeof link - 1) > 0 && !strcmp(link, "/dev/tty"), "/dev/tty is %s", link);
	if (kind == JOB_FRONT)
		CHECK_EQ(tcgetpgrp(s), job[1], "foreground");
	CHECK_EQ(epoll_wait(ep, &ev, 1, 0), 0, "what is watched of /dev/tty");
	fx_append("looked", "+", 1);
	wait_for("typed");
	CHECK(epoll_wait(ep, &ev, 1, 5000) == 1 && ev.data.u64 == 0x1122334455667788, "what is watched of /dev/tty, when a line was typed");
	fx_append("noted", "+", 1);
	wait_for("acted");
	if (kind == LEADER_FRONT)
		for (int k = 0; k < 1000 && !(got[SIGINT] && got[SIGWINCH]); k++)
			fx_pause_ms(5);
	signals("leader", kind == LEADER_FRONT ? SIGINT : 0, kind == LEADER_FRONT ? SIGWINCH : 0);
	if (older)
		fx_reap_ok(older);
	for (int i = 0; i < 2; i++)
		if (job[i])
			fx_reap_ok(job[i]);
	fx_finish();
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	watch();
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* of the one left behind */
	int m[SESSIONS + 2];
	pid_t lead[SESSIONS + 2];
	for (int i = 0; i < SESSIONS + 2; i++)
		m[i] = far_master();
	for (int i = 0; i < SESSIONS; i++) {
		lead[i] = MUST(fork());
		if (!lead[i]) {
			for (int k = 0; k < SESSIONS + 2; k++)
				if (k != i)
					close(m[k]);
			session(i, m[i]);
		}
	}
	/* one whose terminal hangs up: the leader is told, and goes on */
	lead[SESSIONS] = MUST(fork());
	if (!lead[SESSIONS]) {
		int s = slave(m[SESSIONS]);
		for (int k = 0; k < SESSIONS + 2; k++)
			close(m[k]);
		MUST(setsid());
		MUST(ioctl(s, TIOCSCTTY, 0));
		fx_append("up", "+", 1);
		while (!got[SIGHUP] || !got[SIGCONT])
			fx_pause_ms(1);
		memset((void *)got, 0, sizeof got);
		up();
		wait_for("check");
		fx_compare();
		same_tty("hung up");
		char c;
		CHECK(read(s, &c, 1) == 0, "a read: %s", strerror(errno));
		fx_finish();
	}
	/* one whose leader dies: its child has no terminal any more */
	lead[SESSIONS + 1] = 0;
	pid_t leader = MUST(fork());
	if (!leader) {
		int s = slave(m[SESSIONS + 1]);
		for (int k = 0; k < SESSIONS + 2; k++)
			close(m[k]);
		MUST(setsid());
		MUST(ioctl(s, TIOCSCTTY, 0));
		pid_t left = fork();
		if (left)
			_exit(0);
		while (!got[SIGHUP])
			fx_pause_ms(1);
		memset((void *)got, 0, sizeof got);
		up();
		wait_for("check");
		fx_compare();
		same_tty("left behind");
		CHECK(write(s, "alive\n", 6) == 6, "a write: %s", strerror(errno));
		fx_append("left", "ok\n", 3);
		fx_finish();
	}
	waitpid(leader, 0, 0);
	fx_await_up(1 + 2 + 3 + 1 + 1); /* older, two jobs, three leaders, the one left behind, and the one that will hang up */
	close(m[SESSIONS]);
	fx_await_up(1 + 2 + 3 + 1 + 1 + 1);
	fx_ready();
	fx_wait_check();
	signals("root", 0, 0);
	for (int i = 0; i < SESSIONS; i++)
		CHECK_EQ(tcgetsid(m[i]), lead[i], "session, by the master");
	char text[16] = "";
	CHECK(read(m[SESSIONS + 1], text, sizeof text) == 7 && !strcmp(text, "alive\r\n"), "from the one left behind: %s", text);
	struct stat st;
	while (stat(fx_path("looked"), &st) || st.st_size < SESSIONS)
		fx_pause_ms(5);
	for (int i = 0; i < SESSIONS; i++)
		CHECK(write(m[i], "line\n", 5) == 5, "a line");
	fx_append("typed", "+", 1);
	while (stat(fx_path("noted"), &st) || st.st_size < SESSIONS)
		fx_pause_ms(5);
	struct winsize w = { 11, 22, 33, 44 };
	for (int i = 0; i < SESSIONS; i++) {
		CHECK(write(m[i], "\003", 1) == 1, "Ctrl-C");
		CHECK(ioctl(m[i], TIOCSWINSZ, &w) == 0, "window size");
	}
	fx_append("acted", "+", 1);
	for (int i = 0; i <= SESSIONS; i++)
		fx_reap_ok(lead[i]);
	CHECK(fx_exists("left"), "the one left behind");
	fx_finish();
}
