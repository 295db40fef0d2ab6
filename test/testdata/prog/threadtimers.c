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

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pthread_t t[2];
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, thread, NULL);
	fx_await_up(2);
	fx_ready();
	fx_wait_check();
	go = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	fx_finish();
}
