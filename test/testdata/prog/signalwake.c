/* Processes that wait in epoll_wait for a signalfd: each must be woken by its own signals, as PostgreSQL's are by the latches of others. */
#include "fixture.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>

enum { N = 3 };

static void wait_for(int ep, int fd, int n)
{
	for (int i = 0; i < n; i++) {
		struct epoll_event e;
		struct signalfd_siginfo si;
		CHECK_EQ(epoll_wait(ep, &e, 1, 20000), 1, "events of a signalfd");
		CHECK_EQ(read(fd, &si, sizeof si), (long)sizeof si, "signals read");
		CHECK_EQ(si.ssi_signo, (unsigned)SIGURG, "the signal");
		fx_up();
	}
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	sigset_t set;
	pid_t kid[N];
	sigemptyset(&set);
	sigaddset(&set, SIGURG);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < N; i++) {
		kid[i] = MUST(fork());
		if (!kid[i]) {
			int fd = MUST(signalfd(-1, &set, SFD_NONBLOCK)), ep = MUST(epoll_create1(0));
			struct epoll_event e = { .events = EPOLLIN | (i == 1 ? EPOLLET : 0) };
			MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
			wait_for(ep, fd, 2);
			_exit(0);
		}
		MUST(kill(kid[i], SIGURG));
	}
	fx_await_up(N);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < N; i++)
		MUST(kill(kid[i], SIGURG));
	for (int i = 0; i < N; i++)
		fx_reap_ok(kid[i]);
	fx_finish();
}
