/*
 * A tree of processes: pids, parents, process groups, sessions, and who is whose child, over three generations.
 * A group whose leader is not the first made, a child in the old session made before setsid, a session in the
 * middle of the tree, and (as init of a pid namespace, or as a subreaper's child) orphans that were given to the root.
 */
#include "fixture.h"

struct ids { pid_t pid, ppid, pgid, sid, tid; };

static struct ids now(void)
{
	return (struct ids){ getpid(), getppid(), getpgid(0), getsid(0), syscall(SYS_gettid) };
}

static void stay(void)
{
	struct ids before = now();
	fx_up();
	fx_wait_check();
	struct ids after = now();
	CHECK_EQ(after.pid, before.pid, "pid");
	CHECK_EQ(after.tid, before.tid, "tid");
	CHECK_EQ(after.ppid, before.ppid, "ppid");
	CHECK_EQ(after.pgid, before.pgid, "pgid");
	CHECK_EQ(after.sid, before.sid, "sid");
}

static pid_t spawn(int pgid, int newsession, int grandchildren)
{
	pid_t pid = MUST(fork());
	if (pid)
		return pid;
	pid_t early = 0, kids[4];
	if (newsession) {
		early = MUST(fork()); /* stays in the session that its parent leaves */
		if (!early) {
			for (int i = 0; i < 2000 && getsid(getppid()) != getppid(); i++)
				fx_pause_ms(5);
			CHECK(getsid(0) != getppid(), "the early child is in the new session");
			stay();
			_exit(0);
		}
		MUST(setsid());
	} else if (pgid >= 0)
		MUST(setpgid(0, pgid));
	for (int i = 0; i < grandchildren; i++) {
		kids[i] = MUST(fork());
		if (!kids[i]) {
			if (i == 1)
				MUST(setpgid(0, 0));
			stay();
			_exit(0);
		}
	}
	stay();
	for (int i = 0; i < grandchildren; i++)
		fx_reap_ok(kids[i]);
	if (early)
		fx_reap_ok(early);
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pid_t kid[6];
	int n = 0, up = 0;
	kid[n++] = spawn(-1, 0, 0), up += 1;           /* in the root's own group */
	kid[n++] = spawn(0, 0, 3), up += 4;            /* leads a group; one of its children leads another */
	fx_await_up(up);
	kid[n++] = spawn(kid[1], 0, 0), up += 1;       /* joins its sibling's group */
	kid[n++] = spawn(-1, 1, 2), up += 4;           /* leads a session, with a child left in the old one */
	kid[n++] = spawn(-1, 0, 1), up += 2;
	fx_await_up(up);
	fx_ready();
	struct ids before = now();
	fx_wait_check();
	struct ids after = now();
	CHECK_EQ(after.pid, before.pid, "root's pid");
	CHECK_EQ(after.pgid, before.pgid, "root's pgid");
	CHECK_EQ(after.sid, before.sid, "root's sid");
	for (int i = 0; i < n; i++)
		fx_reap_ok(kid[i]);
	CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "a child too many");
	fx_finish();
}
