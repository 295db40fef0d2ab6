/*
 * What belongs to inodes that have no name: owner, permissions, times, extended attributes and ACLs, inode flags, write hints, whether linkat may give a name; of pipes owner,
 * permissions and times; and the write hint of a file that has a name. What the file system does not know is not asked for.
 */
#include "fixture.h"
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>

#ifndef F_SET_RW_HINT
#define F_GET_RW_HINT 1035
#define F_SET_RW_HINT 1036
#endif

enum { PLAIN, GUARDED, APPENDED, LINKABLE, EXCL, MEMFD, PIPE, PACKETS, N };
static const char *names[N] = { "plain", "immutable", "append-only", "linkable", "O_EXCL", "memfd", "pipe", "full pipe" };
static const char *attrs[] = { "user.colour", "user.empty", "trusted.crpipe", "security.crpipe", "system.posix_acl_access" };
enum { A = sizeof attrs / sizeof *attrs };

struct look {
	struct stat st;
	int flags, flagged;
	uint64_t hint;
	ssize_t len[A];
	char value[A][256];
};

static void see(int fd, struct look *l)
{
	memset(l, 0, sizeof *l);
	MUST(fstat(fd, &l->st));
	l->flagged = ioctl(fd, FS_IOC_GETFLAGS, &l->flags);
	if (fcntl(fd, F_GET_RW_HINT, &l->hint))
		l->hint = 99;
	for (int i = 0; i < A; i++)
		l->len[i] = fgetxattr(fd, attrs[i], l->value[i], sizeof l->value[i]);
}

