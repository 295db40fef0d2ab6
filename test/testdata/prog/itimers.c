/*
 * The three interval timers: armed far ahead they keep value and interval (real: what was left when the dump came, so the time away does not
 * count, or, for one that goes on, does: the value may only shrink); short periodic ones go on ticking, and in each process its own.
 */
#include "fixture.h"

static volatile int ticks[65];

static void tick(int sig) { ticks[sig]++; }

static int64_t us(struct timeval t) { return t.tv_sec * 1000000ll + t.tv_usec; }

static void spin_until(int sig, int n)
{
	/* virtual and profiling time pass only while we compute */
	volatile uint64_t x = 0;
	for (int64_t end = fx_now(CLOCK_PROCESS_CPUTIME_ID) + 5000000000ll; ticks[sig] < n && fx_now(CLOCK_PROCESS_CPUTIME_ID) < end;)
		for (int i = 0; i < 100000; i++)
			x += i;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int which[] = { ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF }, sig[] = { SIGALRM, SIGVTALRM, SIGPROF };
	struct sigaction sa = { .sa_handler = tick, .sa_flags = SA_RESTART };
	for (int i = 0; i < 3; i++)
		MUST(sigaction(sig[i], &sa, NULL));
	pid_t kid = MUST(fork());
	if (!kid) { /* periodic ones that fire all the time */
		struct itimerval it = { { 0, 5000 }, { 0, 5000 } };
		for (int i = 0; i < 3; i++)
			MUST(setitimer(which[i], &it, NULL));
		for (int i = 0; i < 3; i++)
			spin_until(sig[i], 2);
		fx_up();
		volatile uint64_t x = 0;
		for (int n = 0; !fx_exists("check"); n++)
			for (int i = 0; i < 100000; i++)
				x += i;
		for (int i = 0; i < 3; i++)
			ticks[sig[i]] = 0;
		for (int i = 0; i < 3; i++) {
			spin_until(sig[i], 3);
			CHECK(ticks[sig[i]] >= 3, "periodic timer %d does not tick any more: %d", i, ticks[sig[i]]);
		}
		for (int i = 0; i < 3; i++) {
			MUST(getitimer(which[i], &it));
			CHECK(us(it.it_interval) >= 5000 && us(it.it_interval) <= 9000, "interval of timer %d: %lld us", i, (long long)us(it.it_interval));
		}
		_exit(0);
	}
	struct itimerval set[3] = { { { 7, 250000 }, { 1000, 500000 } }, { { 0, 0 }, { 2000, 0 } }, { { 3, 0 }, { 3000, 123456 } } }, now;
	for (int i = 0; i < 3; i++)
		MUST(setitimer(which[i], &set[i], NULL));
	fx_await_up(1);
	int64_t last[3];
	fx_ready();
	for (;;) { /* note what was left while waiting, so that a jump is seen */
		for (int i = 0; i < 3; i++) {
			MUST(getitimer(which[i], &now));
			last[i] = us(now.it_value);
		}
		if (fx_exists("check"))
			break;
		fx_pause_ms(10);
	}
	for (int i = 0; i < 3; i++) {
		MUST(getitimer(which[i], &now));
		CHECK(us(now.it_value) <= last[i] && us(now.it_value) > us(set[i].it_value) - 120000000, "timer %d: %lld us left, %lld when last seen, %lld set",
			i, (long long)us(now.it_value), (long long)last[i], (long long)us(set[i].it_value));
		CHECK(us(now.it_interval) >= us(set[i].it_interval) && us(now.it_interval) <= us(set[i].it_interval) + 8000, "interval of timer %d: %lld us", i, (long long)us(now.it_interval));
		CHECK_EQ(ticks[sig[i]], 0, "ticks of a timer that is far ahead");
	}
	fx_reap_ok(kid);
	fx_finish();
}
