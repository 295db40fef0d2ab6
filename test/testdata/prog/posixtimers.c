/*
 * POSIX timers: ids (with a gap), clocks, notification by signal with value, to a thread, and none; one-shot, periodic, absolute, disarmed; the process's CPU clock;
 * one that has fired with its signal pending and overruns. Periodic ones go on; far ones keep what was left.
 */
#include "fixture.h"

#ifndef SIGEV_THREAD_ID
#define SIGEV_THREAD_ID 4
#endif

struct ksigevent { union sigval value; int signo, notify, tid, pad[11]; };

static int create(clockid_t clock, int notify, int signo, long value, int tid)
{
	struct ksigevent ev = { .value.sival_ptr = (void *)value, .signo = signo, .notify = notify, .tid = tid };
	int id = -1;
	if (syscall(SYS_timer_create, clock, &ev, &id))
		FAIL("set-up: timer_create(%d): %s", (int)clock, strerror(errno));
	return id;
}

static void arm(int id, int flags, int64_t value, int64_t interval)
{
	struct itimerspec it = { { interval / 1000000000, interval % 1000000000 }, { value / 1000000000, value % 1000000000 } };
	if (syscall(SYS_timer_settime, id, flags, &it, NULL))
		FAIL("set-up: timer_settime(%d): %s", id, strerror(errno));
}

static int64_t left(int id, int64_t *interval)
{
	struct itimerspec it = { 0 };
	if (syscall(SYS_timer_gettime, id, &it)) {
		FAIL("timer %d is gone: %s", id, strerror(errno));
		return -1;
	}
	if (interval)
		*interval = it.it_interval.tv_sec * 1000000000ll + it.it_interval.tv_nsec;
	return it.it_value.tv_sec * 1000000000ll + it.it_value.tv_nsec;
}

static volatile pid_t thread_tid;
static volatile int thread_hits, thread_wrong;

static void on_thread(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)uc;
	if (syscall(SYS_gettid) == thread_tid && si->si_value.sival_ptr == (void *)0x7777)
		thread_hits++;
	else
		thread_wrong++;
}

static void *thread(void *arg)
{
	(void)arg;
	thread_tid = syscall(SYS_gettid);
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN + 5);
	pthread_sigmask(SIG_UNBLOCK, &s, NULL);
	fx_up();
	while (!fx_exists("end"))
		fx_pause_ms(5);
	return NULL;
}

#define S 1000000000ll

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	sigset_t block;
	sigemptyset(&block);
	for (int s = SIGRTMIN; s <= SIGRTMAX; s++)
		sigaddset(&block, s);
	sigprocmask(SIG_BLOCK, &block, NULL);
	struct sigaction sa = { .sa_sigaction = on_thread, .sa_flags = SA_SIGINFO };
	MUST(sigaction(SIGRTMIN + 5, &sa, NULL));
	pthread_t t;
	pthread_create(&t, NULL, thread, NULL);
	fx_await_up(1);

	int far = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 0x1001, 0);
	int gap = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	int none = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0x1003, 0);
	int abs = create(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 2, 0x1004, 0);
	int off = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGRTMIN + 3, 0x1005, 0);
	int fired = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 4, 0x1006, 0);
	int often = create(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 5, 0x7777, thread_tid);
	int cpu = create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 6, 0x1008, 0);
	int once = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 8, 0x100a, 0);
	syscall(SYS_timer_delete, gap);
	int64_t real = fx_now(CLOCK_REALTIME) + 5000 * S;
	arm(far, 0, 1000 * S, 3 * S + 5);
	arm(none, 0, 2000 * S, 0);
	arm(abs, TIMER_ABSTIME, real, 0);
	arm(fired, 0, 1000000, 1000000);
	arm(often, 0, 2000000, 2000000);
	arm(cpu, 0, 600 * S, 0);
	arm(once, 0, 1000000, 0);
	fx_pause_ms(30);
	int64_t last_far, last_none;
	fx_ready();
	do {
		last_far = left(far, NULL);
		last_none = left(none, NULL);
		fx_pause_ms(10);
	} while (!fx_exists("check"));
	int64_t iv, v = left(far, &iv);
	CHECK(v <= last_far && v > 800 * S, "far timer: %lld left, %lld when last seen", (long long)v, (long long)last_far);
	CHECK_EQ(iv, 3 * S + 5, "interval of the far timer");
	v = left(none, &iv);
	CHECK(v <= last_none && v > 1800 * S, "timer without notification: %lld left, %lld when last seen", (long long)v, (long long)last_none);
	CHECK_EQ(syscall(SYS_timer_gettime, gap, &(struct itimerspec){ 0 }), -1, "the deleted timer");
	v = left(abs, &iv) + fx_now(CLOCK_REALTIME) - real;
	CHECK(v <= 10000000 && v > -200 * S, "absolute timer ends %lld ns late", (long long)v);
	CHECK_EQ(left(off, &iv), 0, "disarmed timer");
	v = left(cpu, &iv);
	CHECK(v > 300 * S && v <= 600 * S, "process CPU timer: %lld left", (long long)v);
	/* the pending expiration is there once, with overruns, and the next one comes */
	struct timespec two = { 20, 0 };
	siginfo_t si;
	sigset_t s;
	for (int round = 0; round < 2; round++) {
		sigemptyset(&s);
		sigaddset(&s, SIGRTMIN + 4);
		CHECK_EQ(sigtimedwait(&s, &si, &two), SIGRTMIN + 4, "signal of the periodic timer");
		CHECK(si.si_code == SI_TIMER && si.si_timerid == fired && si.si_value.sival_ptr == (void *)0x1006, "its code %d, timer %d, value %p", si.si_code, si.si_timerid, si.si_value.sival_ptr);
		if (!round) {
			CHECK(si.si_overrun > 0, "overruns: %d", si.si_overrun);
			fx_pause_ms(5);
		}
	}
	syscall(SYS_timer_delete, fired);
	struct timespec zero = { 0, 0 };
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN + 8);
	CHECK_EQ(sigtimedwait(&s, &si, &zero), SIGRTMIN + 8, "pending signal of the one-shot timer");
	CHECK_EQ(sigtimedwait(&s, &si, &zero), -1, "it came twice");
	CHECK_EQ(left(once, NULL), 0, "one-shot timer that has fired");
	/* the thread's goes on, to that thread */
	int hits = thread_hits;
	for (int i = 0; i < 2000 && thread_hits < hits + 5; i++)
		fx_pause_ms(5);
	CHECK(thread_hits >= hits + 5, "the thread's timer does not tick any more");
	CHECK_EQ(thread_wrong, 0, "expirations that came elsewhere");
	/* SIGRTMIN+1 of a far timer, when made near, is sent with its value */
	arm(far, 0, 1000000, 0);
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN + 1);
	CHECK_EQ(sigtimedwait(&s, &si, &two), SIGRTMIN + 1, "signal of the far timer made near");
	CHECK(si.si_value.sival_ptr == (void *)0x1001 && si.si_timerid == far, "its value %p, timer %d", si.si_value.sival_ptr, si.si_timerid);
	/* a new timer gets an id of its own */
	int fresh = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	CHECK(fresh > once, "id of a new timer: %d, last one was %d", fresh, once);
	fx_touch("end", "");
	pthread_join(t, NULL);
	fx_finish();
}
