/*
 * Everything that prctl(2) and arch_prctl(2) can set and another call reads back, each in a process of its own, and what belongs to a thread in
 * one thread alone. fx_wait_check compares what they see (getters.h). What a machine does not have, or does not allow, is left alone.
 */
#include "fixture.h"
#include <linux/capability.h>

static struct { const char *name; long op, a, b, c, arch; } sets[] = {
	{ "signal at the parent's death", PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0 },
	{ "not dumpable", PR_SET_DUMPABLE, 0, 0, 0, 0 },
	{ "capabilities kept", PR_SET_KEEPCAPS, 1, 0, 0, 0 },
	{ "time-stamp counter", PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0 },
	{ "secure bits", PR_SET_SECUREBITS, 0xc5, 0, 0, 0 },
	{ "timer slack", PR_SET_TIMERSLACK, 123456, 0, 0, 0 },
	{ "memory errors early", PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0 },
	{ "memory errors late", PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0 },
	{ "subreaper", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0 },
	{ "no new privileges", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0 },
	{ "no huge pages", PR_SET_THP_DISABLE, 1, 0, 0, 0 },
	{ "I/O flusher", 57 /* PR_SET_IO_FLUSHER */, 1, 0, 0, 0 },
	{ "no writable code", 65 /* PR_SET_MDWE */, 1, 0, 0, 0 },
	{ "no writable code, children may", 65, 3, 0, 0, 0 },
	{ "merging of pages", 67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0 },
	{ "bounding set", PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0 },
	{ "names of timers", 77 /* PR_TIMER_CREATE_RESTORE_IDS */, 1, 0, 0, 0 },
	{ "a slot for each futex", 78 /* PR_FUTEX_HASH */, 1, 16, 0, 0 },
	{ "CPUID", 0x1012 /* ARCH_SET_CPUID */, 0, 0, 0, 1 },
};
enum { N = sizeof sets / sizeof *sets };

static long set(int i)
{
#ifdef __x86_64__
	if (sets[i].arch)
		return syscall(SYS_arch_prctl, sets[i].op, sets[i].a);
#endif
	return sets[i].arch ? -1 : prctl(sets[i].op, sets[i].a, sets[i].b, sets[i].c, 0);
}

/* what belongs to a thread, in one that is not the first */
static void *apart(void *arg)
{
	MUST(prctl(PR_SET_TIMERSLACK, 777777));
	MUST(prctl(PR_SET_NAME, "apart"));
	MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
	MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	MUST(prctl(PR_SET_KEEPCAPS, 1));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	fx_up();
	fx_wait_check();
	return arg;
}

int main(int argc, char **argv)
{
	pid_t kid[N], threads;
	pthread_t t;
	fx_init(argc, argv);
	uint64_t before[FX_GETTERS], after[FX_GETTERS];
	for (int i = 0; i < N; i++) {
		kid[i] = MUST(fork());
		if (kid[i])
			continue;
		fx_get_all(before);
		if (set(i) >= 0) {
			fx_get_all(after);
			CHECK(memcmp(before, after, sizeof before), "set-up: nothing shows of: %s", sets[i].name);
		}
		fx_up();
		fx_wait_check();
		_exit(0);
	}
	threads = MUST(fork());
	if (!threads) {
		pthread_create(&t, NULL, apart, NULL);
		pthread_join(t, NULL);
		_exit(0);
	}
	fx_await_up(N + 1);
	fx_ready();
	fx_wait_check();
	fx_reap_ok(threads);
	for (int i = 0; i < N; i++)
		fx_reap_ok(kid[i]);
	fx_finish();
}
