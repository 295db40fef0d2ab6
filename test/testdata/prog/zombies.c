/* Children that have ended and were not waited for: by exit, by a signal, with a core flag, and with another exit signal. */
#include "fixture.h"

static int flag;

static void on_child(int sig) { (void)sig; flag++; }

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct rlimit none = { 0, 0 };
	MUST(setrlimit(RLIMIT_CORE, &none));
	struct { int code, sig; } how[] = { { 0, 0 }, { 7, 0 }, { 255, 0 }, { 0, SIGKILL }, { 0, SIGTERM }, { 0, SIGSEGV }, { 0, SIGRTMIN + 3 } };
	enum { N = sizeof how / sizeof *how };
	pid_t pid[N];
	for (int i = 0; i < N; i++) {
		pid[i] = MUST(fork());
		if (!pid[i]) {
			if (!how[i].sig)
				_exit(how[i].code);
			signal(how[i].sig, SIG_DFL);
			kill(getpid(), how[i].sig);
			for (;;)
				pause();
		}
	}
	/* a zombie in a group and a session of its own */
	pid_t lead = MUST(fork());
	if (!lead) {
		setsid();
		_exit(33);
	}
	for (int i = 0; i < N; i++)
		fx_await_state(pid[i], 'Z');
	fx_await_state(lead, 'Z');
	MUST(signal(SIGCHLD, on_child) == SIG_ERR ? -1 : 0);
	fx_ready();
	fx_wait_check();
	CHECK_EQ(flag, 0, "SIGCHLD came again for children that had ended long before");
	for (int i = 0; i < N; i++) {
		siginfo_t si = { 0 };
		CHECK(waitid(P_PID, pid[i], &si, WEXITED | WNOHANG | WNOWAIT) == 0 && si.si_pid == pid[i], "zombie %d cannot be seen: %s", i, strerror(errno));
		int st = 0;
		CHECK_EQ(waitpid(pid[i], &st, WNOHANG), pid[i], "waitpid of a zombie");
		if (how[i].sig)
			CHECK(WIFSIGNALED(st) && WTERMSIG(st) == how[i].sig, "zombie %d: status 0x%x, want signal %d", i, st, how[i].sig);
		else
			CHECK(WIFEXITED(st) && WEXITSTATUS(st) == how[i].code, "zombie %d: status 0x%x, want exit %d", i, st, how[i].code);
	}
	int st = 0;
	CHECK_EQ(getsid(lead), lead, "session of the zombie leader");
	CHECK_EQ(waitpid(lead, &st, WNOHANG), lead, "waitpid of the zombie session leader");
	CHECK_EQ(st, 33 << 8, "status of the zombie session leader");
	CHECK(wait(NULL) == -1 && errno == ECHILD, "a child too many");
	fx_finish();
}
