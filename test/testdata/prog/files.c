/* Regular files and directories: offset, access mode, status flags, what is read and written next; names with odd characters; an empty file, one at its end, one past its end; directories in the middle of readdir; O_PATH. */
#include "fixture.h"
#include <dirent.h>
#include <sys/uio.h>

static int make(const char *name, int flags, size_t len)
{
	int fd = MUST(open(fx_path(name), O_RDWR | O_CREAT, 0640));
	char *buf = malloc(len + 8);
	fx_fill(buf, len + 8, len);
	MUST(write(fd, buf, len));
	free(buf);
	close(fd);
	return MUST(open(fx_path(name), flags));
}

static int cmp(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int rd = make("read", O_RDONLY | O_CLOEXEC, 5000), wr = make("write", O_WRONLY, 3000), rw = make("a name\twith\n\"odd\\ chars (deleted)", O_RDWR, 4096);
	int ap = make("append", O_WRONLY | O_APPEND, 100), nb = make("nonblock", O_RDWR | O_NONBLOCK | O_NOATIME, 100), empty = make("empty", O_RDWR, 0);
	int past = make("past", O_RDWR, 10), sync = make("sync", O_RDWR | O_SYNC, 10), dsync = make("dsync", O_RDWR | O_DSYNC, 10);
	int path = MUST(open(fx_path("read"), O_PATH)), dirpath = MUST(open(fx_dir, O_PATH | O_DIRECTORY));
	MUST(lseek(rd, 1234, SEEK_SET));
	MUST(lseek(wr, 2999, SEEK_SET));
	MUST(lseek(rw, 4096, SEEK_SET));
	MUST(lseek(past, 1000000, SEEK_SET));
	symlink("read", fx_path("link"));
	int link = MUST(open(fx_path("link"), O_RDONLY));
	MUST(lseek(link, 77, SEEK_SET));
	/* a directory read half */
	mkdir(fx_path("dir"), 0700);
	for (int i = 0; i < 300; i++) {
		char n[64];
		snprintf(n, sizeof n, "dir/entry-with-a-rather-long-name-%03d", i);
		close(MUST(open(fx_path(n), O_CREAT | O_WRONLY, 0600)));
	}
	DIR *d = opendir(fx_path("dir"));
	static char *name[400];
	int n = 0, raw = MUST(open(fx_path("dir"), O_RDONLY | O_DIRECTORY));
	static char buf[2048];
	long first = MUST(syscall(SYS_getdents64, raw, buf, sizeof buf));
	CHECK(first > 0, "getdents64 gave %ld", first);
	off_t dirpos = lseek(raw, 0, SEEK_CUR);
	for (int i = 0; i < 150; i++)
		name[n++] = strdup(readdir(d)->d_name);
	int flags[] = { fcntl(rd, F_GETFL), fcntl(wr, F_GETFL), fcntl(rw, F_GETFL), fcntl(ap, F_GETFL), fcntl(nb, F_GETFL), fcntl(sync, F_GETFL), fcntl(dsync, F_GETFL), fcntl(path, F_GETFL), fcntl(dirpath, F_GETFL), fcntl(raw, F_GETFL) };
	int fds[] = { rd, wr, rw, ap, nb, sync, dsync, path, dirpath, raw };
	struct stat st[2];
	fx_ready();
	fx_wait_check();
	for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
		CHECK((fcntl(fds[i], F_GETFL) & FX_KEPT_FLAGS) == (flags[i] & FX_KEPT_FLAGS), "status flags of descriptor %d (%zu): %o, want %o", fds[i], i, fcntl(fds[i], F_GETFL), flags[i]);
	CHECK_EQ(fcntl(rd, F_GETFD), FD_CLOEXEC, "close-on-exec");
	CHECK_EQ(lseek(rd, 0, SEEK_CUR), 1234, "offset of the file read");
	CHECK_EQ(lseek(link, 0, SEEK_CUR), 77, "offset of the file opened through a link");
	CHECK_EQ(lseek(wr, 0, SEEK_CUR), 2999, "offset of the file written");
	CHECK_EQ(lseek(rw, 0, SEEK_CUR), 4096, "offset at the end");
	CHECK_EQ(lseek(past, 0, SEEK_CUR), 1000000, "offset past the end");
	CHECK_EQ(lseek(empty, 0, SEEK_CUR), 0, "offset of the empty file");
	char c[16], want[5008];
	fx_fill(want, 5008, 5000);
	CHECK(read(rd, c, 16) == 16 && !memcmp(c, want + 1234, 16), "what is read next");
	CHECK(write(rd, c, 1) < 0 && errno == EBADF, "the read-only descriptor can be written");
	CHECK(read(wr, c, 1) < 0 && errno == EBADF, "the write-only descriptor can be read");
	CHECK(write(wr, "0123456789", 10) == 10 && lseek(wr, 0, SEEK_END) == 3009, "write over the end");
	CHECK(read(rw, c, 1) == 0, "read at the end");
	CHECK(write(rw, "x", 1) == 1 && lseek(rw, 0, SEEK_CUR) == 4097, "write at the end");
	CHECK(write(ap, "appended", 8) == 8 && lseek(ap, 0, SEEK_CUR) == 108, "O_APPEND");
	CHECK(write(past, "x", 1) == 1 && lseek(past, 0, SEEK_END) == 1000001, "write past the end");
	CHECK(write(empty, "x", 1) == 1, "write to the empty file");
	CHECK(read(path, c, 1) < 0 && errno == EBADF, "the O_PATH descriptor can be read");
	CHECK(fstat(path, &st[0]) == 0 && fstat(rd, &st[1]) == 0 && st[0].st_ino == st[1].st_ino, "the O_PATH descriptor's file");
	CHECK(faccessat(dirpath, "empty", F_OK, 0) == 0, "the O_PATH directory: %s", strerror(errno));
	CHECK_EQ(lseek(raw, 0, SEEK_CUR), dirpos, "position of the directory");
	struct dirent *e;
	while ((e = readdir(d)))
		name[n++] = strdup(e->d_name);
	CHECK_EQ(n, 302, "directory entries");
	qsort(name, n, sizeof *name, cmp);
	for (int i = 1; i < n; i++)
		CHECK(strcmp(name[i - 1], name[i]), "entry %s came twice", name[i]);
	fx_finish();
}
