/*
 * Orphans that were given to the root because it asked for them (PR_SET_CHILD_SUBREAPER): a grandchild whose
 * parent is dead, alone; one that leads a session; a group whose leader is dead; a session whose leader is dead.
 */
#include "fixture.h"

static pid_t root;

static void orphan(int how)
{
	pid_t mid = MUST(fork());
	if (mid) {
		MUST(waitpid(mid, NULL, 0));
		return;
	}
	if (how == 2)
		MUST(setpgid(0, 0));
	if (how == 3)
		MUST(setsid());
	pid_t me = getpid();
	if (MUST(fork()))
		_exit(0);
	while (getppid() == me)
		fx_pause_ms(2);
	if (how == 1)
		MUST(setsid());
	pid_t pid = getpid(), pgid = getpgid(0), sid = getsid(0);
	CHECK_EQ(getppid(), root, "orphan's parent at the start");
	fx_up();
	fx_wait_check();
	CHECK_EQ(getpid(), pid, "orphan's pid");
	CHECK_EQ(getppid(), root, "orphan's parent");
	CHECK_EQ(getpgid(0), pgid, "orphan's group");
	CHECK_EQ(getsid(0), sid, "orphan's session");
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	root = getpid();
	for (int how = 0; how < 4; how++)
		orphan(how);
	fx_await_up(4);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < 4; i++) {
		int st;
		CHECK(wait(&st) > 0 && st == 0, "orphan %d: status 0x%x, %s", i, st, strerror(errno));
	}
	CHECK(wait(NULL) == -1 && errno == ECHILD, "a child too many");
	fx_finish();
}
