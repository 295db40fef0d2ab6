/*
 * Mappings of memory without a name: memfds with and without a descriptor left, shared and private, for reading only, sealed in every way, with parts that
 * nobody maps; deleted files of disk and tmpfs that are open, mapped shared and mapped privately at once.
 */
#include "fixture.h"

#define P 4096ul
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

static int memfd(const char *name, int pages, uint64_t seed)
{
	int fd = MUST(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
	char *b = malloc(pages * P);
	fx_fill(b, pages * P, seed);
	MUST(pwrite(fd, b, pages * P, 0));
	free(b);
	return fd;
}

static char *map(int fd, int pages, int prot, int flags, int from)
{
	return MUST(mmap(NULL, pages * P, prot, flags, fd, from * P));
}

#define RW (PROT_READ | PROT_WRITE)

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	/* no descriptor left, and only the middle is mapped */
	int fd = memfd("gone", 64, 1);
	MUST(ftruncate(fd, 100 * P));
	char *gone = map(fd, 8, RW, MAP_SHARED, 8);
	char *twice = map(fd, 4, PROT_READ, MAP_SHARED, 10);
	close(fd);
	/* a descriptor, shared and private mappings */
	int kept = memfd("kept", 16, 2);
	char *shared = map(kept, 16, RW, MAP_SHARED, 0);
	char *private = map(kept, 16, RW, MAP_PRIVATE, 0);
	fx_fill(private + 3 * P, P, 3);
	memset(private + 5 * P, 0, P);
	/* sealed */
	int future = memfd("future", 4, 4);
	char *before = map(future, 4, RW, MAP_SHARED, 0);
	MUST(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	int sealed = memfd("sealed", 4, 5);
	MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_SEAL));
	char *copy = map(sealed, 4, RW, MAP_PRIVATE, 0);
	fx_fill(copy, P, 6);
	char *view = mmap(NULL, 4 * P, PROT_READ, MAP_SHARED, sealed, 0); /* since Linux 6.7 */
	/* deleted files: open, mapped shared and privately */
	int disk = MUST(open(fx_path("disk"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640));
	char *b = malloc(8 * P);
	fx_fill(b, 8 * P, 7);
	MUST(pwrite(disk, b, 8 * P, 0));
	char *dshared = map(disk, 8, RW, MAP_SHARED, 0);
	char *dprivate = map(disk, 8, RW, MAP_PRIVATE, 0);
	fx_fill(dprivate + P, P, 8);
	MUST(unlink(fx_path("disk")));
	char name[64];
	snprintf(name, sizeof name, "/dev/shm/crpipe-memfdmap-%d", (int)getpid());
	int tmp = MUST(open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
	MUST(unlink(name));
	MUST(ftruncate(tmp, 40 * P));
	MUST(pwrite(tmp, b, 8 * P, 20 * P));
	char *tshared = map(tmp, 2, RW, MAP_SHARED, 20);
	close(tmp);
	pid_t kid = MUST(fork());
	if (!kid) {
		MUST(mprotect(twice, 4 * P, PROT_READ));
		fx_up();
		fx_wait_check();
		fx_verify("memfd without a descriptor, in the child", gone, 8 * P, 1 + 8 * P / 8);
		gone[2 * P] ^= 0x11;
		shared[P] ^= 0x22;
		before[P] ^= 0x33;
		dshared[2 * P] ^= 0x44;
		tshared[0] ^= 0x55;
		_exit(0);
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	fx_reap_ok(kid);
	char c;
	CHECK_EQ((unsigned char)(gone[2 * P] ^ 0x11), (unsigned char)twice[0] ^ 0x11, "what the child wrote, at the other place");
	gone[2 * P] ^= 0x11;
	fx_verify("memfd without a descriptor", gone, 8 * P, 1 + 8 * P / 8);
	fx_verify("second mapping", twice, 4 * P, 1 + 10 * P / 8);
	/* the parts that nobody maps */
	char *whole = mremap(gone, 0, 8 * P, MREMAP_MAYMOVE);
	CHECK(whole != MAP_FAILED, "mapping it once more: %s", strerror(errno));
	char path[64];
	snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (unsigned long)gone, (unsigned long)gone + 8 * P);
	fd = open(path, O_RDWR);
	if (fd >= 0) {
		struct stat st;
		fstat(fd, &st);
		CHECK_EQ(st.st_size, 100 * P, "size of the memfd without a descriptor");
		char *all = map(fd, 100, PROT_READ, MAP_SHARED, 0);
		fx_verify("the whole of it", all, 64 * P, 1);
		fx_verify_zero("what it was made longer by", all + 64 * P, 36 * P);
		close(fd);
	}
	MUST(pread(kept, &c, 1, P));
	CHECK_EQ(c, shared[P], "the child's write, by the descriptor");
	shared[P] ^= 0x22;
	fx_verify("memfd with a descriptor", shared, 16 * P, 2);
	CHECK_EQ(private[P], shared[P], "a private page that nobody has written");
	fx_verify("private mapping of it", private, 3 * P, 2);
	fx_verify("own page of the private mapping", private + 3 * P, P, 3);
	fx_verify_zero("own page of zeros", private + 5 * P, P);
	CHECK_EQ(fcntl(future, F_GET_SEALS), F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW, "seals");
	before[P] ^= 0x33;
	fx_verify("mapping that may write although nobody else may", before, 4 * P, 4);
	CHECK(mmap(NULL, P, RW, MAP_SHARED, future, 0) == MAP_FAILED && errno == EPERM, "a sealed memfd can be mapped for writing");
	CHECK(fcntl(sealed, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_SEAL), "seals: %#x", fcntl(sealed, F_GET_SEALS));
	fx_verify("own page over a sealed memfd", copy, P, 6);
	fx_verify("sealed memfd", copy + P, 3 * P, 5 + P / 8);
	if (view != MAP_FAILED) {
		fx_verify("sealed memfd for reading", view, 4 * P, 5);
		CHECK(mprotect(view, P, RW) < 0 && errno == EACCES, "a mapping of a sealed memfd can be made writable");
	}
	MUST(pread(disk, &c, 1, 2 * P));
	CHECK_EQ(c, dshared[2 * P], "the child's write to the deleted file, by the descriptor");
	CHECK_EQ(c, dprivate[2 * P], "the same in the private mapping");
	dshared[2 * P] ^= 0x44;
	fx_verify("deleted file", dshared, 8 * P, 7);
	fx_verify("own page over the deleted file", dprivate + P, P, 8);
	tshared[0] ^= 0x55;
	fx_verify("deleted file of tmpfs", tshared, 2 * P, 7);
	fx_finish();
}
