/* /dev/null, zero, full, random, urandom and files of /proc: they are what they were, with flags, and for /proc the offset and the right task behind "self". */
#include "fixture.h"
#include <sys/sysmacros.h>

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	static const struct { const char *path; unsigned minor; int flags; } dev[] = {
		{ "/dev/null", 3, O_RDWR }, { "/dev/zero", 5, O_RDONLY | O_CLOEXEC }, { "/dev/full", 7, O_WRONLY | O_NONBLOCK }, { "/dev/random", 8, O_RDONLY }, { "/dev/urandom", 9, O_RDONLY | O_NONBLOCK } };
	int fd[5], flags[5];
	for (int i = 0; i < 5; i++) {
		fd[i] = MUST(open(dev[i].path, dev[i].flags));
		flags[i] = fcntl(fd[i], F_GETFL);
	}
	char *zmap = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd[1], 0));
	fx_fill(zmap + 4096, 4096, 1);
	int status = MUST(open("/proc/self/status", O_RDONLY)), stat_fd = MUST(open("/proc/self/stat", O_RDONLY)), maps = MUST(open("/proc/self/maps", O_RDONLY));
	int ver = MUST(open("/proc/version", O_RDONLY)), dir = MUST(open("/proc/self/fd", O_RDONLY | O_DIRECTORY)), sys = MUST(open("/proc/sys/kernel/ostype", O_RDONLY));
	int mine = MUST(open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	char b[4096], c[64];
	MUST(read(ver, b, 6));
	pid_t kid = MUST(fork()), seen = 0;
	if (!kid) {
		close_range(3, ~0u, 0); /* what is open of /proc/self belongs to the parent alone */
		for (;;)
			pause();
	}
	snprintf(c, sizeof c, "/proc/%d/stat", kid);
	int other = MUST(open(c, O_RDONLY)); /* another task's */
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < 5; i++) {
		struct stat st;
		MUST(fstat(fd[i], &st));
		CHECK(S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, dev[i].minor), "%s is %o %u:%u now", dev[i].path, st.st_mode, major(st.st_rdev), minor(st.st_rdev));
		CHECK_EQ(fcntl(fd[i], F_GETFL) & FX_KEPT_FLAGS, flags[i] & FX_KEPT_FLAGS, dev[i].path);
		CHECK_EQ(fcntl(fd[i], F_GETFD), dev[i].flags & O_CLOEXEC ? FD_CLOEXEC : 0, "close-on-exec");
	}
	CHECK(read(fd[0], b, 1) == 0 && write(fd[0], b, 1) == 1, "/dev/null");
	memset(b, 1, 64);
	CHECK(read(fd[1], b, 64) == 64, "/dev/zero");
	fx_verify_zero("/dev/zero", b, 64);
	CHECK(write(fd[2], b, 1) < 0 && errno == ENOSPC, "/dev/full: %s", strerror(errno));
	CHECK(read(fd[3], b, 16) > 0, "/dev/random: %s", strerror(errno));
	CHECK(read(fd[4], b, 16) == 16, "/dev/urandom");
	fx_verify_zero("mapping of /dev/zero", zmap, 4096);
	fx_verify("mapping of /dev/zero, dirtied", zmap + 4096, 4096, 1);
	ssize_t n = read(stat_fd, b, sizeof b - 1);
	CHECK(n > 0 && atoi(b) == getpid(), "/proc/self/stat is of %d now: %s", atoi(b), strerror(errno));
	n = read(status, b, sizeof b - 1);
	b[n > 0 ? n : 0] = 0;
	char *p = strstr(b, "\nPid:\t");
	CHECK(p && atoi(p + 6) == getpid(), "/proc/self/status is of %d now", p ? atoi(p + 6) : -1);
	CHECK(read(maps, b, 64) == 64, "/proc/self/maps: %s", strerror(errno));
	n = read(ver, b, 8);
	CHECK(n == 8 && !memcmp(b, "version ", 7), "offset in /proc/version: '%.8s'", b);
	CHECK(read(sys, b, 6) == 6 && !memcmp(b, "Linux\n", 6), "/proc/sys/kernel/ostype");
	snprintf(b, sizeof b, "/proc/self/fd/%d", dir);
	n = readlink(b, c, sizeof c - 1);
	c[n > 0 ? n : 0] = 0;
	snprintf(b, sizeof b, "/proc/%d/fd", getpid());
	CHECK(!strcmp(b, c), "the open /proc/self/fd is %s now", c);
	CHECK(faccessat(dir, "0", F_OK, AT_SYMLINK_NOFOLLOW) == 0, "the open /proc/self/fd has no entry 0: %s", strerror(errno));
	CHECK(faccessat(mine, "status", F_OK, 0) == 0, "the open /proc/self: %s", strerror(errno));
	n = read(other, b, sizeof b - 1);
	CHECK(n > 0 && (seen = atoi(b)) == kid, "the child's stat is of %d now: %s", seen, strerror(errno));
	MUST(kill(kid, SIGKILL));
	waitpid(kid, NULL, 0);
	CHECK(pread(other, b, 64, 0) < 0 && errno == ESRCH, "stat of the dead child: %s", strerror(errno));
	fx_finish();
}
