/*
 * Directories that were removed while somebody is in them or has them open, alone, with all above them, shared by two processes and with
 * attributes; and deleted files of which another name is left somewhere else.
 */
#include "fixture.h"
#include <sys/xattr.h>

static struct stat was[4];

static void in(const char *dir)
{
	MUST(mkdir(dir, 0700));
	MUST(chdir(dir));
}

/* what is in a removed directory: nothing, and nothing can be made */
static void dead(int fd, const struct stat *st, const char *what)
{
	struct stat now;
	CHECK(fstat(fd, &now) == 0 && S_ISDIR(now.st_mode) && now.st_nlink == 0, "%s: %s, mode %o, %lu links", what, strerror(errno), now.st_mode, now.st_nlink);
	CHECK(now.st_mode == st->st_mode && now.st_uid == st->st_uid && now.st_gid == st->st_gid, "%s: mode %o, owner %u:%u", what, now.st_mode, now.st_uid, now.st_gid);
	CHECK(now.st_mtim.tv_sec == st->st_mtim.tv_sec && now.st_mtim.tv_nsec == st->st_mtim.tv_nsec, "%s: time of modification", what);
	CHECK(openat(fd, "new", O_CREAT | O_RDWR, 0600) == -1 && errno == ENOENT, "%s: a file can be made in it: %s", what, strerror(errno));
}

int main(int argc, char **argv)
{
	char text[64] = "", link[PATH_MAX] = "";
	struct stat st, other;
	fx_init(argc, argv);
	in(fx_path("outer"));
	in(fx_path("outer/inner")); /* where the root is; both go */
	MUST(mkdir(fx_path("open"), 0751));
	int fd = MUST(open(fx_path("open"), O_RDONLY | O_DIRECTORY)), same = MUST(dup(fd)), again = MUST(open(fx_path("open"), O_RDONLY | O_NONBLOCK)),
	    handle = MUST(open(fx_path("open"), O_PATH));
	MUST(fchown(fd, 12, 34));
	int labelled = fsetxattr(fd, "user.what", "removed", 7, 0) == 0;
	pid_t kid = MUST(fork());
	if (!kid) { /* is in the one that the root has open */
		MUST(fchdir(fd));
		fx_up();
		fx_wait_check();
		CHECK(stat(".", &st) == 0 && fstat(fd, &other) == 0 && st.st_ino == other.st_ino, "the child's directory is not the one that is open");
		_exit(0);
	}
	fx_await_up(1);
	MUST(rmdir(fx_path("open")));
	MUST(rmdir(fx_path("outer/inner")));
	MUST(rmdir(fx_path("outer")));
	struct timespec times[2] = { { 1000000000, 111 }, { 1100000000, 222 } };
	MUST(futimens(fd, times));
	int cwd = MUST(open(".", O_PATH));
	MUST(fstat(fd, &was[0]));
	MUST(fstat(cwd, &was[1]));

	/* deleted files with another name: below, beside and above where they were */
	MUST(mkdir(fx_path("a"), 0700));
	MUST(mkdir(fx_path("a/b"), 0700));
	MUST(mkdir(fx_path("c"), 0700));
	const char *from[] = { "name", "a/name", "a/b/name", "a/moved" }, *to[] = { "a/b/other", "c/other", "above", "c/d/moved" };
	int file[4];
	for (int i = 0; i < 4; i++) {
		file[i] = MUST(open(fx_path(from[i]), O_RDWR | O_CREAT, 0600));
		MUST(write(file[i], "0123456789", 10));
		MUST(lseek(file[i], 3 + i, SEEK_SET));
		if (i == 3) { /* and one that is renamed, with the directory that it was moved to */
			MUST(mkdir(fx_path("c/dir"), 0700));
			MUST(rename(fx_path("a/moved"), fx_path("c/dir/moved")));
			MUST(rename(fx_path("c/dir"), fx_path("c/d")));
			continue;
		}
		MUST(linkat(AT_FDCWD, fx_path(from[i]), AT_FDCWD, fx_path(to[i]), 0));
		MUST(unlink(fx_path(from[i])));
	}
	fx_ready();
	fx_wait_check();

	dead(fd, &was[0], "the open one");
	dead(again, &was[0], "the open one, opened again");
	dead(cwd, &was[1], "the working directory");
	MUST(fstat(fd, &st));
	MUST(fstat(again, &other));
	CHECK_EQ(other.st_ino, st.st_ino, "inode of the second");
	MUST(fstat(handle, &other));
	CHECK_EQ(other.st_ino, st.st_ino, "inode of the handle");
	CHECK_EQ(fcntl(again, F_GETFL) & O_NONBLOCK, O_NONBLOCK, "flags of the second");
	CHECK(stat(".", &st) == 0 && fstat(cwd, &other) == 0 && st.st_ino == other.st_ino, "the working directory is not the one that is open");
	CHECK(getcwd(link, sizeof link) == NULL && errno == ENOENT, "the working directory has a name: %s", link);
	MUST(fstat(same, &other));
	if (labelled)
		CHECK(fgetxattr(fd, "user.what", text, sizeof text) == 7 && !strcmp(text, "removed"), "extended attribute: %s", text);
	snprintf(text, sizeof text, "/proc/self/fd/%d", fd);
	MUST(readlink(text, link, sizeof link - 1));
	CHECK(!strncmp(link, fx_path("open"), strlen(fx_path("open"))) && strstr(link, " (deleted)"), "the name of the open one: %s", link);
	for (int i = 0; i < 4; i++) {
		CHECK_EQ(lseek(file[i], 0, SEEK_CUR), 3 + i, "position");
		MUST(fstat(file[i], &st));
		MUST(stat(fx_path(to[i]), &other));
		CHECK(st.st_ino == other.st_ino && st.st_nlink == 1, "%s is another file", to[i]);
	}
	fx_reap_ok(kid);
	fx_finish();
}
