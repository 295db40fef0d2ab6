/* A parent that waits in vfork(2) for a child that takes its time: it is kept, or refused quickly and by name. */
#include "fixture.h"

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	volatile int *seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t root = getpid(), kid = MUST(vfork());
	if (!kid) {
		/* raw calls only: the memory and the stack are the parent's */
		fx_ready();
		fx_wait_check();
		*seen = getppid();
		_exit(0);
	}
	CHECK_EQ(*seen, root, "parent of the child");
	fx_reap_ok(kid);
	fx_finish();
}
