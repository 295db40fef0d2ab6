/* What the fixtures about io_uring share: rings without liburing. */
#ifndef URING_H
#define URING_H

#include <linux/io_uring.h>
#include <sys/utsname.h>

#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

struct ring {
	int fd;
	struct io_uring_params p;
	unsigned char *rings, *sqes;
	size_t size, sqe_size, sqe_bytes, cqe_bytes;
	unsigned tail;      /* what the program has filled, as liburing keeps it */
	uint64_t next;      /* user_data of the next request */
	uint64_t seen;      /* user_data of the next completion */
};

static int kernel_since(int major, int minor)
{
	struct utsname u;
	int a = 0, b = 0;
	uname(&u);
	sscanf(u.release, "%d.%d", &a, &b);
	return a > major || (a == major && b >= minor);
}

#define WORD(r, off) ((unsigned *)((r)->rings + (off)))
#define LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)

static int reg(int fd, unsigned op, void *arg, unsigned n) { return syscall(SYS_io_uring_register, fd, op, arg, n); }
static int enter(int fd, unsigned submit, unsigned min, unsigned flags) { return syscall(SYS_io_uring_enter, fd, submit, min, flags, NULL, 0); }

static void map_ring(struct ring *r)
{
	r->rings = MUST(mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING));
	r->sqes = MUST(mmap(NULL, r->sqe_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES));
}

static void make(struct ring *r, unsigned entries, unsigned flags, unsigned cq)
{
	memset(r, 0, sizeof *r);
	r->p.flags = flags;
	r->p.cq_entries = cq;
	r->fd = syscall(SYS_io_uring_setup, entries, &r->p);
	if (r->fd < 0 && errno == EINVAL && flags & IORING_SETUP_NO_SQARRAY) { /* before Linux 6.6 */
		make(r, entries, flags & ~IORING_SETUP_NO_SQARRAY, cq);
		return;
	}
	MUST(r->fd);
	r->sqe_bytes = flags & IORING_SETUP_SQE128 ? 128 : 64;
	r->cqe_bytes = flags & IORING_SETUP_CQE32 ? 32 : 16;
	r->size = r->p.cq_off.cqes + r->p.cq_entries * r->cqe_bytes;
	if (!(flags & IORING_SETUP_NO_SQARRAY) && r->size < r->p.sq_off.array + r->p.sq_entries * 4)
		r->size = r->p.sq_off.array + r->p.sq_entries * 4;
	r->sqe_size = r->p.sq_entries * r->sqe_bytes;
	map_ring(r);
	if (!(flags & IORING_SETUP_NO_SQARRAY))
		for (unsigned i = 0; i < r->p.sq_entries; i++)
			WORD(r, r->p.sq_off.array)[i] = i;
}

static struct io_uring_sqe *fill(struct ring *r, int op, int fd)
{
	struct io_uring_sqe *s = (void *)(r->sqes + (r->tail & (r->p.sq_entries - 1)) * r->sqe_bytes);
	memset(s, 0, r->sqe_bytes);
	s->opcode = op;
	s->fd = fd;
	s->user_data = r->next++;
	r->tail++;
	return s;
}

/* submits all that is filled; fd is the ring or, with IORING_ENTER_REGISTERED_RING, its index */
static void submit_by(struct ring *r, int fd, unsigned flags)
{
	unsigned n = r->tail - LOAD(WORD(r, r->p.sq_off.head));
	STORE(WORD(r, r->p.sq_off.tail), r->tail);
	int got = enter(fd, n, 0, flags | IORING_ENTER_GETEVENTS);
	if (got != (int)n)
		FAIL("io_uring_enter: %d (%s), want %u", got, strerror(errno), n);
}
static void submit(struct ring *r) { submit_by(r, r->fd, 0); }

static void nops(struct ring *r, int n)
{
	while (n-- > 0) {
		fill(r, IORING_OP_NOP, -1);
		submit(r);
	}
}

static unsigned unread(struct ring *r) { return LOAD(WORD(r, r->p.cq_off.tail)) - LOAD(WORD(r, r->p.cq_off.head)); }

/* the oldest completion */
struct done { uint64_t user_data; int res; };
static struct done take(struct ring *r, const char *what)
{
	struct done c = { .user_data = -1, .res = -9999 };
	unsigned head = LOAD(WORD(r, r->p.cq_off.head));
	if (!unread(r)) {
		FAIL("%s: no completion", what);
		return c;
	}
	memcpy(&c, r->rings + r->p.cq_off.cqes + (head & (r->p.cq_entries - 1)) * r->cqe_bytes, 12); /* struct io_uring_cqe */
	STORE(WORD(r, r->p.cq_off.head), head + 1);
	return c;
}

static void reap(struct ring *r, int n, const char *what)
{
	while (n-- > 0) {
		struct done c = take(r, what);
		if (c.user_data != r->seen || c.res != 0) {
			FAIL("%s: completion %lld with %d, want %lld", what, (long long)c.user_data, c.res, (long long)r->seen);
			return;
		}
		r->seen++;
	}
}

struct counts { unsigned sqh, sqt, cqh, cqt, dropped, overflow, flags; };
static struct counts count(struct ring *r)
{
	return (struct counts){ *WORD(r, r->p.sq_off.head), *WORD(r, r->p.sq_off.tail), *WORD(r, r->p.cq_off.head), *WORD(r, r->p.cq_off.tail),
		*WORD(r, r->p.sq_off.dropped), *WORD(r, r->p.cq_off.overflow), *WORD(r, r->p.cq_off.flags) };
}
static void same(struct ring *r, struct counts *was, const char *what)
{
	struct counts is = count(r);
	if (memcmp(&is, was, sizeof is))
		FAIL("%s: submission %u-%u completion %u-%u, were %u-%u and %u-%u", what, is.sqh, is.sqt, is.cqh, is.cqt, was->sqh, was->sqt, was->cqh, was->cqt);
	CHECK_EQ(*WORD(r, r->p.sq_off.ring_mask), r->p.sq_entries - 1, what);
	CHECK_EQ(*WORD(r, r->p.cq_off.ring_entries), r->p.cq_entries, what);
}

/* several rounds through all of a ring */
static void works(struct ring *r, const char *what)
{
	for (unsigned i = 0; i < 3 * r->p.cq_entries; i++) {
		nops(r, 1);
		reap(r, 1, what);
	}
	CHECK_EQ(unread(r), 0, what);
	while (unread(r) < r->p.cq_entries) /* and up to the last place, and no further */
		nops(r, 1);
	CHECK_EQ(*WORD(r, r->p.cq_off.overflow), 0, what);
	CHECK_EQ(LOAD(WORD(r, r->p.sq_off.flags)) & IORING_SQ_CQ_OVERFLOW, 0, what);
	reap(r, r->p.cq_entries, what);
}

#endif
