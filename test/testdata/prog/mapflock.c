/*
 * Locks by flock(2) whose open file only mappings hold: an exclusive one of a shared mapping that a child has too, a shared one of a private mapping of a part; and a file that is mapped so
 * without a lock. They last as long as the mappings do.
 */
#include "fixture.h"
#include <sys/file.h>

#define P 4096ul

static char *map(const char *name, int flags, int how)
{
	int fd = MUST(open(fx_path(name), flags | O_CREAT, 0600));
	int rw = MUST(open(fx_path(name), O_RDWR));
	MUST(ftruncate(rw, 4 * P));
	MUST(pwrite(rw, name, 1, 2 * P));
	close(rw);
	char *m = MUST(mmap(NULL, 4 * P, PROT_READ | (flags == O_RDWR ? PROT_WRITE : 0), flags == O_RDWR ? MAP_SHARED : MAP_PRIVATE, fd, 0));
	if (how)
		MUST(flock(fd, how));
	close(fd);
	return m;
}

/* can says whether another open file can be locked so. */
static int can(const char *name, int how)
{
	int fd = MUST(open(fx_path(name), O_RDONLY)), r = flock(fd, how | LOCK_NB);
	CHECK(!r || errno == EWOULDBLOCK, "flock: %s", strerror(errno));
	close(fd);
	return !r;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	char *exclusive = map("exclusive", O_RDWR, LOCK_EX), *shared = map("shared", O_RDONLY, LOCK_SH), *none = map("none", O_RDWR, 0);
	MUST(munmap(shared, P));
	pid_t kid = MUST(fork());
	if (!kid) {
		MUST(munmap(shared + P, 3 * P));
		fx_up();
		fx_wait_check();
		for (int i = 0; !fx_exists("unmapped") && i < 4000; i++)
			fx_pause_ms(5);
		_exit(exclusive[2 * P] != 'E' || can("exclusive", LOCK_SH));
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	CHECK(exclusive[2 * P] == 'e' && shared[2 * P] == 's' && none[2 * P] == 'n', "what the files hold: %c %c %c", exclusive[2 * P], shared[2 * P], none[2 * P]);
	CHECK(!can("exclusive", LOCK_SH), "the exclusive lock is lost");
	CHECK(!can("shared", LOCK_EX) && can("shared", LOCK_SH), "the shared lock is lost, or another one");
	CHECK(can("none", LOCK_EX), "a lock that was not there");
	exclusive[2 * P] = 'E';
	MUST(munmap(exclusive, 4 * P));
	MUST(munmap(shared + P, 3 * P));
	CHECK(can("shared", LOCK_EX), "the shared lock lives on without a mapping");
	CHECK(!can("exclusive", LOCK_SH), "the exclusive lock is lost with one of two mappings");
	close(MUST(open(fx_path("unmapped"), O_CREAT | O_WRONLY, 0600)));
	fx_reap_ok(kid);
	CHECK(can("exclusive", LOCK_EX), "the exclusive lock lives on without a mapping");
	fx_finish();
}
