/*
 * Memory that has been asked to be swapped out (MADV_PAGEOUT) or is about to be given up (MADV_FREE, MADV_COLD), alone and shared with a child. Without swap it
 * is ordinary memory.
 */
#include "fixture.h"

#define P 4096ul
#define N 1024ul
#ifndef MADV_PAGEOUT
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	char *out = MUST(mmap(NULL, N * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	char *shared = MUST(mmap(NULL, N * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	char *free = MUST(mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fx_fill(out, N * P, 1);
	fx_fill(shared, N * P, 2);
	fx_fill(free, 16 * P, 3);
	MUST(madvise(out, N * P, MADV_PAGEOUT));
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_fill(out + 10 * P, 20 * P, 4);
		MUST(madvise(out, N * P, MADV_PAGEOUT));
		fx_up();
		fx_wait_check();
		fx_verify("swapped, the child's own", out + 10 * P, 20 * P, 4);
		fx_verify("swapped, in the child", out + 30 * P, (N - 30) * P, 1 + 30 * P / 8);
		fx_verify("swapped shared memory in the child", shared, N * P, 2);
		_exit(0);
	}
	fx_await_up(1);
	MUST(madvise(out, N * P, MADV_PAGEOUT));
	MUST(madvise(shared, N * P, MADV_PAGEOUT));
	MUST(madvise(out + 100 * P, 100 * P, MADV_COLD));
	MUST(madvise(free, 16 * P, MADV_FREE));
	int fd = MUST(open("/proc/self/pagemap", O_RDONLY));
	int swapped = 0;
	for (unsigned long i = 0; i < N; i++) {
		uint64_t e;
		MUST(pread(fd, &e, 8, ((uintptr_t)out / P + i) * 8));
		swapped += e >> 62 & 1;
	}
	close(fd);
	char text[32];
	snprintf(text, sizeof text, "%d", swapped);
	fx_touch("swapped", text);
	fx_ready();
	fx_wait_check();
	fx_verify("swapped", out, N * P, 1);
	fx_verify("swapped shared memory", shared, N * P, 2);
	for (int i = 0; i < 16; i++) /* each page is there or gone, as a whole */
		if (free[i * P])
			fx_verify("given up", free + i * P, P, 3 + i * P / 8);
		else
			fx_verify_zero("given up", free + i * P, P);
	fx_reap_ok(kid);
	fx_finish();
}
