/*
 * POSIX message queues in an IPC namespace of its own: messages of several priorities and sizes in order, empty ones and some of several pages, a
 * queue that is full, one without a name, one that nobody has open, several open files on one, owners, permissions, times, who is told of the next
 * message (by a signal with a value, or not at all), and who waits to send and to receive.
 */
#include "fixture.h"
#include <mqueue.h>

#define PLAIN (SIGRTMIN + 3)

static void put(mqd_t q, unsigned priority, size_t n, uint64_t seed)
{
	static char text[20000];
	fx_fill(text, (n + 7) & ~7ul, seed);
	MUST(mq_send(q, text, n, priority));
}

static void take(const char *what, mqd_t q, unsigned priority, size_t n, uint64_t seed)
{
	static char text[20000], want[20000];
	unsigned p = 0;
	struct timespec past = { 0, 0 };
	fx_fill(want, sizeof want, seed);
	ssize_t got = mq_timedreceive(q, text, sizeof text, &p, &past);
	CHECK(got == (ssize_t)n && p == priority && !memcmp(text, want, n), "%s: %zd bytes of priority %u, not %zu of %u: %s", what, got, p, n, priority, got < 0 ? strerror(errno) : "");
}

static mqd_t make(const char *name, long max, long size, int flags)
{
	struct mq_attr a = { .mq_maxmsg = max, .mq_msgsize = size };
	return MUST(mq_open(name, O_CREAT | O_EXCL | O_RDWR | flags, 0600, &a));
}

static void attributes(const char *what, mqd_t q, long flags, long max, long size, long count)
{
	struct mq_attr a = { 0 };
	CHECK(!mq_getattr(q, &a), "%s: %s", what, strerror(errno));
	CHECK(a.mq_flags == flags && a.mq_maxmsg == max && a.mq_msgsize == size && a.mq_curmsgs == count, "%s: flags %lx, %ld of at most %ld messages of %ld bytes", what, a.mq_flags,
	      a.mq_curmsgs, a.mq_maxmsg, a.mq_msgsize);
}

