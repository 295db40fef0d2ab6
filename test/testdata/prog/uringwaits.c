/*
 * Requests of io_uring in flight: polls (single, multishot, level), timeouts, accept (single and multishot), read from a pipe and an eventfd, recv; of registered files, of a
 * descriptor that was closed meanwhile; of two threads; in a ring that is bound to one, with large entries. Each completes once when it should, into the right memory, and not before.
 */
#include "fixture.h"
#include "uring.h"
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct done await(struct ring *r, const char *what)
{
	for (int i = 0; i < 60000 && !unread(r); i++) {
		enter(r->fd, 0, 0, IORING_ENTER_GETEVENTS);
		fx_pause_ms(1);
	}
	return take(r, what);
}

static void expect(struct ring *r, uint64_t data, int res, const char *what)
{
	struct done d = await(r, what);
	if (d.user_data != data || d.res != res)
		FAIL("%s: %lld with %d, want %lld with %d", what, (long long)d.user_data, d.res, (long long)data, res);
}

static void quiet(struct ring *r, const char *what)
{
	enter(r->fd, 0, 0, IORING_ENTER_GETEVENTS);
	CHECK_EQ(unread(r), 0, what);
}

static struct io_uring_sqe *ask(struct ring *r, int op, int fd, uint64_t data)
{
	struct io_uring_sqe *s = fill(r, op, fd);
	s->user_data = data;
	return s;
}

static struct ring bound;
static int set_up, go_on, bound_event;

