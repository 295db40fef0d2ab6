/* A thread that waits in vfork(2) while others of its process go on, without the privilege to choose the number of its child. */
#include "fixture.h"
#include <linux/capability.h>

static volatile int *seen;
static volatile pid_t waiter;

static void *other(void *arg)
{
	(void)arg;
	for (;;) {
		fx_pause_ms(5);
		seen[1]++;
	}
	return NULL;
}

static void *forker(void *arg)
{
	(void)arg;
	waiter = syscall(SYS_gettid);
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2];
	MUST(syscall(SYS_capget, &head, caps));
	caps[0].effective &= ~(1u << CAP_SYS_ADMIN);
	caps[1].effective &= ~(1u << (40 - 32)); /* CAP_CHECKPOINT_RESTORE */
	MUST(syscall(SYS_capset, &head, caps));
	pid_t kid = MUST(vfork());
	if (!kid) {
		fx_ready();
		fx_wait_check();
		seen[0] = getppid();
		_exit(0);
	}
	CHECK_EQ(seen[0], getpid(), "parent of the child");
	CHECK_EQ(syscall(SYS_gettid), waiter, "id of the thread that waited");
	fx_reap_ok(kid);
	int before = seen[1];
	while (seen[1] == before)
		fx_pause_ms(5);
	fx_finish();
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_t t;
	pthread_create(&t, NULL, other, NULL);
	pthread_create(&t, NULL, forker, NULL);
	for (;;)
		pause();
}
