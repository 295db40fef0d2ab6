/*
 * Leases: for reading and for writing, by a number that is not the lowest, shared with a child that has not taken it, one that another than the owner of the open file has taken. They are there
 * afterwards as they were, no signal has come, and a break tells who it always told, by the signal and with the number of then.
 */
#include "fixture.h"
#include <poll.h>

#ifndef F_GETOWN_EX
#define F_GETOWN_EX 16
struct f_owner_ex { int type; pid_t pid; };
#endif

static volatile int signals, last_fd = -1, last_signal;
static void told(int sig, siginfo_t *si, void *u)
{
	(void)u;
	signals++;
	last_fd = sig == SIGIO ? -2 : si->si_fd;
	last_signal = sig;
}

static void await_signal(const char *what, int sig, int fd)
{
	for (int i = 0; i < 2000 && !signals; i++)
		fx_pause_ms(1);
	CHECK_EQ(signals, 1, what);
	CHECK_EQ(last_signal, sig, what);
	CHECK_EQ(last_fd, fd, what);
	signals = 0;
}

static int file(const char *name, int flags)
{
	int fd = MUST(open(fx_path(name), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	MUST(write(fd, "text", 4));
	close(fd);
	return MUST(open(fx_path(name), flags));
}

static pid_t owner(int fd)
{
	struct f_owner_ex o = { -1, -1 };
	MUST(fcntl(fd, F_GETOWN_EX, &o));
	CHECK_EQ(o.type, 1, "type of the owner");
	return o.pid;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	struct sigaction sa = { .sa_sigaction = told, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGIO, &sa, NULL);
	sigaction(SIGRTMIN + 3, &sa, NULL);

	int r = file("reading", O_RDONLY), w = file("writing", O_RDWR), s = file("shared", O_RDONLY), o = file("owned", O_RDONLY);
	int plain = file("plain", O_RDONLY);
	MUST(dup2(r, 50));
	MUST(fcntl(50, F_SETLEASE, F_RDLCK));
	MUST(fcntl(50, F_SETSIG, SIGRTMIN + 3));
	MUST(fcntl(w, F_SETLEASE, F_WRLCK));
	MUST(fcntl(o, F_SETOWN, 0)); /* the type is set, nobody is */
	pid_t child = MUST(fork());
	if (!child) {
		MUST(fcntl(s, F_SETLEASE, F_RDLCK));
		MUST(fcntl(s, F_SETSIG, SIGRTMIN + 3));
		fx_up();
		fx_wait_check();
		CHECK_EQ(fcntl(s, F_GETLEASE), F_RDLCK, "the child's lease");
		CHECK_EQ(owner(s), getpid(), "its owner");
		CHECK_EQ(signals, 0, "signals to the child");
		fx_touch("child-looked", "");
		await_signal("the break of the child's lease", SIGRTMIN + 3, s);
		MUST(fcntl(s, F_SETLEASE, F_UNLCK));
		_exit(0);
	}
	fx_await_up(1);
	MUST(fcntl(o, F_SETLEASE, F_RDLCK));
	MUST(fcntl(o, F_SETOWN, child));
	fx_ready();
	fx_wait_check();

	CHECK_EQ(signals, 0, "signals");
	CHECK_EQ(fcntl(r, F_GETLEASE), F_RDLCK, "read lease");
	CHECK_EQ(fcntl(r, F_GETSIG), SIGRTMIN + 3, "its signal");
	CHECK_EQ(owner(r), getpid(), "its owner");
	CHECK_EQ(fcntl(w, F_GETLEASE), F_WRLCK, "write lease");
	CHECK_EQ(fcntl(s, F_GETLEASE), F_RDLCK, "the child's lease on what is shared");
	CHECK_EQ(fcntl(o, F_GETLEASE), F_RDLCK, "a lease whose owner is another");
	CHECK_EQ(owner(o), child, "that owner");
	CHECK_EQ(fcntl(plain, F_GETLEASE), F_UNLCK, "no lease");
	for (int i = 0; i < 2000 && !fx_exists("child-looked"); i++)
		fx_pause_ms(5);

	CHECK(open(fx_path("reading"), O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "a lease does not prevent writing: %s", strerror(errno));
	await_signal("the break of a read lease", SIGRTMIN + 3, 50);
	MUST(fcntl(r, F_SETLEASE, F_UNLCK));
	CHECK(open(fx_path("writing"), O_RDONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "a lease does not prevent reading: %s", strerror(errno));
	await_signal("the break of a write lease", SIGIO, -2);
	MUST(fcntl(w, F_SETLEASE, F_UNLCK));
	CHECK(open(fx_path("shared"), O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "the child's lease does not prevent writing: %s", strerror(errno));
	CHECK_EQ(signals, 0, "the parent is told of the child's lease");
	fx_reap_ok(child);
	fx_finish();
}
