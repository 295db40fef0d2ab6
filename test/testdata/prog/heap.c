/* The heap by brk grows and shrinks after the restore, malloc's arenas (also a thread's) go on, and a deep stack unwinds and grows. */
#include "fixture.h"

enum { DEPTH = 400 };

static void *mine;

static uint64_t deep(int n, int down)
{
	volatile uint64_t local[256];
	for (int i = 0; i < 256; i++)
		local[i] = fx_mix(n * 1000 + i);
	uint64_t sum = 0;
	if (n)
		sum = deep(n - 1, down);
	else if (down) {
		fx_up();
		if (getpid() == syscall(SYS_gettid))
			fx_ready(); /* the stack has its size now: whoever looks whether it changed finds it so */
		fx_wait_check();
		sum = deep(2 * DEPTH, 0); /* further than the stack has ever been */
		CHECK_EQ(sum, 2 * DEPTH + 1, "frames below");
		sum = 0;
	}
	for (int i = 0; i < 256; i++)
		if (local[i] != fx_mix(n * 1000 + i)) {
			FAIL("stack frame %d: word %d", n, i);
			break;
		}
	return sum + 1;
}

static void *thread(void *arg)
{
	(void)arg;
	mine = malloc(30000);
	fx_fill(mine, 30000, 9);
	CHECK_EQ(deep(DEPTH, 1), DEPTH + 1, "frames of the thread");
	fx_verify("the thread's heap", mine, 30000, 9);
	free(mine);
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	enum { N = 2000 };
	static void *block[N];
	pthread_t t;
	pthread_create(&t, NULL, thread, NULL);
	fx_await_up(1);
	for (int i = 0; i < N; i++) {
		block[i] = malloc(64 + i % 500 * 8);
		fx_fill(block[i], 64 + i % 500 * 8, i);
	}
	for (int i = 0; i < N; i += 3) {
		free(block[i]);
		block[i] = NULL;
	}
	char *top = sbrk(0);
	CHECK((uintptr_t)block[1] < (uintptr_t)top && top - (char *)block[1] < 64 << 20, "set-up: malloc does not use brk");
	if (deep(DEPTH, 1) != DEPTH + 1)
		FAIL("frames of the leader");
	pthread_join(t, NULL);
	CHECK_EQ((uintptr_t)sbrk(0), (uintptr_t)top, "the break");
	for (int i = 0; i < N; i++)
		if (block[i])
			fx_verify("heap block", block[i], 64 + i % 500 * 8, i);
	char *old = MUST(sbrk(4 << 20));
	CHECK_EQ((uintptr_t)old, (uintptr_t)top, "old break as sbrk gives it");
	fx_verify_zero("new heap", old, 4 << 20);
	memset(old, 1, 4 << 20);
	MUST(sbrk(-(4 << 20)));
	CHECK_EQ((uintptr_t)sbrk(0), (uintptr_t)top, "the break after shrinking");
	for (int i = 0; i < N; i++) {
		block[i] = realloc(block[i], 8000);
		memset(block[i], i, 8000);
	}
	for (int i = 0; i < N; i++)
		free(block[i]);
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	int heap = 0, stack = 0;
	while (fgets(line, sizeof line, f)) {
		heap += strstr(line, "[heap]") != NULL;
		stack += strstr(line, "[stack]") != NULL;
	}
	CHECK_EQ(heap > 0, 1, "[heap] is named in maps");
	CHECK_EQ(stack, 1, "[stack] is named in maps");
	fx_finish();
}
