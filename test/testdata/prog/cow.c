/*
 * Copy-on-write memory of a tree: pages that parent, children and a grandchild have shared since the fork they share again afterwards, everybody has the
 * contents that are its own, and a write is seen by nobody else. Also pages of a private file mapping, a stack, memory that only siblings share because
 * the parent has written to it since, mappings that a child has cut, moved, protected or advised, and zeros written over what the others have.
 */
#include "fixture.h"

#define P 4096ul
#define N 512ul /* pages of the big one */
#define KIDS 4

/* whether a page is mapped by somebody else too: bit 56 of pagemap is for a page that is mapped once */
static int shared(const volatile void *at)
{
	static int fd = -1;
	static pid_t of;
	uint64_t e = 0;
	if (of != getpid()) {
		fd = MUST(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
		of = getpid();
	}
	MUST(pread(fd, &e, 8, (uintptr_t)at / P * 8));
	return (e >> 63 & 1) && !(e >> 56 & 1) && !(e >> 61 & 1);
}

static int count(const char *at, unsigned long pages)
{
	int n = 0;
	for (unsigned long i = 0; i < pages; i++)
		n += shared(at + i * P);
	return n;
}

struct box {
	volatile int go, compared, done[KIDS + 2];
	int before[KIDS + 2][4];
} *box;

static char *big, *file, *siblings, *alone;

static void look(int who)
{
	box->before[who][0] = count(big, N);
	box->before[who][1] = count(file, 16);
	box->before[who][2] = count(siblings, 64);
}

static void compare(int who)
{
	/*
	 * Of two versions of a page the one of fewer processes, here what child 1 and its child have written, may be kept for each of them; what child
	 * 3 has advised, irrevocably, may be a copy.
	 */
	int n = count(big, N), want = box->before[who][0], few = who == 1 || who == KIDS ? 4 : who == 3 ? 8 : 0;
	CHECK(n <= want && n >= want - few, "%d pages are shared, before %d", n, want);
	CHECK_EQ(count(file, 16), box->before[who][1], "shared pages of a private file mapping");
	CHECK_EQ(count(siblings, 64), box->before[who][2], "pages shared among siblings");
	/* nobody writes or ends before everybody has looked */
	__atomic_add_fetch(&box->compared, 1, __ATOMIC_SEQ_CST);
	while (box->compared < KIDS + 2)
		fx_pause_ms(2);
}

/* what process who wrote into the big one: pages 8*who.. of it */
static void own(int who)
{
	for (int i = 0; i < 3; i++)
		fx_fill(big + (8 * who + 8 + i) * P, P, 1000 * who + i);
	memset(big + (8 * who + 8 + 3) * P, 0, P);
	fx_fill(file + (who + 4) * P, P, 500 + who);
	memset(file + 15 * P, 0, who % 2 * P);
}

static void verify(int who, int parent)
{
	for (unsigned long i = 0; i < N; i++) {
		unsigned long k = 8 * who + 8, q = 8 * parent + 8;
		if (i >= k && i < k + 3)
			fx_verify("own page", big + i * P, P, 1000 * who + (i - k));
		else if (i == k + 3)
			fx_verify_zero("own page of zeros", big + i * P, P);
		else if (parent >= 0 && i >= q && i < q + 3)
			fx_verify("parent's page", big + i * P, P, 1000 * parent + (i - q));
		else if (parent >= 0 && i == q + 3)
			fx_verify_zero("parent's page of zeros", big + i * P, P);
		else
			fx_verify("page of all", big + i * P, P, 7 + i * P / 8);
	}
	fx_verify("page of the file", file, P, 90);
	fx_verify("page of the file, written by the root", file + P, P, 91);
	fx_verify("own page over the file", file + (who + 4) * P, P, 500 + who);
	if (who % 2)
		fx_verify_zero("own zeros over the file", file + 15 * P, P);
}

static void kid(int who, int parent)
{
	char *stack = alloca(16 * P);
	fx_fill(stack, 16 * P, 70 + who);
	own(who);
	if (who == 1) { /* protects a part, advises another */
		MUST(mprotect(big + 100 * P, 8 * P, PROT_READ));
		MUST(madvise(big + 120 * P, 8 * P, MADV_DONTDUMP));
		MUST(madvise(big + 200 * P, 8 * P, MADV_DONTFORK));
		MUST(mlock(alone, 2 * P));
	}
	if (who == 2) { /* has unmapped a part, and has something else there */
		MUST(munmap(big + 300 * P, 20 * P));
		MUST(mmap(big + 305 * P, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0));
		fx_fill(big + 305 * P, 4 * P, 7 + 305 * P / 8);
	}
	if (who == 3) { /* advises a part, drops another */
		MUST(madvise(big + 440 * P, 8 * P, MADV_NOHUGEPAGE));
		MUST(madvise(big + 400 * P, 4 * P, MADV_DONTNEED));
		fx_fill(big + 400 * P, 4 * P, 7 + 400 * P / 8);
	}
	if (who == 0) { /* has moved one */
		char *to = MUST(mmap(NULL, 4 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		alone = MUST(mremap(alone, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, to));
	}
	pid_t grand = 0;
	if (who == 1) {
		MUST(madvise(big + 200 * P, 8 * P, MADV_DOFORK));
		grand = MUST(fork());
		if (!grand) {
			own(KIDS);
			look(KIDS);
			box->done[KIDS] = 1;
			while (!box->go)
				fx_pause_ms(5);
			look(KIDS);
			fx_up();
			fx_wait_check();
			compare(KIDS);
			verify(KIDS, 1);
			big[0] ^= 1;
			_exit(0);
		}
	}
	box->done[who] = 1;
	while (!box->go)
		fx_pause_ms(5);
	look(who);
	fx_up();
	fx_wait_check();
	compare(who);
	if (who == 2) {
		fx_verify("the other mapping", big + 305 * P, 4 * P, 7 + 305 * P / 8);
		MUST(mmap(big + 300 * P, 5 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
		fx_fill(big + 300 * P, 5 * P, 7 + 300 * P / 8);
		MUST(mmap(big + 309 * P, 11 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
		fx_fill(big + 309 * P, 11 * P, 7 + 309 * P / 8);
	}
	verify(who, parent);
	fx_verify("memory of the siblings", siblings, 64 * P, 33);
	fx_verify("memory that one has moved", alone, 4 * P, 44);
	fx_verify("stack", stack, 16 * P, 70 + who);
	for (unsigned long i = 0; i < N; i += 3)
		if (who != 1 || i < 100 || i >= 108)
			big[i * P + 100] ^= 1 + who; /* seen by nobody else */
	if (grand)
		fx_reap_ok(grand);
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pid_t kids[KIDS];
	box = MUST(mmap(NULL, sizeof *box, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	big = MUST(mmap(NULL, N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	siblings = MUST(mmap(NULL, 64 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	alone = MUST(mmap(NULL, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	int fd = MUST(open(fx_path("mapped"), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
	char *b = malloc(16 * P);
	fx_fill(b, 16 * P, 90);
	MUST(pwrite(fd, b, 16 * P, 0));
	file = MUST(mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	close(fd);
	fx_fill(big, N * P, 7);
	fx_fill(file + P, P, 91);
	fx_fill(file + 2 * P, P, 92);
	fx_fill(siblings, 64 * P, 33);
	fx_fill(alone, 4 * P, 44);
	for (int i = 0; i < KIDS; i++) {
		kids[i] = MUST(fork());
		if (!kids[i])
			kid(i, -1);
	}
	fx_fill(siblings, 64 * P, 34);
	own(KIDS + 1);
	for (int i = 0; i <= KIDS; i++)
		while (!box->done[i])
			fx_pause_ms(5);
	box->go = 1;
	look(KIDS + 1);
	CHECK(box->before[KIDS + 1][0] > 400, "set-up: only %d pages are shared", box->before[KIDS + 1][0]);
	fx_await_up(KIDS + 1);
	fx_ready();
	fx_wait_check();
	compare(KIDS + 1);
	for (int i = 0; i < KIDS; i++)
		CHECK(box->before[i][2] == 64, "set-up: siblings share only %d pages", box->before[i][2]);
	verify(KIDS + 1, -1);
	fx_verify("the root's version", siblings, 64 * P, 34);
	for (int i = 0; i < KIDS; i++)
		fx_reap_ok(kids[i]);
	verify(KIDS + 1, -1);
	fx_finish();
}
