/* Timers on the CPU clock of one thread among several: each thread's own goes off by that thread's time. */
#include "fixture.h"

static volatile int go;

static void *thread(void *arg)
{
	timer_t id;
	struct sigevent ev = { .sigev_notify = SIGEV_NONE };
	struct itimerspec it = { .it_value.tv_sec = 700, .it_interval.tv_sec = 1 };
	(void)arg;
	if (timer_create(CLOCK_THREAD_CPUTIME_ID, &ev, &id) || timer_settime(id, 0, &it, NULL))
		FAIL("set-up: %s", strerror(errno));
	fx_up();
	while (!go)
		fx_pause_ms(5);
	struct itimerspec before = { 0 }, after = { 0 };
	if (timer_gettime(id, &before))
		FAIL("timer_gettime: %s", strerror(errno));
	CHECK(before.it_value.tv_sec > 600 && before.it_value.tv_sec <= 700 && before.it_interval.tv_sec == 1, "left: %ld s", (long)before.it_value.tv_sec);
	for (int64_t end = fx_now(CLOCK_THREAD_CPUTIME_ID) + 30000000; fx_now(CLOCK_THREAD_CPUTIME_ID) < end;)
		;
	timer_gettime(id, &after);
	int64_t used = (before.it_value.tv_sec - after.it_value.tv_sec) * 1000000000ll + before.it_value.tv_nsec - after.it_value.tv_nsec;
	CHECK(used >= 29000000, "the timer does not follow the thread's CPU clock: %lld ns in 30 ms", (long long)used);
	return NULL;
}

/* One of the main thread's on the clock of another, by name (pthread_getcpuclockid), that signals the main thread when that has used enough. */
static volatile sig_atomic_t fired;

static void on_alarm(int sig) { (void)sig; fired++; }

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pthread_t t[2];
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, thread, NULL);
	fx_await_up(2);
	clockid_t clock;
	timer_t named, quiet;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec it = { .it_value.tv_sec = 5000 };
	MUST(pthread_getcpuclockid(t[1], &clock) ? -1 : 0);
	signal(SIGUSR1, on_alarm);
	MUST(timer_create(clock, &ev, &named));
	MUST(timer_settime(named, 0, &it, NULL));
	MUST(timer_create(clock, &(struct sigevent){ .sigev_notify = SIGEV_NONE }, &quiet)); /* never armed */
	fx_ready();
	fx_wait_check();
	MUST(timer_gettime(named, &it));
	CHECK(it.it_value.tv_sec > 4900 && it.it_value.tv_sec < 5000, "the named timer has %ld s left", (long)it.it_value.tv_sec);
	MUST(timer_gettime(quiet, &it));
	CHECK(it.it_value.tv_sec == 0 && it.it_value.tv_nsec == 0, "a timer that was never armed has %ld.%09ld s", (long)it.it_value.tv_sec, it.it_value.tv_nsec);
	it = (struct itimerspec){ .it_value.tv_nsec = 10000000 }; /* less than the 30 ms that the thread uses now */
	MUST(timer_settime(named, 0, &it, NULL));
	go = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	CHECK(fired == 1, "the timer on the other thread's clock fired %d times", (int)fired);
	fx_finish();
}
