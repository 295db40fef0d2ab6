/*
 * System V message queues in an IPC namespace of its own: messages of several types and sizes in order, long types, empty and large ones, a queue
 * that is full and was made smaller afterwards, limits, permissions, keys, ids, who sent and received last, and who waits to send and to receive.
 */
#include "fixture.h"
#include <sys/ipc.h>
#include <sys/msg.h>

struct message { long type; char text[9000]; };

static int make(key_t key, int mode)
{
	return MUST(msgget(key, IPC_CREAT | IPC_EXCL | mode));
}

static void put(int id, long type, size_t n, uint64_t seed)
{
	static struct message m;
	m.type = type;
	fx_fill(m.text, (n + 7) & ~7ul, seed);
	MUST(msgsnd(id, &m, n, IPC_NOWAIT));
}

static void take(const char *what, int id, long which, long type, size_t n, uint64_t seed)
{
	static struct message m, want;
	ssize_t got = msgrcv(id, &m, sizeof m.text, which, IPC_NOWAIT);
	fx_fill(want.text, sizeof want.text, seed);
	CHECK(got == (ssize_t)n && m.type == type && !memcmp(m.text, want.text, n), "%s: %zd bytes of type %ld, not %zu of %ld", what, got, m.type, n, type);
}

static struct msqid_ds stat_of(int id)
{
	struct msqid_ds ds = { 0 };
	MUST(msgctl(id, IPC_STAT, &ds));
	return ds;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(unshare(CLONE_NEWIPC));
	MUST(msgctl(make(IPC_PRIVATE, 0600), IPC_RMID, NULL));
	int fd = MUST(open("/proc/sys/kernel/msgmax", O_WRONLY | O_CLOEXEC));
	MUST(write(fd, "9000", 4));
	close(fd);
	int q = make(0x4d5347, 0640), full = make(IPC_PRIVATE, 0600), empty = make(IPC_PRIVATE, 0600), used = make(IPC_PRIVATE, 0600), theirs, waits = make(0x77, 0600);
	MUST(syscall(SYS_setresuid, -1, 66, -1));
	theirs = make(0x66, 0666);
	MUST(syscall(SYS_setresuid, -1, 0, -1));
	pid_t me = getpid();

	put(q, 3, 100, 1);
	put(q, 1, 0, 0);
	put(q, LONG_MAX, 8999, 2);
	put(q, 3, 1, 3);
	put(q, 2, 5000, 4);
	for (int i = 0; i < 200; i++)
		put(full, 1 + i % 3, 50, 10 + i);
	struct msqid_ds ds = stat_of(full);
	ds.msg_qbytes = 700, ds.msg_perm.uid = 12, ds.msg_perm.gid = 13, ds.msg_perm.mode = 0622;
	MUST(msgctl(full, IPC_SET, &ds));
	put(used, 5, 10, 5);
	put(used, 6, 20, 6);
	put(theirs, 1, 8, 7);
	pid_t receiver = MUST(fork());
	if (!receiver) {
		take("set-up", used, 5, 5, 10, 5);
		fx_up();
		fx_wait_check();
		_exit(0);
	}
	fx_await_up(1);
	pid_t reads = MUST(fork());
	if (!reads) {
		struct message m = { 0 };
		ssize_t n = msgrcv(waits, &m, sizeof m.text, -4, 0);
		CHECK(n == 6 && m.type == 4 && !strcmp(m.text, "hello"), "the waiting receiver got %zd bytes of type %ld: %s", n, m.type, strerror(errno));
		_exit(n != 6);
	}
	fx_await_state(reads, 'S');
	pid_t writes = MUST(fork());
	if (!writes) {
		struct message m = { 9, "at last" };
		int r = msgsnd(full, &m, 8, 0);
		CHECK(!r, "the waiting sender: %s", strerror(errno));
		_exit(r != 0);
	}
	fx_await_state(writes, 'S');
	fx_ready();
	fx_wait_check();

	ds = stat_of(q);
	CHECK(ds.msg_qnum == 5 && ds.__msg_cbytes == 14100 && ds.msg_qbytes == 16384 && ds.msg_perm.mode == 0640, "%lu messages, %lu bytes of %lu", ds.msg_qnum, ds.__msg_cbytes, ds.msg_qbytes);
	CHECK(ds.msg_stime && !ds.msg_rtime && !ds.msg_lrpid, "nobody received");
	take("by type", q, 3, 3, 100, 1);
	take("the longest type", q, LONG_MAX, LONG_MAX, 8999, 2);
	take("the first", q, 0, 1, 0, 0);
	take("the second", q, 0, 3, 1, 3);
	take("the last", q, -5, 2, 5000, 4);
	ds = stat_of(full);
	CHECK(ds.msg_qnum == 200 && ds.msg_qbytes == 700 && ds.msg_perm.uid == 12 && ds.msg_perm.gid == 13 && ds.msg_perm.mode == 0622, "the full one: %lu messages of %lu bytes at most",
	      ds.msg_qnum, ds.msg_qbytes);
	for (int i = 0; i < 200; i++)
		take("the full one", full, 0, 1 + i % 3, 50, 10 + i);
	fx_reap_ok(writes);
	static struct message late;
	CHECK(msgrcv(full, &late, sizeof late.text, 0, IPC_NOWAIT) == 8 && late.type == 9 && !strcmp(late.text, "at last"), "what the waiting sender sent");
	ds = stat_of(empty);
	CHECK(!ds.msg_qnum && !ds.msg_stime && !ds.msg_rtime && !ds.msg_lspid && !ds.msg_lrpid, "an unused queue");
	ds = stat_of(used);
	CHECK_EQ(ds.msg_lspid, me, "who sent last");
	CHECK_EQ(ds.msg_lrpid, receiver, "who received last");
	CHECK_EQ(ds.msg_qnum, 1, "messages");
	take("left", used, 0, 6, 20, 6);
	ds = stat_of(theirs);
	CHECK(ds.msg_perm.cuid == 66 && ds.msg_perm.uid == 66, "made by another user");
	take("another user's", theirs, 0, 1, 8, 7);
	CHECK(msgget(0x4d5347, 0) == q && msgget(0x66, 0) == theirs && msgget(0x77, 0) == waits, "keys");
	struct message m = { 5, "no" };
	MUST(msgsnd(waits, &m, 3, 0)); /* not for who waits for types up to 4 */
	m = (struct message){ 4, "hello" };
	MUST(msgsnd(waits, &m, 6, 0));
	fx_reap_ok(reads);
	fx_reap_ok(receiver);
	fx_finish();
}
