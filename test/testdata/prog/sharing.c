/*
 * Who shares what: threads that have unshared descriptors, directories or credentials, and processes made by clone(2)
 * with nearly every flag, by several threads, as siblings, with other exit signals, over a process that has unshared
 * since. kcmp(2) says for every two tasks what they share, before and after; numbers, directories and descriptors are
 * looked at by those who have them.
 */
#include "fixture.h"

enum { KVM = 1, KFILES, KFS, KSIGHAND, KIO, KSYSVSEM, KTYPES };

#define MAXTASKS 24
#define STACK (64 << 10)

static struct board {
	int go;
	int n;                  /* tasks that have come up */
	pid_t tid[MAXTASKS];    /* by role */
	pid_t ppid[MAXTASKS];
	int bad[MAXTASKS];      /* what a task has found wrong: the number of the check */
	int made;               /* by P3: its own child is there */
} *board; /* shared by all, whatever else they share */

static char stacks[MAXTASKS][STACK] __attribute__((aligned(64)));

static void futex_wait(int *w, int v) { syscall(SYS_futex, w, 0, v, NULL, NULL, 0); }
static void futex_wake(int *w) { syscall(SYS_futex, w, 1, INT_MAX, NULL, NULL, 0); }

static void up(int role)
{
	syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 4); /* so that there is an I/O context */
	board->tid[role] = syscall(SYS_gettid);
	board->ppid[role] = syscall(SYS_getppid);
	__atomic_fetch_add(&board->n, 1, __ATOMIC_SEQ_CST);
	futex_wake(&board->n);
}

static void await(int *w, int v)
{
	int have;
	while ((have = __atomic_load_n(w, __ATOMIC_SEQ_CST)) < v)
		futex_wait(w, have);
}

static void wait_go(void) { await(&board->go, 1); }

/* nothing here uses what belongs to a thread of glibc: with CLONE_VM alone that is the creator's */
static int sit(void *arg)
{
	int role = (long)arg;
	up(role);
	wait_go();
	if (syscall(SYS_gettid) != board->tid[role])
		board->bad[role] = 1;
	if (syscall(SYS_getppid) != board->ppid[role])
		board->bad[role] = 2;
	syscall(SYS_exit_group, 40 + role);
	return 0;
}

static int carrier(void *arg);

static pid_t make(int role, int flags, int (*fn)(void *))
{
	return MUST(clone(fn, stacks[role] + STACK, flags, (void *)(long)role));
}

/* shares descriptors with the root while it makes its child, and no more after that */
static int carrier(void *arg)
{
	if (clone(sit, stacks[14] + STACK, CLONE_FILES | CLONE_FS | CLONE_IO | SIGCHLD, (void *)14L) < 0)
		board->bad[(long)arg] = 3;
	if (syscall(SYS_unshare, CLONE_FILES))
		board->bad[(long)arg] = 4;
	up((long)arg);
	wait_go();
	int st;
	if (syscall(SYS_wait4, board->tid[14], &st, 0, NULL) != board->tid[14] || st != (40 + 14) << 8)
		board->bad[(long)arg] = 5;
	syscall(SYS_exit_group, 40 + (long)arg);
	return 0;
}

/* siblings of itself */
static int brother(void *arg)
{
	if (clone(sit, stacks[17] + STACK, CLONE_PARENT | CLONE_VM | CLONE_FS, (void *)17L) < 0)
		board->bad[(long)arg] = 3;
	return sit(arg);
}

static void reap(int role, int flags)
{
	int st = 0;
	pid_t pid = board->tid[role], got = syscall(SYS_wait4, pid, &st, flags, NULL);
	CHECK(got == pid && st == (40 + role) << 8, "child %d: wait4 gave %d, %s, status 0x%x", role, (int)got, strerror(errno), st);
	CHECK_EQ(board->bad[role], 0, "what a child has found");
}

