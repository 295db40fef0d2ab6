/*
 * System V objects in the IPC namespace that everybody shares: a segment that is attached, semaphores with
 * adjustments, a POSIX message queue, and, for --ipc, a queue with
 * a message and a segment that nobody has attached. DIR/ids has their ids. TestSharedIPC runs it.
 */
#include "fixture.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int named = fx_argc > 0 && !strcmp(fx_argv[0], "named");
	int shm = MUST(shmget(IPC_PRIVATE, 16 << 12, IPC_CREAT | 0600)), sem = MUST(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600));
	int msg = named ? MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600)) : -1, bare = named ? MUST(shmget(IPC_PRIVATE, 9000, IPC_CREAT | 0600)) : -1;
	char ids[128];
	snprintf(ids, sizeof ids, "%d %d %d %d\n", shm, sem, msg, bare);
	fx_touch("ids", ids);
	char *p = shmat(shm, NULL, 0);
	fx_fill(p, 16 << 12, 1);
	struct sembuf b = { 0, 5, SEM_UNDO };
	MUST(semop(sem, &b, 1));
	struct { long type; char text[8]; } m = { 7, "message" };
	if (named) {
		MUST(msgsnd(msg, &m, 8, 0));
		char *q = shmat(bare, NULL, 0);
		fx_fill(q, 9000, 2);
		MUST(shmdt(q));
	}
	char name[64], text[64];
	snprintf(name, sizeof name, "/crpipe-test-%d", shm);
	struct mq_attr a = { .mq_maxmsg = 2, .mq_msgsize = 64 };
	mqd_t q = MUST(mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &a));
	MUST(mq_send(q, "posix", 6, 3));
	fx_ready();
	fx_wait_check();
	fx_verify("the segment", p, 16 << 12, 1);
	struct shmid_ds ds;
	CHECK(!shmctl(shm, IPC_STAT, &ds) && ds.shm_nattch == 1, "attached %d times: %s", (int)ds.shm_nattch, strerror(errno));
	CHECK_EQ(semctl(sem, 0, GETVAL), 5, "the semaphore");
	MUST(unshare(CLONE_SYSVSEM));
	CHECK_EQ(semctl(sem, 0, GETVAL), 0, "the semaphore when its adjustment is undone");
	if (named) {
		memset(&m, 0, sizeof m);
		CHECK(msgrcv(msg, &m, 8, 0, IPC_NOWAIT) == 8 && m.type == 7 && !strcmp(m.text, "message"), "the message: %s", strerror(errno));
		char *q = shmat(bare, NULL, SHM_RDONLY);
		CHECK(q != (char *)-1, "the segment that nobody had attached: %s", strerror(errno));
		if (q != (char *)-1)
			fx_verify("the segment that nobody had attached", q, 9000, 2);
		shmctl(bare, IPC_RMID, NULL);
		msgctl(msg, IPC_RMID, NULL);
	}
	CHECK(mq_receive(q, text, sizeof text, NULL) == 6 && !strcmp(text, "posix"), "the POSIX queue: %s", strerror(errno));
	CHECK(!mq_unlink(name), "its name: %s", strerror(errno));
	shmctl(shm, IPC_RMID, NULL);
	semctl(sem, 0, IPC_RMID);
	fx_finish();
}
