/*
 * Sockets whose owner is told of input by a signal (O_ASYNC): as nginx has its channels, set by FIOASYNC and inherited by a child; through a number that is not the first; one that is not told
 * any more.
 */
#include "fixture.h"
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { CHANNEL, MOVED, DATAGRAM, SILENT, N };
static int p[N][2];
static volatile int got[N], strange;

static int told(int i) { return i == MOVED ? p[i][0] + 50 : p[i][0]; }

static void on_io(int sig, siginfo_t *si, void *u)
{
	(void)u;
	for (int i = 0; i < N; i++)
		if (sig == SIGRTMIN + i && si->si_fd == told(i)) {
			got[i]++;
			return;
		}
	strange++;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct sigaction sa = { .sa_sigaction = on_io, .sa_flags = SA_SIGINFO | SA_RESTART };
	int on = 1, flags[N];
	for (int i = 0; i < N; i++) {
		MUST(sigaction(SIGRTMIN + i, &sa, NULL));
		MUST(socketpair(AF_UNIX, i == DATAGRAM ? SOCK_DGRAM : SOCK_STREAM, 0, p[i]));
		MUST(fcntl(p[i][0], F_SETSIG, SIGRTMIN + i));
		MUST(fcntl(p[i][0], F_SETOWN, getpid()));
		if (told(i) != p[i][0])
			MUST(dup2(p[i][0], told(i)));
		MUST(ioctl(told(i), FIOASYNC, &on));
		MUST(fcntl(p[i][0], F_SETFL, fcntl(p[i][0], F_GETFL) | O_NONBLOCK));
		flags[i] = fcntl(p[i][0], F_GETFL);
	}
	on = 0;
	MUST(ioctl(p[SILENT][0], FIOASYNC, &on));
	flags[SILENT] = fcntl(p[SILENT][0], F_GETFL);
	CHECK(flags[CHANNEL] & O_ASYNC && !(flags[SILENT] & O_ASYNC), "flags %#o and %#o", flags[CHANNEL], flags[SILENT]);
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_up();
		fx_wait_check();
		for (int i = 0; i < N; i++)
			MUST(write(p[i][1], "x", 1));
		_exit(0);
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	fx_reap_ok(kid);
	for (int i = 0; i < N; i++) {
		char c;
		CHECK_EQ(fcntl(p[i][0], F_GETFL), flags[i], "F_GETFL");
		for (int k = 0; got[i] < (i != SILENT) && k < 2000; k++)
			fx_pause_ms(5);
		CHECK_EQ(got[i], i != SILENT, "signals of one socket");
		CHECK_EQ(read(p[i][0], &c, 1), 1, "what is to be read");
	}
	CHECK_EQ(strange, 0, "signals of something else");
	fx_finish();
}
