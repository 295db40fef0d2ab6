/*
 * io_uring instances with nothing in flight: one whose ring has gone around, with unread completions and entries that were not submitted yet; one bound to a thread
 * (IORING_SETUP_SINGLE_ISSUER, DEFER_TASKRUN) with large entries and without an array; one with more completions than requests (a multishot poll); one with fewer
 * (IOSQE_CQE_SKIP_SUCCESS); one that is not enabled; one that a child has too, with registered files and an eventfd, watched by epoll. Registered rings of threads.
 * Counters, entries and completions are the same, and all of them work on.
 */
#include "fixture.h"
#include "uring.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static struct ring bound;
static struct counts bound_was;
static int set_up, go_on;

static void *thread(void *arg)
{
	make(&bound, 4, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SQE128 | IORING_SETUP_CQE32 | IORING_SETUP_NO_SQARRAY | IORING_SETUP_CQSIZE, 32);
	struct io_uring_rsrc_update up = { .offset = 3, .data = bound.fd };
	if (reg(bound.fd, IORING_REGISTER_RING_FDS, &up, 1) != 1)
		FAIL("registering a ring: %s", strerror(errno));
	nops(&bound, 30);
	reap(&bound, 29, "bound, before");
	nops(&bound, 20);
	reap(&bound, 14, "bound, before");
	/* more completions than requests */
	int efd = MUST(eventfd(0, EFD_CLOEXEC));
	struct io_uring_sqe *s = fill(&bound, IORING_OP_POLL_ADD, efd);
	s->poll32_events = POLLIN;
	s->len = IORING_POLL_ADD_MULTI;
	s->user_data = 7777;
	submit(&bound);
	for (int i = 0; i < 3; i++) {
		MUST(eventfd_write(efd, 1));
		enter(bound.fd, 0, 0, IORING_ENTER_GETEVENTS);
	}
	s = fill(&bound, IORING_OP_POLL_REMOVE, -1);
	s->addr = 7777;
	s->user_data = 7778;
	submit(&bound);
	close(efd);
	bound_was = count(&bound);
	STORE(&set_up, 1);
	while (!LOAD(&go_on))
		fx_pause_ms(2);
	same(&bound, &bound_was, "bound");
	reap(&bound, 7, "bound");
	for (unsigned i = unread(&bound), n7778 = 0; i > 0; i--) {
		struct done c = take(&bound, "bound, poll");
		n7778 += c.user_data == 7778;
		if (c.user_data != 7777 && c.user_data != 7778)
			FAIL("bound: completion %lld", (long long)c.user_data);
		if (i == 1)
			CHECK_EQ(n7778, 1, "bound: the end of the poll");
	}
	bound.seen = bound.next;
	fill(&bound, IORING_OP_NOP, -1);
	submit_by(&bound, 3, IORING_ENTER_REGISTERED_RING);
	reap(&bound, 1, "bound, by its registered ring");
	works(&bound, "bound");
	return arg;
}

