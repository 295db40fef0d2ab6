/*
 * Random histories of clone(2), unshare(2) and exit, by processes and threads, from the seeds given as arguments: what
 * every two of the tasks that are left share (kcmp(2)), and whose children they are, is the same afterwards. What cannot be
 * made again is refused, by some other seeds than the one that the tests give.
 */
#include "fixture.h"

enum { KVM = 1, KFILES, KFS, KSIGHAND, KIO, KTYPES };

#define MAX 40
#define STACK (16 << 10)

struct task {
	int parent;  /* whose clone made it; -1: the root */
	int flags;   /* of that clone */
	int unshare; /* and what it has unshared after its own clones */
	pid_t tid, ppid;
};

static struct board {
	int go, n, up, bad[MAX];
	struct task t[MAX];
} *board;

static char *stacks;
static uint64_t seed;

static unsigned rnd(unsigned n)
{
	return (seed = fx_mix(seed)) % n;
}

static void futex_wait(int *w, int v) { syscall(SYS_futex, w, 0, v, NULL, NULL, 0); }
static void futex_wake(int *w) { syscall(SYS_futex, w, 1, INT_MAX, NULL, NULL, 0); }

static void await(int *w, int v)
{
	int have;
	while ((have = __atomic_load_n(w, __ATOMIC_SEQ_CST)) < v)
		futex_wait(w, have);
}

/* nothing of glibc that belongs to a thread: it is the creator's */
static int live(void *arg)
{
	int me = (long)arg;
	struct task *t = &board->t[me];
	syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 4);
	for (int i = me + 1; i < board->n; i++)
		if (board->t[i].parent == me && clone(live, stacks + (i + 1) * STACK, board->t[i].flags, (void *)(long)i) < 0)
			board->bad[me] = 1;
	if (t->unshare && syscall(SYS_unshare, t->unshare))
		board->bad[me] = 2;
	t->tid = syscall(SYS_gettid);
	t->ppid = syscall(SYS_getppid);
	__atomic_fetch_add(&board->up, 1, __ATOMIC_SEQ_CST);
	futex_wake(&board->up);
	if (me == 0)
		return 0;
	await(&board->go, 1);
	if (syscall(SYS_gettid) != t->tid)
		board->bad[me] = 3;
	if (syscall(SYS_getpid) != board->t[0].tid && syscall(SYS_getppid) != t->ppid)
		board->bad[me] = 4;
	__atomic_fetch_add(&board->up, -1, __ATOMIC_SEQ_CST);
	futex_wake(&board->up);
	await(&board->go, 2);
	if (t->flags & CLONE_THREAD)
		syscall(SYS_exit, 0);
	syscall(SYS_exit_group, 0);
	return 0;
}

static void plan(void)
{
	board->n = 6 + rnd(14);
	board->t[0].parent = -1;
	for (int i = 1; i < board->n; i++) {
		struct task *t = &board->t[i];
		t->parent = rnd(i);
		t->flags = SIGCHLD;
		if (rnd(2))
			t->flags |= CLONE_FILES;
		if (rnd(2))
			t->flags |= CLONE_FS;
		if (rnd(3) == 0)
			t->flags |= CLONE_IO;
		if (rnd(2))
			t->flags |= CLONE_SYSVSEM;
		switch (rnd(5)) {
		case 0:
		case 1:
			t->flags = (t->flags & ~SIGCHLD) | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM;
			break;
		case 2:
			t->flags |= CLONE_VM | (rnd(2) ? CLONE_SIGHAND : 0);
			break;
		}
		if (rnd(4) == 0)
			t->unshare = rnd(2) ? CLONE_FILES : CLONE_FS;
	}
}

static int compare(int a, int b, int type)
{
	return syscall(SYS_kcmp, board->t[a].tid, board->t[b].tid, type, 0, 0) == 0;
}

int main(int argc, char **argv)
{
	static char same[MAX][MAX][KTYPES];
	fx_init(argc, argv);
	seed = fx_argc ? strtoull(fx_argv[0], NULL, 0) : (uint64_t)fx_now(CLOCK_REALTIME);
	board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stacks = mmap(NULL, (MAX + 1) * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t first = seed;
	plan();
	live(0);
	await(&board->up, board->n);
	for (int i = 0; i < board->n; i++)
		for (int j = 0; j < i; j++)
			for (int k = KVM; k < KTYPES; k++)
				same[i][j][k] = compare(i, j, k);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < board->n; i++)
		for (int j = 0; j < i; j++)
			for (int k = KVM; k < KTYPES; k++)
				CHECK(compare(i, j, k) == same[i][j][k], "seed %#" PRIx64 ": tasks %d and %d, kcmp type %d: shared before: %d", first, i, j, k, same[i][j][k]);
	__atomic_store_n(&board->go, 1, __ATOMIC_SEQ_CST);
	futex_wake(&board->go);
	for (int have; (have = __atomic_load_n(&board->up, __ATOMIC_SEQ_CST)) > 1;)
		futex_wait(&board->up, have);
	__atomic_store_n(&board->go, 2, __ATOMIC_SEQ_CST);
	futex_wake(&board->go);
	for (int i = 0; i < board->n; i++)
		CHECK(!board->bad[i], "seed %#" PRIx64 ": task %d: check %d", first, i, board->bad[i]);
	fx_finish();
}
