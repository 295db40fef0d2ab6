/*
 * eventfd (count, semaphore, blocking or not, shared with a child), epoll (data, level, edge, one-shot armed and fired, an item whose descriptor number was closed, an epoll in an epoll, ready and
 * not ready, shared with a child), timerfd (clocks, periodic, absolute, expired and not read, disarmed), signalfd (mask, pending).
 */
#include "fixture.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static int ready_events(int ep, struct epoll_event *out, int max, int timeout)
{
	int n = epoll_wait(ep, out, max, timeout);
	if (n < 0)
		FAIL("epoll_wait: %s", strerror(errno));
	return n;
}

static const struct epoll_event *find(const struct epoll_event *e, int n, uint64_t data)
{
	for (int i = 0; i < n; i++)
		if (e[i].data.u64 == data)
			return &e[i];
	return NULL;
}

static void add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
}

static int64_t tleft(int fd, int64_t *interval)
{
	struct itimerspec it;
	MUST(timerfd_gettime(fd, &it));
	*interval = it.it_interval.tv_sec * 1000000000ll + it.it_interval.tv_nsec;
	return it.it_value.tv_sec * 1000000000ll + it.it_value.tv_nsec;
}

static int tmake(clockid_t c, int flags, int sflags, int64_t v, int64_t i)
{
	int fd = MUST(timerfd_create(c, flags));
	struct itimerspec it = { { i / 1000000000, i % 1000000000 }, { v / 1000000000, v % 1000000000 } };
	MUST(timerfd_settime(fd, sflags, &it, NULL));
	return fd;
}

