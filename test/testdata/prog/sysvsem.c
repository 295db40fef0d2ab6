/*
 * System V semaphores in an IPC namespace of its own: values, who changed each last, adjustments to undo (SEM_UNDO) of the extreme sizes, of a
 * process that ends while others live, of threads that share a list and of one that has its own, sets that nobody operated on, a
 * large set, a set of another user, and who waits for a value to rise or to become zero.
 */
#include "fixture.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static int make(key_t key, int n, int mode)
{
	return MUST(semget(key, n, IPC_CREAT | IPC_EXCL | mode));
}

static int op(int id, int n, int by, int flags)
{
	struct sembuf b = { n, by, flags };
	return semop(id, &b, 1);
}

static void value(const char *what, int id, int n, int want)
{
	CHECK_EQ(semctl(id, n, GETVAL), want, what);
}

static void last(const char *what, int id, int n, pid_t want)
{
	CHECK_EQ(semctl(id, n, GETPID), want, what);
}

static int main_set, waits, big, fresh, theirs, plain;

static void *shares(void *arg)
{
	MUST(op(main_set, 5, 3, SEM_UNDO)); /* the list of the process */
	fx_up();
	fx_wait_check();
	return arg;
}

static void *alone(void *arg)
{
	MUST(unshare(CLONE_SYSVSEM));
	MUST(op(main_set, 6, 7, SEM_UNDO)); /* its own: undone when this thread ends */
	fx_up();
	fx_wait_check();
	value("before the thread ends", main_set, 6, 7);
	return arg;
}