static int gone(const char *name)
{
	int fd = MUST(open(fx_path(name), O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(write(fd, "some text", 9));
	MUST(unlink(fx_path(name)));
	return fd;
}

static void dress(int fd, int flags, uint64_t hint, int k)
{
	/* version 2; rwx for the owner, r-x for user 7000, r-- for the group, r-x as mask, nothing for others */
	static const char acl[] = "\2\0\0\0" "\1\0\7\0\377\377\377\377" "\2\0\5\0\x58\x1b\0\0" "\4\0\4\0\377\377\377\377" "\20\0\5\0\377\377\377\377" "\40\0\0\0\377\377\377\377";
	struct timespec t[2] = { { 1000000000 + k, 123456789 }, { 1100000000 + k, 987654321 } };
	fcntl(fd, F_SET_RW_HINT, &hint);
	MUST(fchown(fd, 7000 + k, 8000 + k));
	MUST(fchmod(fd, 04711));
	for (int i = 0; i < A - 1; i++)
		fsetxattr(fd, attrs[i], i == 1 ? "" : "va\0lue", i == 1 ? 0 : 6, 0);
	fsetxattr(fd, attrs[A - 1], acl, sizeof acl - 1, 0);
	MUST(futimens(fd, t));
	int have = 0;
	if (ioctl(fd, FS_IOC_GETFLAGS, &have) == 0) {
		have |= flags;
		ioctl(fd, FS_IOC_SETFLAGS, &have);
	}
}

/* whether linkat may give the file a name; the name is taken away again, and an O_TMPFILE file can be linked once only */
static int links(int fd)
{
	char from[64];
	snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
	int r = linkat(AT_FDCWD, from, AT_FDCWD, fx_path("a-name"), AT_SYMLINK_FOLLOW);
	if (r == 0)
		MUST(unlink(fx_path("a-name")));
	return r ? errno : 0;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int fd[N], p[2], other[2];
	fd[PLAIN] = gone("plain");
	fd[GUARDED] = gone("guarded");
	fd[APPENDED] = gone("appended");
	fd[LINKABLE] = open(fx_dir, O_TMPFILE | O_RDWR, 0600);
	fd[EXCL] = open(fx_dir, O_TMPFILE | O_RDWR | O_EXCL, 0600);
	fd[MEMFD] = MUST(memfd_create("memfd", MFD_ALLOW_SEALING));
	MUST(pipe(p));
	MUST(pipe(other));
	fd[PIPE] = p[0];
	fd[PACKETS] = other[1];
	MUST(fcntl(other[1], F_SETFL, O_DIRECT));
	MUST(write(other[1], "packet", 6));
	dress(fd[PLAIN], FS_NODUMP_FL | FS_NOATIME_FL, 2, PLAIN);
	dress(fd[GUARDED], FS_IMMUTABLE_FL | FS_NODUMP_FL, 3, GUARDED);
	dress(fd[APPENDED], FS_APPEND_FL, 0, APPENDED);
	dress(fd[MEMFD], FS_NODUMP_FL, 4, MEMFD);
	struct timespec t[2] = { { 1200000000, 1 }, { 1300000000, 2 } };
	for (int i = PIPE; i <= PACKETS; i++) {
		MUST(fchown(fd[i], 7000 + i, 8000 + i));
		MUST(fchmod(fd[i], 0640 + i));
		MUST(futimens(fd[i], t));
	}
	int named = MUST(open(fx_path("named"), O_RDWR | O_CREAT, 0600));
	uint64_t hint = 5, hint2 = 0;
	int hinted = fcntl(named, F_SET_RW_HINT, &hint);
	static struct look was[N], is;
	for (int i = 0; i < N; i++)
		if (fd[i] >= 0)
			see(fd[i], &was[i]);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < N; i++) {
		if (fd[i] < 0)
			continue;
		struct look *w = &was[i];
		see(fd[i], &is);
		CHECK(is.st.st_mode == w->st.st_mode, "%s: mode %o, want %o", names[i], is.st.st_mode, w->st.st_mode);
		CHECK(is.st.st_uid == w->st.st_uid && is.st.st_gid == w->st.st_gid, "%s: owner %d:%d, want %d:%d", names[i], is.st.st_uid, is.st.st_gid, w->st.st_uid, w->st.st_gid);
		CHECK(!memcmp(&is.st.st_atim, &w->st.st_atim, sizeof is.st.st_atim), "%s: access time %ld.%09ld, want %ld.%09ld", names[i], is.st.st_atim.tv_sec, is.st.st_atim.tv_nsec, w->st.st_atim.tv_sec, w->st.st_atim.tv_nsec);
		CHECK(!memcmp(&is.st.st_mtim, &w->st.st_mtim, sizeof is.st.st_mtim), "%s: modification time %ld.%09ld, want %ld.%09ld", names[i], is.st.st_mtim.tv_sec, is.st.st_mtim.tv_nsec, w->st.st_mtim.tv_sec, w->st.st_mtim.tv_nsec);
		CHECK(is.flagged == w->flagged && is.flags == w->flags, "%s: inode flags %x, want %x", names[i], is.flags, w->flags);
		CHECK(is.hint == w->hint, "%s: write hint %d, want %d", names[i], (int)is.hint, (int)w->hint);
		for (int k = 0; k < A; k++)
			CHECK(is.len[k] == w->len[k] && (is.len[k] < 0 || !memcmp(is.value[k], w->value[k], is.len[k])), "%s: %s has %zd bytes, want %zd, or other ones", names[i], attrs[k], is.len[k], w->len[k]);
	}
	if (hinted == 0) {
		fcntl(named, F_GET_RW_HINT, &hint2);
		CHECK_EQ(hint2, 5, "write hint of the named file");
	}
	CHECK_EQ(links(fd[PLAIN]), ENOENT, "linkat of a deleted file");
	if (fd[LINKABLE] >= 0)
		CHECK_EQ(links(fd[LINKABLE]), 0, "linkat of a file of O_TMPFILE");
	if (fd[EXCL] >= 0)
		CHECK_EQ(links(fd[EXCL]), ENOENT, "linkat of a file of O_TMPFILE with O_EXCL");
	if (was[GUARDED].flags & FS_IMMUTABLE_FL)
		CHECK(write(fd[GUARDED], "x", 1) < 0 && errno == EPERM, "an immutable file can be written");
	char c[16] = "";
	CHECK(pread(fd[GUARDED], c, 16, 0) == 9 && !strcmp(c, "some text"), "contents of the immutable file: %s", c);
	CHECK(read(other[0], c, 16) == 6 && !memcmp(c, "packet", 6), "the packet");
	/* or nobody could remove the directory's file system's blocks */
	for (int i = PLAIN; i <= APPENDED; i++)
		if (was[i].flagged == 0) {
			int f = was[i].flags & ~(FS_IMMUTABLE_FL | FS_APPEND_FL);
			ioctl(fd[i], FS_IOC_SETFLAGS, &f);
		}
	fx_finish();
}
