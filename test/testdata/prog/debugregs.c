/* Hardware breakpoints that a debugger has set and left: writing to the watched word raises SIGTRAP, before and after. */
#include "fixture.h"
#include <sys/ptrace.h>
#include <sys/user.h>

static volatile long watched[4];
static volatile int hits, codes;

static void trapped(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	hits++;
	codes |= 1 << info->si_code;
}

#if defined(__x86_64__)
static void set(pid_t pid, int n, unsigned long v)
{
	if (ptrace(PTRACE_POKEUSER, pid, (void *)(offsetof(struct user, u_debugreg) + 8 * n), (void *)v))
		_exit(10 + n);
}

static void watch(void)
{
	pid_t me = getpid(), helper = MUST(fork());
	if (!helper) {
		int status;
		if (ptrace(PTRACE_SEIZE, me, NULL, NULL) || ptrace(PTRACE_INTERRUPT, me, NULL, NULL) || waitpid(me, &status, __WALL) != me)
			_exit(1);
		set(me, 0, (unsigned long)&watched[0]);
		set(me, 3, (unsigned long)&watched[2]);
		set(me, 7, 1 << 0 | 1 << 6 | 0xdul << 16 | 0xful << 28); /* 8 bytes: 10; len 8, write - and 4 bytes, read or write */
		ptrace(PTRACE_DETACH, me, NULL, NULL);
		_exit(0);
	}
	fx_reap_ok(helper);
}
#else
static void watch(void) {}
#endif

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) == -1 && errno != EINVAL ? -1 : 0);
	struct sigaction act = { .sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_RESTART };
	MUST(sigaction(SIGTRAP, &act, NULL));
	watch();
	watched[0] = 1;
	int works = hits; /* in some virtual machines they do not, and on other processors there is none */
	fx_ready();
	fx_wait_check();
	watched[1] = 1;
	CHECK_EQ(hits, works, "hits by a word that nobody watches");
	watched[0] = 2;
	CHECK_EQ(hits, 2 * works, "hits by the word");
	watched[2] = 3;
	CHECK_EQ(hits, 3 * works, "hits by the other word");
	CHECK_EQ(codes, works ? 1 << 4 : 0, "codes (TRAP_HWBKPT)");
	fx_finish();
}