static void write_to(const char *path, const char *text)
{
	int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static volatile sig_atomic_t told;
static volatile int value, by;

static void on_message(int sig, siginfo_t *info, void *context)
{
	(void)context;
	told++;
	value = info->si_value.sival_int;
	by = info->si_code == SI_MESGQ ? sig : -sig;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(unshare(CLONE_NEWIPC));
	write_to("/proc/sys/fs/mqueue/msgsize_max", "20000");
	write_to("/proc/sys/fs/mqueue/msg_max", "50");
	struct sigaction sa = { .sa_sigaction = on_message, .sa_flags = SA_SIGINFO };
	MUST(sigaction(PLAIN, &sa, NULL));

	mqd_t q = make("/crpipe-fixture", 7, 20000, 0), full = make("/full", 3, 16, 0), gone = make("/gone", 4, 100, O_NONBLOCK), closed = make("/closed", 2, 50, 0),
	      empty = make("/empty", 50, 8, 0), silent = make("/silent", 5, 5, 0), lasting = make("/lasting", 5, 64, 0);
	put(q, 3, 100, 1);
	put(q, 0, 0, 0);
	put(q, 32767, 19999, 2);
	put(q, 3, 4048, 3);
	put(q, 3, 4049, 4);
	put(q, 0, 12345, 5);
	mqd_t reader = MUST(mq_open("/crpipe-fixture", O_RDONLY | O_NONBLOCK)), writer = MUST(mq_open("/crpipe-fixture", O_WRONLY)), twin = MUST(dup(reader));
	MUST(fchmod(q, 0642));
	MUST(fchown(q, 12, 34));
	struct timespec times[2] = { { 1000000000, 123456789 }, { 1100000000, 987654321 } };
	MUST(futimens(q, times));
	put(gone, 7, 8, 6);
	MUST(mq_unlink("/gone"));
	put(closed, 1, 50, 7);
	MUST(mq_close(closed));
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = PLAIN, .sigev_value.sival_int = 4711 };
	MUST(mq_notify(empty, &event));
	event.sigev_notify = SIGEV_NONE;
	MUST(mq_notify(silent, &event));
	for (int i = 0; i < 3; i++)
		put(full, i, 8, 20 + i);
	int flags = fcntl(writer, F_GETFL), flags_q = fcntl(q, F_GETFL);

	pid_t sends = MUST(fork());
	if (!sends) {
		int r = mq_send(full, "at last", 8, 1);
		CHECK(!r, "the waiting sender: %s", strerror(errno));
		_exit(r != 0);
	}
	fx_await_state(sends, 'S');
	pid_t receives = MUST(fork());
	if (!receives) {
		char text[64];
		unsigned p;
		struct timespec until;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 5000;
		ssize_t n = mq_timedreceive(lasting, text, sizeof text, &p, &until);
		CHECK(n == 6 && p == 9 && !strcmp(text, "hello"), "the waiting receiver got %zd bytes: %s", n, strerror(errno));
		_exit(n != 6);
	}
	fx_await_state(receives, 'S');
	fx_ready();
	fx_wait_check();

	CHECK_EQ(fcntl(writer, F_GETFL), flags, "flags");
	CHECK_EQ(fcntl(q, F_GETFL), flags_q, "flags");
	attributes("the queue", q, 0, 7, 20000, 6);
	attributes("its reader", reader, O_NONBLOCK, 7, 20000, 6);
	struct mq_attr a = { .mq_flags = 0 };
	mq_setattr(reader, &a, NULL);
	attributes("a duplicate", twin, 0, 7, 20000, 6);
	attributes("another open file", q, 0, 7, 20000, 6);
	struct stat st;
	CHECK(!fstat(q, &st) && st.st_uid == 12 && st.st_gid == 34 && (st.st_mode & 07777) == 0642, "mode %o, owner %d:%d", st.st_mode, st.st_uid, st.st_gid);
	/* not st_atime: whoever looks at what the descriptor shows as text, as the harness does, changes that */
	CHECK_EQ(st.st_mtim.tv_sec, 1100000000, "time");
	char link[64] = "";
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", gone);
	CHECK(readlink(path, link, sizeof link - 1) > 0 && !strcmp(link, "/gone (deleted)"), "the one without a name is shown as %s", link);
	take("the highest priority", reader, 32767, 19999, 2);
	take("the first of its priority", reader, 3, 100, 1);
	take("the second", q, 3, 4048, 3);
	take("the third", q, 3, 4049, 4);
	take("the empty one", q, 0, 0, 0);
	take("the last", q, 0, 12345, 5);
	put(writer, 5, 16, 99);
	take("through another open file", twin, 5, 16, 99);
	CHECK(mq_open("/gone", O_RDWR) == (mqd_t)-1 && errno == ENOENT, "the one without a name has none");
	attributes("the one without a name", gone, O_NONBLOCK, 4, 100, 1);
	take("the one without a name", gone, 7, 8, 6);
	closed = mq_open("/closed", O_RDWR);
	CHECK(closed != (mqd_t)-1, "the one that nobody had open: %s", strerror(errno));
	attributes("the one that nobody had open", closed, 0, 2, 50, 1);
	take("the one that nobody had open", closed, 1, 50, 7);
	attributes("the full one", full, 0, 3, 16, 3);
	take("the full one", full, 2, 8, 22);
	fx_reap_ok(sends);
	take("the full one", full, 1, 8, 21);
	char text[16];
	unsigned p = 0;
	CHECK(mq_receive(full, text, sizeof text, &p) == 8 && p == 1 && !strcmp(text, "at last"), "what the waiting sender sent");
	take("the full one", full, 0, 8, 20);

	CHECK_EQ(told, 0, "told of messages too early");
	event.sigev_notify = SIGEV_SIGNAL;
	CHECK(mq_notify(empty, &event) && errno == EBUSY, "somebody is told of messages");
	CHECK(mq_notify(silent, &event) && errno == EBUSY, "somebody is told of nothing");
	put(silent, 0, 1, 1);
	put(empty, 0, 1, 1);
	CHECK(told == 1 && value == 4711 && by == PLAIN, "told %d times, of %d by %d", (int)told, value, by);
	MUST(mq_send(lasting, "hello", 6, 9));
	fx_reap_ok(receives);
	fx_finish();
}