static pid_t waiter(int n, int by, int flags)
{
	pid_t kid = MUST(fork());
	if (!kid) {
		int r = op(waits, n, by, flags);
		if (r)
			FAIL("semop of %d on %d: %s", by, n, strerror(errno));
		_exit(r != 0);
	}
	fx_await_state(kid, 'S');
	return kid;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(unshare(CLONE_NEWIPC));
	MUST(semctl(make(IPC_PRIVATE, 1, 0600), 0, IPC_RMID));
	main_set = make(0x5e3a4001, 10, 0640), waits = make(IPC_PRIVATE, 3, 0600), big = make(IPC_PRIVATE, 1000, 0600), fresh = make(0x5e3a4002, 4, 0600);
	plain = make(IPC_PRIVATE, 2, 0606);
	MUST(syscall(SYS_setresuid, -1, 66, -1));
	theirs = make(0x66, 1, 0666);
	MUST(syscall(SYS_setresuid, -1, 0, -1));
	struct semid_ds ds;
	MUST(semctl(plain, 0, IPC_STAT, &ds));
	ds.sem_perm.uid = 77, ds.sem_perm.gid = 88, ds.sem_perm.mode = 0620;
	MUST(semctl(plain, 0, IPC_SET, &ds));

	pid_t me = getpid();
	MUST(op(main_set, 0, 5, 0));
	MUST(op(main_set, 1, 32767, SEM_UNDO)); /* the most: adjustment -32767 */
	MUST(op(main_set, 2, 100, 0));
	MUST(op(main_set, 2, -40, SEM_UNDO)); /* +40 */
	MUST(op(main_set, 3, 2, SEM_UNDO));
	MUST(op(main_set, 3, -2, 0)); /* value 0, adjustment -2: becomes no less than 0 */
	MUST(op(main_set, 9, 32767, 0));
	for (int i = 0; i < 1000; i++)
		MUST(semctl(big, i, SETVAL, i * 30));
	MUST(op(big, 999, 1, 0));
	MUST(semctl(fresh, 2, SETVAL, 9));
	MUST(op(theirs, 0, 1, SEM_UNDO));

	pid_t holder = MUST(fork());
	if (!holder) {
		MUST(op(main_set, 4, 6, SEM_UNDO));
		MUST(op(main_set, 4, -2, 0)); /* value 4, adjustment -6 */
		MUST(op(main_set, 0, -1, SEM_UNDO)); /* value 4, adjustment +1 */
		MUST(op(main_set, 2, -10, SEM_UNDO)); /* of the same semaphore as the parent: +10 */
		MUST(op(main_set, 8, 32767, SEM_UNDO));
		MUST(op(main_set, 8, -32767, 0));
		MUST(op(main_set, 7, 32767, 0));
		MUST(op(main_set, 7, -32767, SEM_UNDO)); /* value 0, adjustment +32767 */
		fx_up();
		fx_wait_check();
		last("changed by the child", main_set, 4, getpid());
		while (!fx_exists("enough"))
			fx_pause_ms(5);
		_exit(0);
	}
	fx_await_up(1);
	pthread_t a, b;
	MUST(-pthread_create(&a, NULL, shares, NULL));
	fx_await_up(2);
	MUST(-pthread_create(&b, NULL, alone, NULL));
	fx_await_up(3);
	MUST(op(waits, 1, 1, 0));
	pid_t rises = waiter(0, -2, 0), zero = waiter(1, 0, 0), undoes = waiter(2, -1, SEM_UNDO);
	fx_ready();
	fx_wait_check();
	pthread_join(b, NULL);
	pthread_join(a, NULL);
	value("0", main_set, 0, 4);
	value("1", main_set, 1, 32767);
	value("2", main_set, 2, 50);
	value("3", main_set, 3, 0);
	value("4", main_set, 4, 4);
	value("5: the thread's list lives on in its process", main_set, 5, 3);
	for (int i = 0; i < 1000 && semctl(main_set, 6, GETVAL); i++)
		fx_pause_ms(5); /* pthread_join comes back before exit_sem has run */
	value("6: undone by the end of its thread", main_set, 6, 0);
	value("7", main_set, 7, 0);
	value("8", main_set, 8, 0);
	value("9", main_set, 9, 32767);
	last("9", main_set, 9, me);
	last("1", main_set, 1, me);
	for (int i = 0; i < 1000; i++)
		value("the large set", big, i, i * 30 + (i == 999));
	value("a set that nobody operated on", fresh, 2, 9);
	value("a set that nobody operated on", fresh, 0, 0);
	last("a set that nobody operated on", fresh, 2, me);
	MUST(semctl(fresh, 0, IPC_STAT, &ds));
	CHECK_EQ(ds.sem_otime, 0, "nobody operated on it");
	MUST(semctl(big, 0, IPC_STAT, &ds));
	CHECK(ds.sem_otime != 0, "somebody operated on it");
	MUST(semctl(plain, 0, IPC_STAT, &ds));
	CHECK(ds.sem_perm.uid == 77 && ds.sem_perm.gid == 88 && ds.sem_perm.mode == 0620 && ds.sem_nsems == 2 && ds.sem_otime == 0, "owner and mode");
	MUST(semctl(theirs, 0, IPC_STAT, &ds));
	CHECK(ds.sem_perm.cuid == 66 && ds.sem_perm.uid == 66 && ds.sem_perm.mode == 0666, "made by another user: %d", ds.sem_perm.cuid);
	CHECK(semget(0x5e3a4001, 0, 0) == main_set && semget(0x5e3a4002, 0, 0) == fresh && semget(0x66, 0, 0) == theirs, "keys");

	fx_touch("enough", "");
	fx_reap_ok(holder);
	value("0 when the child has ended", main_set, 0, 5);
	value("2 when the child has ended", main_set, 2, 60);
	value("4 when the child has ended", main_set, 4, 0);
	value("7 when the child has ended", main_set, 7, 32767);
	value("8 when the child has ended", main_set, 8, 0);

	CHECK_EQ(semctl(waits, 0, GETNCNT), 1, "who waits for a rise");
	CHECK_EQ(semctl(waits, 1, GETZCNT), 1, "who waits for zero");
	CHECK_EQ(semctl(waits, 2, GETNCNT), 1, "who waits with SEM_UNDO");
	MUST(op(waits, 0, 2, 0));
	MUST(op(waits, 1, -1, 0));
	MUST(op(waits, 2, 1, 0));
	fx_reap_ok(rises);
	fx_reap_ok(zero);
	fx_reap_ok(undoes);
	value("taken by a waiter that has undone it by its end", waits, 2, 1);

	/* the root's own adjustments, seen by a child that outlives it in nothing but this: exit_sem runs in a fork that has the list */
	pid_t end = MUST(syscall(SYS_clone, CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0));
	if (!end)
		_exit(0);
	fx_reap_ok(end);
	value("still there: the list has another holder", main_set, 1, 32767);
	MUST(unshare(CLONE_SYSVSEM)); /* lets go of the list, which is undone */
	value("1 undone", main_set, 1, 0);
	value("2 undone", main_set, 2, 100);
	value("3 undone", main_set, 3, 0);
	value("5 undone", main_set, 5, 0);
	value("another user's undone", theirs, 0, 0);
	fx_finish();
}