static int has_fd(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static char where[PATH_MAX];

static void *plain(void *arg) /* role 1 */
{
	make(15, CLONE_FS | CLONE_IO | CLONE_SYSVSEM | SIGUSR1, sit); /* another exit signal */
	await(&board->n, 1);
	up(1);
	wait_go();
	CHECK(has_fd(100) && !has_fd(101), "a plain thread's descriptors");
	reap(15, __WNOTHREAD | __WALL);
	return arg;
}

static void *with_mate(void *arg) /* role 3: shares the table of role 2 */
{
	up(3);
	wait_go();
	CHECK(has_fd(101) && !has_fd(100), "descriptors of a thread that shares another thread's table");
	return arg;
}

static void *own_files(void *arg) /* role 2 */
{
	pthread_t t;
	MUST(unshare(CLONE_FILES));
	MUST(dup2(0, 101));
	close(100);
	pthread_create(&t, NULL, with_mate, NULL);
	make(16, CLONE_VM | CLONE_FILES | SIGCHLD, sit);
	up(2);
	wait_go();
	CHECK(has_fd(101) && !has_fd(100), "own descriptors");
	MUST(dup2(0, 102));
	reap(16, __WNOTHREAD);
	pthread_join(t, NULL);
	return arg;
}

static void *own_fs(void *arg) /* role 4 */
{
	char now[PATH_MAX];
	MUST(unshare(CLONE_FS));
	MUST(chdir("/usr"));
	umask(031);
	up(4);
	wait_go();
	CHECK(getcwd(now, sizeof now) && !strcmp(now, "/usr"), "own directory: %s", now);
	CHECK_EQ(umask(0), 031, "own umask");
	return arg;
}

static void *own_creds(void *arg) /* role 5 */
{
	MUST(syscall(SYS_setresgid, -1, 77, -1));
	MUST(syscall(SYS_setresuid, -1, 78, 78));
	up(5);
	wait_go();
	uid_t r, e, s;
	MUST(syscall(SYS_getresuid, &r, &e, &s));
	CHECK(r == 0 && e == 78 && s == 78, "own users: %d %d %d", r, e, s);
	CHECK_EQ(syscall(SYS_getegid), 77, "own group");
	return arg;
}

static int compare(int a, int b, int type) { return syscall(SYS_kcmp, board->tid[a], board->tid[b], type, 0, 0); }

static int exit_signal(pid_t pid)
{
	char path[64], buf[1024];
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC), n = fd < 0 ? -1 : read(fd, buf, sizeof buf - 1), field = 2;
	close(fd);
	if (n <= 0)
		return -1;
	buf[n] = 0;
	for (char *p = strrchr(buf, ')'); p && *p; p++)
		if (*p == ' ' && ++field == 38)
			return atoi(p + 1);
	return -1;
}

static const int roles[] = { 0, 1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20 };
#define NROLES (int)(sizeof roles / sizeof *roles)

static void nothing(int sig) { (void)sig; }

int main(int argc, char **argv)
{
	static int same[NROLES][NROLES][KTYPES], sig[NROLES];
	pthread_t t[4];
	char now[PATH_MAX];
	fx_init(argc, argv);
	board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(dup2(0, 100));
	MUST(getcwd(where, sizeof where) ? 0 : -1);
	umask(022);
	signal(SIGUSR1, nothing);
	signal(SIGUSR2, nothing);
	up(0);
	pthread_create(&t[0], NULL, plain, NULL);
	pthread_create(&t[1], NULL, own_files, NULL);
	pthread_create(&t[2], NULL, own_fs, NULL);
	pthread_create(&t[3], NULL, own_creds, NULL);
	make(11, CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND | CLONE_IO | CLONE_SYSVSEM | SIGCHLD, sit);
	make(12, CLONE_VM | SIGCHLD, sit);
	make(13, CLONE_FILES | SIGCHLD, carrier); /* and 14 below it */
	make(18, CLONE_VM | CLONE_SIGHAND | CLONE_FS | SIGCHLD, brother); /* and 17 beside it */
	make(19, 0, sit); /* no exit signal */
	make(20, CLONE_VM | CLONE_FILES | CLONE_IO | SIGUSR2, sit);
	await(&board->n, NROLES);
	for (int i = 0; i < NROLES; i++) {
		sig[i] = exit_signal(board->tid[roles[i]]);
		for (int j = 0; j < NROLES; j++)
			for (int k = KVM; k < KTYPES; k++)
				same[i][j][k] = compare(roles[i], roles[j], k) == 0;
	}
	fx_ready();
	fx_wait_check();
	for (int i = 1; i < NROLES; i++)
		CHECK_EQ(exit_signal(board->tid[roles[i]]), sig[i], "exit signal");
	for (int i = 0; i < NROLES; i++)
		for (int j = 0; j < i; j++)
			for (int k = KVM; k < KTYPES; k++) {
				int is = compare(roles[i], roles[j], k) == 0;
				if (k == KSYSVSEM && !same[i][j][k])
					continue; /* two that have none count as sharing it */
				CHECK(is == same[i][j][k], "roles %d and %d, kcmp type %d: same %d, was %d", roles[i], roles[j], k, is, same[i][j][k]);
			}
	CHECK(getcwd(now, sizeof now) && !strcmp(now, where), "directory: %s, was %s", now, where);
	CHECK_EQ(umask(022), 022, "umask");
	CHECK(has_fd(100) && !has_fd(101) && !has_fd(102), "the root's descriptors");
	__atomic_store_n(&board->go, 1, __ATOMIC_SEQ_CST);
	futex_wake(&board->go);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	CHECK(!has_fd(102), "a descriptor that another table has got");
	int mine[] = { 11, 12, 13, 17, 18, 19, 20 };
	for (int i = 0; i < 7; i++)
		reap(mine[i], __WALL);
	CHECK_EQ(board->bad[14], 0, "what the grandchild has found");
	fx_finish();
}
