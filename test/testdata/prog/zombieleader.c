/*
 * A leader that has ended while its threads live on, in the root and in a child: what it had made is another thread's
 * now, a zombie and a stopped child among it. The status of the process is that of the thread that ends last.
 */
#include "fixture.h"

static pid_t root, kid, own, dead, stopped;
static char name[16] = "gone-before";

static void leader_leaves(int status)
{
	MUST(prctl(PR_SET_NAME, name));
	syscall(SYS_exit, status);
}

static void *survivor(void *arg)
{
	fx_await_state(getpid(), 'Z');
	fx_up();
	fx_wait_check();
	CHECK_EQ(fx_state(getpid()), 'Z', "the child's leader");
	syscall(SYS_exit, 3);
	return arg;
}

static void *other(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void *work(void *arg)
{
	int st;
	char comm[32] = "";
	fx_await_state(root, 'Z');
	own = MUST(fork());
	if (!own) {
		fx_up();
		fx_wait_check();
		CHECK_EQ(getppid(), root, "parent of the thread's child");
		_exit(0);
	}
	fx_await_state(dead, 'Z');
	while (!fx_exists("waits")) /* else it may be stopped before it has said that it is up */
		fx_pause_ms(5);
	MUST(kill(stopped, SIGSTOP));
	fx_await_state(stopped, 'T');
	MUST(waitpid(stopped, &st, WUNTRACED));
	fx_await_up(3);
	pid_t me = syscall(SYS_gettid);
	fx_ready();
	fx_wait_check();
	CHECK_EQ(syscall(SYS_gettid), me, "thread id");
	CHECK_EQ(getpid(), root, "process id");
	CHECK_EQ(fx_state(root), 'Z', "the root's leader");
	CHECK_EQ(fx_state(me), 'R', "itself");
	snprintf(comm, sizeof comm, "%s", fx_status(root, "Name"));
	CHECK(!strcmp(comm, name), "name of the dead leader: %s", comm);
	fx_reap_ok(own);
	CHECK(waitpid(kid, &st, 0) == kid && st == 3 << 8, "child without its leader: status 0x%x", st);
	CHECK(waitpid(dead, &st, 0) == dead && st == 5 << 8, "zombie: status 0x%x", st);
	CHECK_EQ(waitpid(stopped, &st, WUNTRACED | WNOHANG), 0, "a stop that was waited for");
	MUST(kill(stopped, SIGCONT));
	fx_reap_ok(stopped);
	fx_finish();
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t t;
	fx_init(argc, argv);
	root = getpid();
	kid = MUST(fork());
	if (!kid) {
		pthread_create(&t, NULL, survivor, NULL);
		leader_leaves(9);
	}
	dead = MUST(fork());
	if (!dead)
		_exit(5);
	stopped = MUST(fork());
	if (!stopped) {
		fx_up();
		fx_touch("waits", "");
		fx_wait_check();
		_exit(0);
	}
	pthread_create(&t, NULL, work, NULL);
	pthread_create(&t, NULL, other, NULL);
	leader_leaves(11);
}
