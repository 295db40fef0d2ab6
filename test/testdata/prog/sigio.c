/*
 * Who is told of input by a signal: F_SETOWN, F_SETOWN_EX, F_SETSIG, O_ASYNC; an owner that is a process, a thread, a group; one that another user has set; one that is dead; a pipe whose other
 * end is closed, of which no news may come.
 */
#include "fixture.h"

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

enum { PROCESS, THREAD, GROUP, CHILD, OTHER, DEAD, SILENT, HALF, MOVED, N };
static int p[N][2];
static volatile int got[N], thread_tid, thread_got, strange;

static void on_io(int sig, siginfo_t *si, void *u)
{
	(void)u;
	for (int i = 0; i < N; i++)
		if (si->si_fd == (i == MOVED ? p[i][0] + 100 : p[i][0]) && sig == SIGRTMIN + i) {
			got[i]++;
			if (i == THREAD && syscall(SYS_gettid) == thread_tid)
				thread_got++;
			return;
		}
	strange++;
}

static void *thread(void *arg)
{
	thread_tid = syscall(SYS_gettid);
	for (;;)
		pause();
	return arg;
}

struct owner { struct f_owner_ex ex; int own, sig, flags; uid_t uids[2]; };

static void see(int fd, struct owner *o)
{
	memset(o, 0, sizeof *o);
	fcntl(fd, F_GETOWN_EX, &o->ex);
	o->own = fcntl(fd, F_GETOWN);
	o->sig = fcntl(fd, F_GETSIG);
	o->flags = fcntl(fd, F_GETFL);
	if (fcntl(fd, F_GETOWNER_UIDS, o->uids))
		o->uids[0] = o->uids[1] = 0;
}

static void expect(int i, int n)
{
	for (int k = 0; k < 2000 && got[i] < n; k++)
		fx_pause_ms(5);
	CHECK_EQ(got[i], n, "signals of one pipe");
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct sigaction sa = { .sa_sigaction = on_io, .sa_flags = SA_SIGINFO | SA_RESTART };
	pthread_t th;
	MUST(setpgid(0, 0) < 0 && getpgrp() != getpid() ? -1 : 0);
	for (int i = 0; i < N; i++)
		sigaction(SIGRTMIN + i, &sa, NULL);
	sigaction(SIGIO, &sa, NULL);
	pthread_create(&th, NULL, thread, NULL);
	while (!thread_tid)
		fx_pause_ms(1);
	for (int i = 0; i < N; i++) {
		MUST(pipe2(p[i], O_CLOEXEC));
		MUST(fcntl(p[i][0], F_SETSIG, SIGRTMIN + i));
	}
	pid_t kid = MUST(fork());
	if (!kid) {
		close(p[HALF][1]);
		for (;;)
			pause();
	}
	pid_t dead = MUST(fork());
	if (!dead)
		_exit(0);
	MUST(fcntl(p[DEAD][0], F_SETOWN, dead));
	fx_reap_ok(dead);
	MUST(fcntl(p[PROCESS][0], F_SETOWN, getpid()));
	struct f_owner_ex ex = { F_OWNER_TID, thread_tid };
	MUST(fcntl(p[THREAD][0], F_SETOWN_EX, &ex));
	MUST(fcntl(p[GROUP][0], F_SETOWN, -getpgrp()));
	MUST(fcntl(p[CHILD][0], F_SETOWN, kid));
	/* another user says who: the kernel takes note; only this thread, and back again */
	MUST(syscall(SYS_setresuid, 7001, 7002, -1));
	MUST(fcntl(p[OTHER][0], F_SETOWN, getpid()));
	MUST(syscall(SYS_setresuid, 0, 0, -1));
	MUST(fcntl(p[SILENT][0], F_SETOWN, getpid()));
	MUST(fcntl(p[HALF][0], F_SETOWN, getpid()));
	MUST(fcntl(p[MOVED][0], F_SETOWN, getpid()));
	for (int i = 0; i < N; i++)
		if (i == MOVED) {
			MUST(dup2(p[i][0], p[i][0] + 100));
			MUST(fcntl(p[i][0] + 100, F_SETFL, O_ASYNC | O_NONBLOCK));
		} else if (i != SILENT)
			MUST(fcntl(p[i][0], F_SETFL, O_ASYNC));
	close(p[HALF][1]);
	expect(HALF, 1);
	struct owner was[N], is;
	for (int i = 0; i < N; i++)
		see(p[i][0], &was[i]);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < N; i++) {
		see(p[i][0], &is);
		CHECK(is.ex.type == was[i].ex.type && is.ex.pid == was[i].ex.pid && is.own == was[i].own, "owner of pipe %d: %d of type %d (%d), want %d of type %d (%d)", i, is.ex.pid, is.ex.type, is.own, was[i].ex.pid, was[i].ex.type, was[i].own);
		CHECK_EQ(is.sig, was[i].sig, "F_GETSIG");
		CHECK_EQ(is.flags, was[i].flags, "F_GETFL");
		CHECK(is.uids[0] == was[i].uids[0] && is.uids[1] == was[i].uids[1], "owner of pipe %d set by %d, %d, want %d, %d", i, is.uids[0], is.uids[1], was[i].uids[0], was[i].uids[1]);
	}
	for (int i = 0; i < N; i++)
		CHECK_EQ(got[i], i == HALF, "signals that came by themselves");
	for (int i = 0; i < N; i++)
		if (i != HALF)
			MUST(write(p[i][1], "x", 1));
	expect(PROCESS, 1);
	expect(THREAD, 1);
	expect(GROUP, 1);
	expect(MOVED, 1);
	CHECK_EQ(thread_got, 1, "signals that the thread got");
	CHECK_EQ(got[CHILD], 0, "the child's signals");
	CHECK_EQ(got[SILENT], 0, "signals of the silent pipe");
	CHECK_EQ(got[DEAD], 0, "signals of the pipe whose owner is dead");
	CHECK_EQ(got[OTHER], 0, "signals that another user has no right to send");
	CHECK_EQ(strange, 0, "signals of something else");
	kill(kid, SIGKILL);
	waitpid(kid, NULL, 0);
	fx_finish();
}
