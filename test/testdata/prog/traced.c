/* A program that a debugger has: a process of its own, outside of the tree, attaches to it and stays. */
#include "fixture.h"
#include <sys/ptrace.h>

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pid_t root = getpid(), mid = MUST(fork());
	if (!mid) {
		pid_t tracer = MUST(fork());
		if (tracer)
			_exit(0); /* it becomes somebody else's child */
		prctl(PR_SET_NAME, "debugger");
		MUST(ptrace(PTRACE_SEIZE, root, NULL, 0));
		fx_up();
		while (!fx_exists("check") && !kill(root, 0))
			fx_pause_ms(10);
		ptrace(PTRACE_INTERRUPT, root, NULL, 0);
		int st;
		MUST(waitpid(root, &st, __WALL));
		ptrace(PTRACE_DETACH, root, NULL, 0);
		fx_touch("detached", "");
		_exit(0);
	}
	fx_reap_ok(mid);
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	while (!fx_exists("detached"))
		fx_pause_ms(10);
	fx_finish();
}
