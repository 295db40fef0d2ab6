/*
 * Children that send other signals than SIGCHLD at their end, or none: zombies whose signal has been taken, one whose
 * signal is still pending, and live ones. No signal comes twice, none is lost, and wait(2) needs __WCLONE for them.
 */
#include "fixture.h"

static volatile int got[70];

static void count(int sig) { got[sig]++; }

static pid_t spawn(int sig, int status)
{
	pid_t pid = MUST(syscall(SYS_clone, sig, NULL, NULL, NULL, NULL));
	if (pid)
		return pid;
	if (status >= 0)
		_exit(status);
	fx_up();
	fx_wait_check();
	while (!fx_exists("end"))
		fx_pause_ms(5);
	_exit(0);
}

static void await(volatile int *n, int want)
{
	for (int i = 0; i < 4000 && *n < want; i++)
		fx_pause_ms(5);
	fx_pause_ms(20);
	CHECK_EQ(*n, want, "signals that came");
}

int main(int argc, char **argv)
{
	int sigs[] = { SIGUSR1, SIGUSR2, SIGRTMIN + 3, SIGCHLD, 0 }, st;
	pid_t dead[5], live[5];
	sigset_t one, pending;
	fx_init(argc, argv);
	for (int i = 0; i < 3; i++) /* SIGCHLD comes for stops too, where a freezer stops children by signals */
		signal(sigs[i], count);
	for (int i = 0; i < 5; i++) {
		dead[i] = spawn(sigs[i], i + 1);
		fx_await_state(dead[i], 'Z');
		live[i] = spawn(sigs[i], -1);
	}
	fx_await_up(5);
	for (int i = 0; i < 3; i++)
		await(&got[sigs[i]], 1);
	/* blocked, and sent by one more */
	sigemptyset(&one);
	sigaddset(&one, SIGHUP);
	MUST(sigprocmask(SIG_BLOCK, &one, NULL));
	signal(SIGHUP, count);
	pid_t last = spawn(SIGHUP, 9);
	fx_await_state(last, 'Z');
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < 3; i++)
		CHECK_EQ(got[sigs[i]], 1, "signals of the zombies");
	MUST(sigpending(&pending));
	CHECK(sigismember(&pending, SIGHUP), "the pending exit signal is gone");
	MUST(sigprocmask(SIG_UNBLOCK, &one, NULL));
	CHECK_EQ(got[SIGHUP], 1, "pending exit signals");
	fx_touch("end", "");
	for (int i = 0; i < 3; i++)
		await(&got[sigs[i]], 2);
	for (int i = 0; i < 5; i++) {
		int flags = sigs[i] == SIGCHLD ? 0 : __WCLONE;
		CHECK(waitpid(dead[i], &st, flags) == dead[i] && st == (i + 1) << 8, "zombie %d: status 0x%x", i, st);
		CHECK(waitpid(live[i], &st, flags) == live[i] && st == 0, "child %d: status 0x%x", i, st);
	}
	CHECK(waitpid(last, &st, __WCLONE) == last && st == 9 << 8, "the last zombie: status 0x%x", st);
	fx_finish();
}