static void *thread(void *arg)
{
	make(&bound, 8, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SQE128 | IORING_SETUP_CQE32 | IORING_SETUP_NO_SQARRAY, 0);
	for (int i = 0; i < 21; i++) {
		nops(&bound, 1);
		take(&bound, "bound, before");
	}
	static uint64_t value;
	struct io_uring_sqe *s = ask(&bound, IORING_OP_READ, bound_event, 1);
	s->addr = (uintptr_t)&value;
	s->len = sizeof value;
	s->off = -1;
	static struct __kernel_timespec soon = { .tv_sec = 20 };
	s = ask(&bound, IORING_OP_TIMEOUT, -1, 2);
	s->addr = (uintptr_t)&soon;
	s->len = 1;
	submit(&bound);
	soon.tv_sec = 1000; /* it was read by then */
	quiet(&bound, "bound, before");
	STORE(&set_up, 1);
	while (!LOAD(&go_on))
		fx_pause_ms(2);
	MUST(eventfd_write(bound_event, 4711));
	struct done a = await(&bound, "bound"), b = await(&bound, "bound");
	if (a.user_data == 2) {
		struct done c = a;
		a = b;
		b = c;
	}
	CHECK(a.user_data == 1 && a.res == 8 && value == 4711, "bound: a read: %lld %d %lld", (long long)a.user_data, a.res, (long long)value);
	CHECK(b.user_data == 2 && b.res == -ETIME, "bound: a timeout: %lld %d", (long long)b.user_data, b.res);
	bound.seen = bound.next;
	works(&bound, "bound");
	return arg;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	bound_event = MUST(eventfd(0, EFD_CLOEXEC));
	pthread_t t;
	pthread_create(&t, NULL, thread, NULL);
	while (!LOAD(&set_up))
		fx_pause_ms(1);

	struct ring r;
	make(&r, 16, 0, 0);
	for (int i = 0; i < 37; i++) {
		nops(&r, 1);
		take(&r, "before");
	}
	int pipes[2], more[2], sock[2], fixed = MUST(eventfd(0, EFD_CLOEXEC)), many = MUST(eventfd(0, EFD_CLOEXEC));
	MUST(pipe2(pipes, O_CLOEXEC));
	MUST(pipe2(more, O_CLOEXEC));
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock));
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	snprintf(name.sun_path, sizeof name.sun_path, "%s", fx_path("listener"));
	int listener = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(bind(listener, (void *)&name, sizeof name));
	MUST(listen(listener, 5));
	MUST(reg(r.fd, IORING_REGISTER_FILES, (int[]){ -1, fixed }, 2));

	struct io_uring_sqe *s = ask(&r, IORING_OP_POLL_ADD, pipes[0], 100); /* once */
	s->poll32_events = POLLIN;
	s = ask(&r, IORING_OP_POLL_ADD, 1, 101); /* of a registered file */
	s->flags = IOSQE_FIXED_FILE;
	s->poll32_events = POLLIN;
	s = ask(&r, IORING_OP_POLL_ADD, many, 102); /* again and again */
	s->poll32_events = POLLIN;
	s->len = IORING_POLL_ADD_MULTI;
	char *into = calloc(1, 64), *got = calloc(1, 64);
	s = ask(&r, IORING_OP_READ, more[0], 103);
	s->addr = (uintptr_t)into;
	s->len = 64;
	s = ask(&r, IORING_OP_RECV, sock[0], 104);
	s->addr = (uintptr_t)got;
	s->len = 64;
	struct sockaddr_un *from = calloc(1, sizeof *from);
	socklen_t *from_len = calloc(1, sizeof *from_len);
	*from_len = sizeof *from;
	s = ask(&r, IORING_OP_ACCEPT, listener, 105);
	s->addr = (uintptr_t)from;
	s->addr2 = (uintptr_t)from_len;
	s->accept_flags = SOCK_CLOEXEC;
	static struct __kernel_timespec never = { .tv_sec = 100000 };
	s = ask(&r, IORING_OP_TIMEOUT, -1, 106);
	s->addr = (uintptr_t)&never;
	s->len = 1;
	submit(&r);
	quiet(&r, "before");
	MUST(eventfd_write(many, 1));
	expect(&r, 102, POLLIN, "multishot, before");
	eventfd_t v;
	MUST(eventfd_read(many, &v));
	quiet(&r, "before");
	struct counts was = count(&r), bound_was = count(&bound);
	unsigned char *entries = malloc(r.sqe_size);
	memcpy(entries, r.sqes, r.sqe_size);
	fx_ready();
	fx_wait_check();

	same(&r, &was, "counters");
	same(&bound, &bound_was, "counters of the bound one");
	CHECK(!memcmp(entries, r.sqes, r.sqe_size), "the entries differ");
	quiet(&r, "nothing has happened");
	MUST(write(pipes[1], "x", 1));
	expect(&r, 100, POLLIN, "poll");
	MUST(eventfd_write(fixed, 1));
	expect(&r, 101, POLLIN, "poll of a registered file");
	for (int i = 0; i < 3; i++) {
		MUST(eventfd_write(many, 1));
		expect(&r, 102, POLLIN, "multishot poll");
		MUST(eventfd_read(many, &v));
	}
	MUST(write(more[1], "hello", 5));
	expect(&r, 103, 5, "read");
	CHECK(!strcmp(into, "hello"), "read: %s", into);
	MUST(write(sock[1], "world!", 6));
	expect(&r, 104, 6, "recv");
	CHECK(!strcmp(got, "world!"), "recv: %s", got);
	int client = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(connect(client, (void *)&name, sizeof name));
	struct done d = await(&r, "accept");
	CHECK(d.user_data == 105 && d.res >= 0 && fcntl(d.res, F_GETFD) == FD_CLOEXEC, "accept: %lld %d", (long long)d.user_data, d.res);
	CHECK_EQ(from->sun_family, AF_UNIX, "who was accepted");
	MUST(write(client, "z", 1));
	CHECK_EQ(read(d.res, into, 64), 1, "what was accepted");
	quiet(&r, "once only");
	s = ask(&r, IORING_OP_TIMEOUT_REMOVE, -1, 107);
	s->addr = 106;
	submit(&r);
	for (int i = 0; i < 2; i++) {
		d = await(&r, "the end of the timeout");
		CHECK(d.user_data == 107 ? d.res == 0 : d.user_data == 106 && d.res == -ECANCELED, "the end of the timeout: %lld %d", (long long)d.user_data, d.res);
	}
	s = ask(&r, IORING_OP_POLL_REMOVE, -1, 108);
	s->addr = 102;
	submit(&r);
	await(&r, "the end of the poll");
	await(&r, "the end of the poll");
	r.seen = r.next;
	works(&r, "afterwards");
	STORE(&go_on, 1);
	pthread_join(t, NULL);
	fx_finish();
}
