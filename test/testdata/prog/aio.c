/*
 * Contexts of asynchronous I/O: an empty one, one with unread events, one whose ring has gone around so that unread events are at its end and its beginning, one with a gap before it (another was ended),
 * one that a thread waits on in io_getevents. Numbers, indices, heads and tails are the same; the events come in their order; new requests work, fill the ring and report by eventfd.
 */
#include "fixture.h"
#include <linux/aio_abi.h>
#include <poll.h>

struct ring { unsigned id, nr, head, tail, magic, compat, incompat, header; struct io_event events[]; };

static int io_setup(unsigned n, aio_context_t *c) { return syscall(SYS_io_setup, n, c); }
static int io_submit(aio_context_t c, long n, struct iocb **p) { return syscall(SYS_io_submit, c, n, p); }
static int io_getevents(aio_context_t c, long min, long n, struct io_event *e, struct timespec *t) { return syscall(SYS_io_getevents, c, min, n, e, t); }

static int file;
static char room[4096];

/* n reads of 8 bytes at offset 8*i, told apart by aio_data */
static void take(aio_context_t c, int n, uint64_t first)
{
	for (int i = 0; i < n; i++) {
		struct iocb cb = { .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = file, .aio_buf = (uintptr_t)room, .aio_nbytes = 8 + (first + i) % 8, .aio_data = first + i };
		struct iocb *p = &cb;
		int r = io_submit(c, 1, &p);
		if (r != 1) {
			FAIL("io_submit: %d, %s", r, strerror(errno));
			return;
		}
	}
}

static void reap(aio_context_t c, int n, uint64_t first, const char *what)
{
	for (int i = 0; i < n; i++) {
		struct io_event e = {0};
		struct timespec zero = {0};
		int r = io_getevents(c, 1, 1, &e, &zero);
		if (r != 1 || e.data != first + i || e.res != (long long)(8 + (first + i) % 8) || e.res2 != 0 || !e.obj) {
			FAIL("%s: event %d: %d, data %lld res %lld, want data %lld", what, i, r, (long long)e.data, (long long)e.res, (long long)(first + i));
			return;
		}
	}
}

static void none(aio_context_t c, const char *what)
{
	struct io_event e;
	struct timespec zero = {0};
	CHECK_EQ(io_getevents(c, 0, 1, &e, &zero), 0, what);
}

static aio_context_t waited, timed;
static int waiting, timing;

/* with a time, which it may wait for from the beginning once more */
static void *timer(void *arg)
{
	struct io_event e = {0};
	struct timespec t = { 5, 0 };
	int64_t begin = fx_now(CLOCK_MONOTONIC);
	timing = gettid();
	int r = io_getevents(timed, 1, 1, &e, &t);
	if (r != 0 || fx_now(CLOCK_MONOTONIC) - begin < 5000000000ll)
		FAIL("io_getevents with a time: %d (%s) after %lld ms", r, strerror(errno), (long long)(fx_now(CLOCK_MONOTONIC) - begin) / 1000000);
	return arg;
}

static void *waiter(void *arg)
{
	struct io_event e = {0};
	waiting = gettid();
	int r = io_getevents(waited, 1, 1, &e, NULL);
	if (r != 1 || e.data != 4711)
		FAIL("the waiter: %d (%s), data %lld", r, strerror(errno), (long long)e.data);
	return arg;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	file = MUST(open(fx_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600));
	MUST(ftruncate(file, 4096));
	aio_context_t empty = 0, some = 0, around = 0, gone = 0, late = 0;
	MUST(io_setup(1, &empty));
	MUST(io_setup(100, &some));
	MUST(io_setup(33, &gone));
	MUST(io_setup(8, &around));
	MUST(io_setup(5, &waited));
	MUST(io_setup(2000, &late));
	MUST(io_setup(1, &timed));
	MUST(syscall(SYS_io_destroy, gone));
	take(some, 7, 100);
	reap(some, 3, 100, "set-up");
	struct ring *r = (void *)around;
	unsigned nr = r->nr;
	for (unsigned i = 0; i < nr - 2; i++) {
		take(around, 1, i);
		reap(around, 1, i, "set-up");
	}
	take(around, 6, 500);
	CHECK(r->tail < r->head, "set-up: head %u tail %u of %u", r->head, r->tail, nr);
	take(late, 300, 0);
	reap(late, 300, 0, "set-up");
	pthread_t th;
	pthread_create(&th, NULL, waiter, NULL);
	while (!__atomic_load_n(&waiting, __ATOMIC_ACQUIRE))
		fx_pause_ms(1);
	fx_await_state(waiting, 'S');
	pthread_t th2;
	pthread_create(&th2, NULL, timer, NULL);
	while (!__atomic_load_n(&timing, __ATOMIC_ACQUIRE))
		fx_pause_ms(1);
	fx_await_state(timing, 'S');
	struct ring heads[5];
	aio_context_t all[5] = { empty, some, around, waited, late };
	for (int i = 0; i < 5; i++)
		memcpy(&heads[i], (void *)all[i], sizeof heads[i]);
	fx_ready();
	fx_wait_check();

	for (int i = 0; i < 5; i++)
		CHECK(!memcmp(&heads[i], (void *)all[i], sizeof heads[i]), "ring %d: id %u nr %u head %u tail %u, it was %u %u %u %u", i, ((struct ring *)all[i])->id, ((struct ring *)all[i])->nr,
		      ((struct ring *)all[i])->head, ((struct ring *)all[i])->tail, heads[i].id, heads[i].nr, heads[i].head, heads[i].tail);
	none(empty, "events of the empty one");
	none(late, "events of what was read");
	reap(some, 4, 103, "unread events");
	none(some, "more events");
	reap(around, 6, 500, "unread events of a ring that has gone around");
	none(around, "more events");
	/* as many as each ring has room for, several times */
	for (int i = 0; i < 5; i++) {
		if (all[i] == waited)
			continue;
		unsigned slots = ((struct ring *)all[i])->nr;
		for (int round = 0; round < 3; round++) {
			take(all[i], slots / 3, 1000);
			reap(all[i], slots / 3, 1000, "new requests");
		}
		none(all[i], "more events");
	}
	take(waited, 1, 4711);
	pthread_join(th, NULL);
	pthread_join(th2, NULL);
	aio_context_t again = 0;
	MUST(io_setup(3, &again));
	CHECK_EQ(((struct ring *)again)->id, 2, "the index of a new context");
	for (int i = 0; i < 5; i++)
		CHECK_EQ(syscall(SYS_io_destroy, all[i]), 0, "io_destroy");
	fx_finish();
}
