/*
 * Holds two things that no checkpoint can keep, in two processes, while others sleep in calls that a mere freeze would end with EINTR: a secret memory mapping (memfd_secret) and the
 * descriptor of a performance counter. A refused dump must leave the sleeps as they are.
 */
#include "fixture.h"
#include <linux/perf_event.h>
#include <sys/epoll.h>

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct perf_event_attr at = { .type = PERF_TYPE_SOFTWARE, .size = sizeof at, .config = PERF_COUNT_SW_CPU_CLOCK };
	pid_t kid[3];
	for (int i = 0; i < 3; i++) {
		kid[i] = MUST(fork());
		if (kid[i])
			continue;
		if (i == 0) {
			int fd = MUST(syscall(SYS_perf_event_open, &at, 0, -1, -1, 0));
			MUST(dup2(fd, 37));
			close(fd);
		}
		fx_up();
		struct epoll_event ev;
		int ep = MUST(epoll_create1(0)), r = 0;
		sigset_t s;
		sigemptyset(&s);
		sigaddset(&s, SIGUSR1);
		sigprocmask(SIG_BLOCK, &s, NULL);
		struct timespec t = { 3, 0 };
		int64_t begin = fx_now(CLOCK_MONOTONIC);
		if (i == 0)
			r = epoll_wait(ep, &ev, 1, 3000);
		else if (i == 1)
			r = sigtimedwait(&s, NULL, &t) == -1 && errno == EAGAIN ? 0 : -1;
		else
			r = nanosleep(&t, NULL);
		CHECK(r == 0, "the sleep of child %d ended with %d, %s", i, r, strerror(errno));
		CHECK(fx_now(CLOCK_MONOTONIC) - begin >= 2990000000ll, "the sleep of child %d was too short", i);
		fx_wait_check();
		_exit(0);
	}
	int secret = syscall(SYS_memfd_secret, 0);
	if (secret >= 0) {
		MUST(ftruncate(secret, 4096));
		char *p = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, secret, 0));
		p[0] = 1;
		MUST(dup2(secret, 41));
		close(secret);
		fx_touch("secret", "");
	}
	fx_await_up(3);
	for (int i = 0; i < 3; i++)
		fx_await_state(kid[i], 'S');
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < 3; i++)
		fx_reap_ok(kid[i]);
	fx_finish();
}
