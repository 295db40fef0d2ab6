/*
 * Shared memory: anonymous between parent and children (also parts that only one of them still maps, also at several places in one process),
 * a shared file mapping, a deleted file and a memfd mapped shared by descriptor; afterwards everyone sees what the others write.
 */
#include "fixture.h"

#define P 4096ul
struct ring { volatile uint64_t turn[4]; };

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	char *anon = MUST(mmap(NULL, 64 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	fx_fill(anon + P, 63 * P, 1);
	struct ring *ring = (void *)anon;
	int fd = MUST(open(fx_path("shared"), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
	MUST(ftruncate(fd, 16 * P));
	char *file = MUST(mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	fx_fill(file, 16 * P, 2);
	close(fd);
	char *holes = MUST(mmap(NULL, 256 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	for (int i = 0; i < 8; i++)
		fx_fill(holes + ((size_t)i << 25) + i * P, P, 50 + i);
	pid_t kid[3];
	for (int i = 0; i < 3; i++) {
		kid[i] = MUST(fork());
		if (kid[i])
			continue;
		if (i == 0) /* drops the first half: only the others map that */
			MUST(munmap(anon + 32 * P, 8 * P));
		if (i == 1) /* maps the middle a second time, at another place */
			MUST(mprotect(anon + 16 * P, 8 * P, PROT_READ));
		fx_up();
		fx_wait_check();
		for (int round = 1; round <= 50; round++) {
			while (ring->turn[i] < (uint64_t)round)
				fx_pause_ms(0), sched_yield();
			file[i] = (char)round;
			ring->turn[i + 1] = round;
		}
		fx_verify("shared anonymous memory in the child", anon + P, 31 * P, 1);
		_exit(0);
	}
	fx_await_up(3);
	/* the root keeps only the tail of one part that a child maps whole */
	char *tail = MUST(mremap(anon + 48 * P, 16 * P, 16 * P, MREMAP_MAYMOVE | MREMAP_FIXED, MUST(mmap(NULL, 16 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))));
	char *twice = MUST(mremap(anon + 8 * P, 0, 4 * P, MREMAP_MAYMOVE)); /* the same pages a second time */
	fx_ready();
	fx_wait_check();
	fx_verify("shared anonymous memory", anon + P, 47 * P, 1);
	fx_verify("moved part", tail, 16 * P, 1 + 47 * P / 8);
	fx_verify("second mapping", twice, 4 * P, 1 + 7 * P / 8);
	anon[9 * P] ^= 1;
	CHECK_EQ(twice[P], anon[9 * P], "a write at one place seen at the other");
	anon[9 * P] ^= 1;
	fx_verify("shared file mapping", file, 16 * P, 2);
	for (int i = 0; i < 8; i++)
		fx_verify("big shared memory with holes", holes + ((size_t)i << 25) + i * P, P, 50 + i);
	for (int round = 1; round <= 50; round++) {
		ring->turn[0] = round;
		while (ring->turn[3] < (uint64_t)round)
			sched_yield();
		for (int i = 0; i < 3; i++)
			CHECK_EQ(file[i], round, "what a child wrote to the shared file mapping");
	}
	for (int i = 0; i < 3; i++)
		fx_reap_ok(kid[i]);
	char buf[3];
	fd = MUST(open(fx_path("shared"), O_RDONLY));
	MUST(pread(fd, buf, 3, 0));
	CHECK(buf[0] == 50 && buf[1] == 50 && buf[2] == 50, "the file has %d %d %d", buf[0], buf[1], buf[2]);
	fx_finish();
}
