/* Deleted files that are still open: contents, size, offset, holes; shared by two processes; mapped private; one whose name another file has now; one that still has another link. */
#include "fixture.h"

#define P 4096ul

static int make(const char *name, size_t len, uint64_t seed)
{
	int fd = MUST(open(fx_path(name), O_RDWR | O_CREAT | O_EXCL, 0640));
	char *buf = malloc(len);
	fx_fill(buf, len, seed);
	MUST(write(fd, buf, len));
	free(buf);
	return fd;
}

static void contents(const char *what, int fd, size_t len, uint64_t seed)
{
	struct stat st;
	char *buf = malloc(len);
	MUST(fstat(fd, &st));
	CHECK(st.st_size == (off_t)len, "%s: size %ld, want %zu", what, (long)st.st_size, len);
	CHECK(pread(fd, buf, len, 0) == (ssize_t)len, "%s: short read", what);
	fx_verify(what, buf, len, seed);
	free(buf);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	int plain = make("plain", 100000, 1), shared = make("shared", 8 * P, 2), replaced = make("replaced", 5000, 3), linked = make("linked", 6000, 4), empty = make("empty", 8, 5), mapped = make("mapped", 8 * P, 6);
	MUST(link(fx_path("linked"), fx_path("other-name")));
	const char *gone[] = { "plain", "shared", "replaced", "linked", "empty", "mapped" };
	for (int i = 0; i < 6; i++)
		MUST(unlink(fx_path(gone[i])));
	int newer = make("replaced", 123 * 8, 7);
	int sparse = MUST(open(fx_path("sparse"), O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(sparse, 1ll << 33));
	MUST(pwrite(sparse, "in the middle", 13, 1ll << 32));
	MUST(unlink(fx_path("sparse")));
	int ro = MUST(open("/proc/self/fd/3", O_RDONLY)); /* the same inode, opened once more, by way of the first descriptor */
	CHECK_EQ(plain, 3, "set-up: first descriptor");
	MUST(lseek(ro, 99, SEEK_SET));
	MUST(lseek(plain, 50000, SEEK_SET));
	MUST(ftruncate(empty, 0));
	MUST(fchmod(plain, 0604));
	char *mp = MUST(mmap(NULL, 8 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, mapped, 0));
	fx_fill(mp + 2 * P, P, 8);
	close(mapped);
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_up();
		fx_wait_check();
		for (int i = 0; i < 2000 && !fx_exists("moved"); i++)
			fx_pause_ms(5);
		char c[4];
		CHECK(read(shared, c, 4) == 4 && !memcmp(c, "ABCD", 4), "what the parent wrote into the shared deleted file: %.4s", c);
		_exit(0);
	}
	fx_await_up(1);
	struct stat st, st2;
	fx_ready();
	fx_wait_check();
	contents("deleted file", plain, 100000, 1);
	CHECK_EQ(lseek(plain, 0, SEEK_CUR), 50000, "offset");
	CHECK_EQ(lseek(ro, 0, SEEK_CUR), 99, "offset of the second open");
	MUST(fstat(plain, &st));
	MUST(fstat(ro, &st2));
	CHECK(st.st_ino == st2.st_ino && st.st_dev == st2.st_dev, "two descriptors of one deleted file have two files now");
	CHECK_EQ(st.st_nlink, 0, "links of the deleted file");
	CHECK_EQ(st.st_mode & 07777, 0604, "mode of the deleted file");
	CHECK(write(ro, "x", 1) < 0 && errno == EBADF, "the read-only descriptor can be written");
	contents("replaced file", replaced, 5000, 3);
	contents("the new file of that name", newer, 123 * 8, 7);
	contents("deleted file with another name", linked, 6000, 4);
	MUST(fstat(linked, &st));
	MUST(stat(fx_path("other-name"), &st2));
	CHECK(st.st_ino == st2.st_ino && st.st_nlink == 1, "the other name is another file: inode %lu, %lu, %lu links", st.st_ino, st2.st_ino, st.st_nlink);
	MUST(fstat(empty, &st));
	CHECK_EQ(st.st_size, 0, "size of the empty deleted file");
	MUST(fstat(sparse, &st));
	CHECK_EQ(st.st_size, 1ll << 33, "size of the sparse deleted file");
	CHECK(st.st_blocks < 2048, "the sparse file has %ld blocks", (long)st.st_blocks);
	char c[16] = "";
	CHECK(pread(sparse, c, 13, 1ll << 32) == 13 && !strcmp(c, "in the middle"), "the sparse file's contents: %s", c);
	fx_verify("deleted file mapped private", mp, 2 * P, 6);
	fx_verify("deleted file mapped private, dirtied", mp + 2 * P, P, 8);
	fx_verify("deleted file mapped private", mp + 3 * P, 5 * P, 6 + 3 * P / 8);
	for (int i = 0; i < 6; i++)
		if (i != 2)
			CHECK(!fx_exists(gone[i]), "%s is back", gone[i]);
	MUST(lseek(shared, 4, SEEK_SET));
	CHECK(pwrite(shared, "ABCD", 4, 4) == 4, "write");
	fx_touch("moved", "");
	fx_reap_ok(kid);
	CHECK_EQ(lseek(shared, 0, SEEK_CUR), 8, "shared offset, after the child's read");
	fx_finish();
}
