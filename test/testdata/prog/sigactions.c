/* Signal actions: handler, flags, mask and restorer of every signal as set, and handlers that run afterwards as their flags say; two processes with different ones, and one shared by CLONE_SIGHAND (threads). */
#include "fixture.h"

struct kact { void *handler; unsigned long flags; void *restorer; uint64_t mask; };

static struct kact before[65];
static volatile int got, depth, maxdepth, code, value;

static void plain(int sig) { got = sig; }

static void nesting(int sig)
{
	if (++depth > maxdepth)
		maxdepth = depth;
	if (depth < 3)
		raise(sig);
	depth--;
}

static void info(int sig, siginfo_t *si, void *uc)
{
	(void)uc;
	got = sig;
	code = si->si_code;
	value = si->si_value.sival_int;
}

static void get(struct kact *a)
{
	for (int s = 1; s < 65; s++)
		if (syscall(SYS_rt_sigaction, s, NULL, &a[s], 8))
			FAIL("rt_sigaction(%d): %s", s, strerror(errno));
}

static void set_up(int other)
{
	for (int s = 1; s < 65; s++) {
		if (s == SIGKILL || s == SIGSTOP || s == 32 || s == 33)
			continue;
		struct sigaction sa = { 0 };
		switch ((s + other) % 6) {
		case 0: sa.sa_handler = SIG_IGN; break;
		case 1: sa.sa_handler = plain; sa.sa_flags = SA_RESTART; break;
		case 2: sa.sa_sigaction = info; sa.sa_flags = SA_SIGINFO; sigaddset(&sa.sa_mask, s % 30 + 1); sigaddset(&sa.sa_mask, 40 + s % 20); break;
		case 3: sa.sa_handler = nesting; sa.sa_flags = SA_NODEFER | SA_RESTART; break;
		case 4: sa.sa_handler = plain; sa.sa_flags = SA_RESETHAND; sigfillset(&sa.sa_mask); break;
		default: sa.sa_handler = SIG_DFL;
		}
		if (s == SIGCHLD)
			sa.sa_flags |= SA_NOCLDSTOP;
		MUST(sigaction(s, &sa, NULL));
	}
}

static void verify(void)
{
	struct kact after[65];
	memset(after, 0, sizeof after);
	get(after);
	for (int s = 1; s < 65; s++)
		if (memcmp(&before[s], &after[s], sizeof after[s]))
			FAIL("signal %d: handler %p flags %lx restorer %p mask %" PRIx64 ", want %p %lx %p %" PRIx64, s, after[s].handler, after[s].flags, after[s].restorer, after[s].mask,
				before[s].handler, before[s].flags, before[s].restorer, before[s].mask);
	for (int s = 1; s < 32; s++) {
		void *h = before[s].handler;
		if (h == (void *)SIG_DFL || s == SIGKILL || s == SIGSTOP)
			continue;
		got = maxdepth = 0;
		if (h == (void *)info) {
			union sigval v = { .sival_int = s * 1000 };
			MUST(sigqueue(getpid(), s, v));
			CHECK_EQ(value, s * 1000, "value with the signal");
			CHECK_EQ(code, SI_QUEUE, "code of the signal");
		} else
			raise(s);
		if (h == (void *)nesting)
			CHECK_EQ(maxdepth, 3, "nesting of an SA_NODEFER handler");
		else
			CHECK_EQ(got, h == (void *)SIG_IGN ? 0 : s, "signal that the handler saw");
		if (before[s].flags & SA_RESETHAND) {
			struct sigaction sa;
			sigaction(s, NULL, &sa);
			CHECK(sa.sa_handler == SIG_DFL, "SA_RESETHAND of %d did not reset", s);
		}
	}
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pid_t kid = MUST(fork());
	set_up(kid == 0);
	get(before);
	if (!kid) {
		fx_up();
		fx_wait_check();
		verify();
		_exit(0);
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	siginfo_t si;
	while (waitid(P_PID, kid, &si, WEXITED | WNOWAIT) && errno == EINTR)
		;
	struct sigaction dfl = { .sa_handler = SIG_DFL };
	struct sigaction old;
	verify();
	sigaction(SIGCHLD, &dfl, &old);
	fx_reap_ok(kid);
	fx_finish();
}