#define S 1000000000ll

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	/* eventfd */
	int ev = MUST(eventfd(0, 0)), sem = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK)), top = MUST(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), none = MUST(eventfd(0, EFD_NONBLOCK));
	uint64_t v = 0x123456789abcull;
	MUST(write(ev, &v, 8));
	v = 0xfffffffffffffffeull;
	MUST(write(top, &v, 8));
	/* epoll */
	int p[2], q[2], r[2], s[2], ep = MUST(epoll_create1(EPOLL_CLOEXEC)), outer = MUST(epoll_create1(0));
	MUST(pipe2(p, O_CLOEXEC | O_NONBLOCK)), MUST(pipe2(q, O_CLOEXEC | O_NONBLOCK)), MUST(pipe2(r, O_CLOEXEC | O_NONBLOCK)), MUST(pipe2(s, O_CLOEXEC | O_NONBLOCK));
	add(ep, p[0], EPOLLIN | EPOLLRDHUP, 0xaaaabbbbccccddddull);
	add(ep, q[0], EPOLLIN | EPOLLONESHOT, 2);
	add(ep, r[0], EPOLLIN | EPOLLONESHOT, 3);
	add(ep, s[0], EPOLLIN | EPOLLET, 4);
	add(ep, none, EPOLLIN, 5);
	add(outer, ep, EPOLLIN, 100);
	int hidden = MUST(dup(s[0])), was = MUST(fcntl(hidden, F_DUPFD_CLOEXEC, 60));
	add(ep, was, EPOLLIN, 6); /* and then its number is closed, the file lives on as s[0] */
	close(was);
	close(hidden);
	MUST(write(r[1], "x", 1)); /* the one-shot of r fires now: it stays quiet until it is armed again */
	struct epoll_event e[8];
	CHECK(ready_events(ep, e, 8, 0) == 1 && e[0].data.u64 == 3, "set-up: one-shot");
	MUST(write(p[1], "y", 1)); /* ready, and not asked for yet */
	/* timerfd */
	int64_t real = fx_now(CLOCK_REALTIME) + 4000 * S, iv;
	int far = tmake(CLOCK_MONOTONIC, TFD_CLOEXEC, 0, 1000 * S, 7 * S + 7), abs = tmake(CLOCK_REALTIME, 0, TFD_TIMER_ABSTIME, real, 0), boot = tmake(CLOCK_BOOTTIME, 0, 0, 3000 * S, 0);
	int off = tmake(CLOCK_MONOTONIC, 0, 0, 0, 0), due = tmake(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 1000000, 0), often = tmake(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 1000000, 10000000);
	/* signalfd */
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int sfd = MUST(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
	union sigval sv = { .sival_int = 4242 };
	MUST(sigqueue(getpid(), SIGRTMIN + 3, sv));
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_up();
		fx_wait_check();
		for (int i = 0; i < 2000 && !fx_exists("events-1"); i++)
			fx_pause_ms(5);
		uint64_t got = 0;
		CHECK(read(ev, &got, 8) == 8 && got == 77, "eventfd shared with the parent: %" PRIu64, got);
		struct epoll_event ke[8];
		/* the epoll is shared: what the parent adds is here */
		int n = ready_events(ep, ke, 8, 1000);
		CHECK(find(ke, n, 50), "what the parent added to the shared epoll is not seen");
		_exit(0);
	}
	fx_await_up(1);
	fx_pause_ms(20);
	int64_t last = tleft(far, &iv), lastboot = tleft(boot, &iv);
	fx_ready();
	fx_wait_check();

	CHECK(read(ev, &v, 8) == 8 && v == 0x123456789abcull, "eventfd count %" PRIx64, v);
	for (int i = 0; i < 3; i++)
		CHECK(read(sem, &v, 8) == 8 && v == 1, "eventfd semaphore, read %d: %" PRIu64, i, v);
	CHECK(read(sem, &v, 8) < 0 && errno == EAGAIN, "eventfd semaphore has more");
	CHECK(read(none, &v, 8) < 0 && errno == EAGAIN, "eventfd of zero");
	v = 1;
	CHECK(write(top, &v, 8) < 0 && errno == EAGAIN, "full eventfd: %s", strerror(errno));
	CHECK_EQ(fcntl(top, F_GETFD), FD_CLOEXEC, "close-on-exec of the eventfd");
	CHECK_EQ(fcntl(ev, F_GETFL) & O_NONBLOCK, 0, "eventfd that blocks");

	int n = ready_events(outer, e, 8, 0);
	CHECK(n == 1 && e[0].data.u64 == 100, "the outer epoll says %d", n);
	n = ready_events(ep, e, 8, 0);
	CHECK(n == 1 && e[0].data.u64 == 0xaaaabbbbccccddddull && e[0].events == EPOLLIN, "epoll: %d ready, first %" PRIx64 " events %x", n, n > 0 ? e[0].data.u64 : 0, n > 0 ? e[0].events : 0);
	char c;
	CHECK(read(p[0], &c, 1) == 1, "read");
	CHECK_EQ(ready_events(ep, e, 8, 0), 0, "ready after the read");
	MUST(write(q[1], "z", 1));
	n = ready_events(ep, e, 8, 1000);
	CHECK(n == 1 && e[0].data.u64 == 2, "armed one-shot: %d", n);
	CHECK_EQ(ready_events(ep, e, 8, 0), 0, "the one-shot fired twice");
	struct epoll_event arm = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 33 };
	CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, r[0], &arm) == 0, "arming the fired one-shot: %s", strerror(errno));
	n = ready_events(ep, e, 8, 1000);
	CHECK(n == 1 && e[0].data.u64 == 33, "one-shot armed again: %d", n);
	MUST(write(s[1], "w", 1));
	n = ready_events(ep, e, 8, 1000);
	CHECK(n == 2 && find(e, n, 4) && find(e, n, 6), "edge-triggered item and the one whose number is closed: %d ready", n);
	n = ready_events(ep, e, 8, 0);
	CHECK(n == 1 && e[0].data.u64 == 6, "only the level-triggered one again: %d ready", n);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, none, &arm) < 0 && errno == EEXIST, "an item that is there can be added");
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, none, NULL) == 0, "removing an item: %s", strerror(errno));

	int64_t l = tleft(far, &iv);
	CHECK(l <= last && l > 800 * S && iv == 7 * S + 7, "far timerfd: %lld left, %lld when last seen, interval %lld", (long long)l, (long long)last, (long long)iv);
	l = tleft(abs, &iv) + fx_now(CLOCK_REALTIME) - real;
	CHECK(l <= 10000000 && l > -200 * S, "absolute timerfd ends %lld ns late", (long long)l);
	l = tleft(boot, &iv);
	CHECK(l <= lastboot && l > 2800 * S, "timerfd of CLOCK_BOOTTIME: %lld", (long long)l);
	CHECK_EQ(tleft(off, &iv), 0, "disarmed timerfd");
	CHECK(read(due, &v, 8) == 8 && v == 1, "expired timerfd: %" PRIu64 ", %s", v, strerror(errno));
	CHECK(read(due, &v, 8) < 0 && errno == EAGAIN, "it expired twice");
	CHECK(read(often, &v, 8) == 8 && v >= 2, "periodic timerfd: %" PRIu64, v);
	for (int i = 0; i < 3; i++) {
		for (int k = 0; k < 2000 && read(often, &v, 8) < 0; k++)
			fx_pause_ms(1);
		CHECK(v >= 1, "the periodic timerfd has stopped");
		v = 0;
	}
	struct signalfd_siginfo si;
	CHECK(read(sfd, &si, sizeof si) == sizeof si && si.ssi_signo == (unsigned)SIGRTMIN + 3 && si.ssi_int == 4242, "signalfd: signal %u value %d, %s", si.ssi_signo, si.ssi_int, strerror(errno));
	CHECK(read(sfd, &si, sizeof si) < 0 && errno == EAGAIN, "signalfd has more");
	raise(SIGUSR1);
	CHECK(read(sfd, &si, sizeof si) == sizeof si && si.ssi_signo == SIGUSR1, "signalfd after: %s", strerror(errno));
	sigset_t usr2;
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	sigprocmask(SIG_BLOCK, &usr2, NULL);
	raise(SIGUSR2);
	CHECK(read(sfd, &si, sizeof si) < 0 && errno == EAGAIN, "signalfd reads a signal that is not in its mask: %u", si.ssi_signo);
	CHECK_EQ(fcntl(sfd, F_GETFD), FD_CLOEXEC, "close-on-exec of the signalfd");
	/* shared with the child */
	v = 77;
	int fresh = MUST(eventfd(1, 0));
	add(ep, fresh, EPOLLIN, 50);
	CHECK(write(ev, &v, 8) == 8, "write");
	fx_touch("events-1", "");
	fx_reap_ok(kid);
	fx_finish();
}