static void *stranger(void *arg)
{
	CHECK(enter(bound.fd, 0, 0, IORING_ENTER_GETEVENTS) == -1 && errno == EEXIST, "another thread may use what is bound to one");
	return arg;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct ring plain, many, few, off, both;
	make(&plain, 8, 0, 0);
	nops(&plain, 13);
	reap(&plain, 13, "plain, before");
	for (int i = 0; i < 100; i++) {
		nops(&plain, 1);
		reap(&plain, 1, "plain, before");
	}
	nops(&plain, 9); /* unread, around the end */
	fill(&plain, IORING_OP_NOP, -1);
	fill(&plain, IORING_OP_NOP, -1);
	STORE(WORD(&plain, plain.p.sq_off.tail), plain.tail); /* not submitted */
	fill(&plain, IORING_OP_NOP, -1);                      /* not even shown */
	MUST(fcntl(plain.fd, F_SETFL, O_NONBLOCK));

	make(&many, 64, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0);
	int efd = MUST(eventfd(0, EFD_CLOEXEC));
	struct io_uring_sqe *s = fill(&many, IORING_OP_POLL_ADD, efd);
	s->poll32_events = POLLIN;
	s->len = IORING_POLL_ADD_MULTI;
	submit(&many);
	unsigned fired = 0;
	for (int i = 0; i < 500; i++) {
		MUST(eventfd_write(efd, 1));
		enter(many.fd, 0, 0, IORING_ENTER_GETEVENTS);
		for (; unread(&many) > 0; fired++)
			take(&many, "many, before");
	}
	CHECK(fired > 100, "a multishot poll fired %u times", fired);
	s = fill(&many, IORING_OP_POLL_REMOVE, -1);
	submit(&many);
	while (unread(&many))
		take(&many, "many, before");
	many.seen = many.next;
	nops(&many, 2);

	fill(&many, IORING_OP_NOP, -1)->flags = IOSQE_ASYNC; /* by a worker, which stays */
	submit(&many);
	while (unread(&many) < 3)
		fx_pause_ms(1);

	make(&few, 4, IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP, 0);
	for (int i = 0; i < 21; i++) {
		fill(&few, IORING_OP_NOP, -1)->flags = IOSQE_CQE_SKIP_SUCCESS;
		submit(&few);
	}
	few.seen = few.next;
	nops(&few, 3);

	make(&off, 2, IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER, 0);

	make(&both, 4, 0, 0);
	int file = MUST(open(fx_path("data"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
	MUST(write(file, "registered", 10));
	int slots[5] = { -1, file, -1, efd, -1 }, registers = kernel_since(6, 13); /* before that they are refused */
	if (registers)
		MUST(reg(both.fd, IORING_REGISTER_FILES, slots, 5));
	int told = MUST(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	MUST(reg(both.fd, IORING_REGISTER_EVENTFD, &told, 1));
	int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 42 };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, both.fd, &ev));
	nops(&both, 5);
	reap(&both, 5, "both, before");
	eventfd_t v;
	MUST(eventfd_read(told, &v));
	struct io_uring_rsrc_update up = { .offset = -1u, .data = both.fd };
	CHECK_EQ(reg(both.fd, IORING_REGISTER_RING_FDS, &up, 1), 1, "registering a ring");
	CHECK_EQ(up.offset, 0, "its index");

	pthread_t t;
	pthread_create(&t, NULL, thread, NULL);
	while (!LOAD(&set_up))
		fx_pause_ms(1);
	pid_t child = MUST(fork());
	if (!child) {
		while (!fx_exists("check"))
			fx_pause_ms(5);
		while (!LOAD(WORD(&both, both.p.cq_off.tail)) || LOAD(WORD(&both, both.p.cq_off.tail)) == 5)
			fx_pause_ms(1); /* its parent's request completes in the same memory */
		_exit(0);
	}
	struct counts plain_was = count(&plain), many_was = count(&many), few_was = count(&few), off_was = count(&off), both_was = count(&both);
	unsigned char *cqes = malloc(plain.size), *sqes = malloc(plain.sqe_size);
	memcpy(cqes, plain.rings, plain.size);
	memcpy(sqes, plain.sqes, plain.sqe_size);
	fx_ready();
	fx_wait_check();

	CHECK(!memcmp(cqes, plain.rings, plain.size), "the rings differ");
	CHECK(!memcmp(sqes, plain.sqes, plain.sqe_size), "the entries differ");
	same(&plain, &plain_was, "plain");
	same(&many, &many_was, "many");
	same(&few, &few_was, "few");
	same(&off, &off_was, "off");
	same(&both, &both_was, "both");
	CHECK_EQ(fcntl(plain.fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "flags");

	reap(&plain, 9, "plain");
	submit(&plain);
	reap(&plain, 3, "plain, late");
	works(&plain, "plain");
	reap(&many, 3, "many");
	works(&many, "many");
	reap(&few, 3, "few");
	works(&few, "few");
	fill(&many, IORING_OP_NOP, -1)->flags = IOSQE_ASYNC;
	submit(&many);
	for (int i = 0; i < 5000 && !unread(&many); i++)
		fx_pause_ms(1);
	reap(&many, 1, "many, by a worker");
	/* IOSQE_IO_DRAIN is for those that never skipped a completion */
	fill(&few, IORING_OP_NOP, -1)->flags = IOSQE_IO_DRAIN;
	submit(&few);
	CHECK_EQ(take(&few, "few, drain").res, -EOPNOTSUPP, "few: a drain");
	fill(&plain, IORING_OP_NOP, -1)->flags = IOSQE_IO_DRAIN;
	submit(&plain);
	for (int i = 0; i < 2000 && !unread(&plain); i++)
		fx_pause_ms(1);
	reap(&plain, 1, "plain, drain");

	fill(&off, IORING_OP_NOP, -1);
	STORE(WORD(&off, off.p.sq_off.tail), off.tail);
	CHECK(enter(off.fd, 1, 0, 0) == -1 && errno == EBADFD, "not enabled: %s", strerror(errno));
	MUST(reg(off.fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0));
	submit(&off);
	reap(&off, 1, "off");
	works(&off, "off");

	struct pollfd p = { .fd = ep, .events = POLLIN };
	CHECK_EQ(poll(&p, 1, 0), 0, "epoll, while there is nothing");
	char buf[32] = "";
	s = fill(&both, IORING_OP_READ, registers ? 1 : file);
	s->flags = registers ? IOSQE_FIXED_FILE : 0;
	s->addr = (uintptr_t)buf;
	s->len = sizeof buf;
	submit_by(&both, 0, IORING_ENTER_REGISTERED_RING);
	for (int i = 0; i < 2000 && !unread(&both); i++)
		fx_pause_ms(1);
	CHECK_EQ(poll(&p, 1, 0), 1, "epoll");
	CHECK_EQ(take(&both, "a registered file").res, 10, "a registered file");
	CHECK(!strcmp(buf, "registered"), "%s", buf);
	both.seen++;
	CHECK(eventfd_read(told, &v) == 0 && v == 1, "the registered eventfd: %lld", (long long)v);
	s = fill(&both, IORING_OP_READ, 0);
	s->flags = IOSQE_FIXED_FILE;
	submit(&both);
	CHECK_EQ(take(&both, "an empty place").res, -EBADF, "an empty place");
	int status;
	CHECK_EQ(waitpid(child, &status, 0), child, "child");
	CHECK_EQ(status, 0, "child");
	both.seen = both.next;
	works(&both, "both");

	pthread_t other;
	pthread_create(&other, NULL, stranger, NULL);
	pthread_join(other, NULL);
	STORE(&go_on, 1);
	pthread_join(t, NULL);
	fx_finish();
}
