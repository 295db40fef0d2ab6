/*
 * Alternate signal stacks, a different one in each thread, one with SS_AUTODISARM, one disabled: sigaltstack says the same
 * as before and handlers run on them. One thread sits in a handler on its alternate stack while the dump happens, inside
 * a second signal's handler, and both return to where they came from.
 */
#include "fixture.h"

#define SS_AUTODISARM_ (1u << 31)
static char stack[3][65536] __attribute__((aligned(64)));
static volatile int inside, leave;
static __thread volatile uintptr_t where;

static void note(int sig) { char here; (void)sig; where = (uintptr_t)&here; }

static void dwell(int sig)
{
	char here;
	where = (uintptr_t)&here;
	if (sig == SIGUSR2)
		raise(SIGHUP);
	inside++;
	while (!leave)
		fx_pause_ms(2);
}

static int on(int i) { return where >= (uintptr_t)stack[i] && where < (uintptr_t)stack[i] + sizeof stack[i]; }

static void *autodisarm(void *arg)
{
	(void)arg;
	stack_t ss = { .ss_sp = stack[1], .ss_size = sizeof stack[1], .ss_flags = (int)SS_AUTODISARM_ }, now;
	MUST(sigaltstack(&ss, NULL));
	fx_up();
	fx_wait_check();
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == stack[1] && now.ss_size == sizeof stack[1] && now.ss_flags == (int)SS_AUTODISARM_, "altstack %p %zu flags %x", now.ss_sp, now.ss_size, now.ss_flags);
	pthread_kill(pthread_self(), SIGUSR1);
	CHECK(on(1), "the handler ran at %lx, not on the thread's alternate stack", where);
	return NULL;
}

static void *dweller(void *arg)
{
	(void)arg;
	stack_t ss = { .ss_sp = stack[2], .ss_size = sizeof stack[2] }, now;
	uint64_t local = 0x1234567812345678ull;
	MUST(sigaltstack(&ss, NULL));
	pthread_kill(pthread_self(), SIGUSR2); /* returns only after the check */
	CHECK(on(2), "the handler ran at %lx, not on the thread's alternate stack", where);
	CHECK_EQ(local, 0x1234567812345678ull, "local variable below the handlers");
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == stack[2] && now.ss_flags == 0, "altstack after the handler %p flags %x", now.ss_sp, now.ss_flags);
	return NULL;
}

static void *plain(void *arg)
{
	(void)arg;
	fx_up();
	fx_wait_check();
	stack_t now;
	MUST(sigaltstack(NULL, &now));
	CHECK_EQ(now.ss_flags, SS_DISABLE, "flags of a thread without an alternate stack");
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct sigaction sa = { .sa_handler = note, .sa_flags = SA_ONSTACK };
	MUST(sigaction(SIGUSR1, &sa, NULL));
	sa.sa_handler = dwell;
	MUST(sigaction(SIGUSR2, &sa, NULL));
	MUST(sigaction(SIGHUP, &sa, NULL));
	stack_t ss = { .ss_sp = stack[0], .ss_size = sizeof stack[0] }, now;
	MUST(sigaltstack(&ss, NULL));
	pthread_t t[3];
	pthread_create(&t[0], NULL, autodisarm, NULL);
	pthread_create(&t[1], NULL, dweller, NULL);
	pthread_create(&t[2], NULL, plain, NULL);
	fx_await_up(2);
	while (inside < 1)
		fx_pause_ms(1);
	fx_ready();
	fx_wait_check();
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == stack[0] && now.ss_size == sizeof stack[0] && now.ss_flags == 0, "altstack %p %zu flags %x", now.ss_sp, now.ss_size, now.ss_flags);
	pthread_kill(pthread_self(), SIGUSR1);
	CHECK(on(0), "the handler ran at %lx, not on the alternate stack", where);
	leave = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	CHECK_EQ(inside, 2, "handlers entered");
	fx_finish();
}
