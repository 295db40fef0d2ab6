/*
 * fanotify: groups of every class and way of reporting; marks on inodes, one of them removed, on a mount, a file system and the mount namespace, with ignored masks of every sort; a group that was made
 * without CAP_SYS_ADMIN; one that epoll watches, and in which a child waits in read. Nothing is in a queue after the restore, and then exactly what happens is, with the rights of old; and who asks for
 * leave gets it.
 */
#include "fixture.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#ifndef FAN_REPORT_TARGET_FID
#define FAN_REPORT_TARGET_FID 0x1000
#endif
#ifndef FAN_RENAME
#define FAN_RENAME 0x10000000
#endif
#ifndef FAN_MARK_EVICTABLE
#define FAN_MARK_EVICTABLE 0x200
#endif
#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x400
#define FAN_MARK_IGNORE_SURV 0x440
#endif
#define REPORT_MNT 0x4000 /* FAN_REPORT_MNT, Linux 6.14 */
#define MARK_MNTNS 0x110
#define MNT_ATTACH_DETACH 0x3000000

static char groups[32][16384];

/* what fdinfo shows of a group, without the numbers of mounts, of their namespace, and of the file that was removed, which are others after a restore */
static void shown(int fd, char *to, size_t size)
{
	char path[64], line[1024];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(path, "re");
	*to = 0;
	while (f && fgets(line, sizeof line, f)) {
		if (strncmp(line, "fanotify ", 9))
			continue;
		char *from = strstr(line, "mflags:"), *end = strstr(line, " fhandle-bytes");
		if (end)
			*end = 0;
		if (!from)
			from = line;
		strncat(to, from, size - strlen(to) - 1);
	}
	if (f)
		fclose(f);
}

static void none(int fd, const char *what)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	CHECK_EQ(poll(&p, 1, 0), 0, what);
}

/* the next event has this mask, of a file that has this name at its end (NULL: any), or this name in its directory, by this process */
static void expect(int fd, uint64_t mask, const char *name, pid_t pid, const char *what)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	union { struct fanotify_event_metadata m; char room[1024]; } u;
	if (poll(&p, 1, 5000) != 1) {
		FAIL("%s: no event", what);
		return;
	}
	ssize_t n = read(fd, &u, sizeof u);
	if (n < (ssize_t)sizeof u.m || n != (ssize_t)u.m.event_len) {
		FAIL("%s: read: %zd (%s)", what, n, strerror(errno));
		return;
	}
	char got[PATH_MAX] = "", link[64];
	if (u.m.fd >= 0) {
		snprintf(link, sizeof link, "/proc/self/fd/%d", u.m.fd);
		ssize_t len = readlink(link, got, sizeof got - 1);
		got[len < 0 ? 0 : len] = 0;
		char *slash = strrchr(got, '/');
		memmove(got, slash ? slash + 1 : got, strlen(slash ? slash + 1 : got) + 1);
		if (mask & (FAN_OPEN_PERM | FAN_ACCESS_PERM)) {
			struct fanotify_response r = { .fd = u.m.fd, .response = FAN_ALLOW };
			MUST(write(fd, &r, sizeof r));
		}
		close(u.m.fd);
	} else if (n > (ssize_t)sizeof u.m) {
		struct fanotify_event_info_fid *info = (void *)(u.room + sizeof u.m);
		struct file_handle *h = (void *)info->handle;
		if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_DFID_NAME)
			snprintf(got, sizeof got, "%s", (char *)h->f_handle + h->handle_bytes);
	}
	if (u.m.mask != mask || u.m.pid != pid || (name && strcmp(got, name)))
		FAIL("%s: event %#llx of %s by %d, want %#llx of %s by %d", what, (unsigned long long)u.m.mask, got, u.m.pid, (unsigned long long)mask, name ? name : "anything", (int)pid);
}

static void make(const char *name, const char *data)
{
	int fd = MUST(open(fx_path(name), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
	MUST(write(fd, data, strlen(data)));
	close(fd);
}

/* makes a group in place of a descriptor, as somebody else with the same table */
static int unprivileged(void *place)
{
	if (syscall(SYS_setresuid, 65534, 65534, 65534))
		return 1;
	int fd = fanotify_init(FAN_REPORT_DFID_NAME | FAN_REPORT_FID, O_RDONLY);
	return fd < 0 || dup2(fd, *(int *)place) < 0 || close(fd);
}

#define MARK(fd, flags, mask, name) MUST(fanotify_mark(fd, FAN_MARK_ADD | (flags), mask, AT_FDCWD, name))

int main(int argc, char **argv)
{
	int all[16], n = 0, st;
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	MUST(mkdir(fx_path("d"), 0777));
	MUST(mkdir(fx_path("d/sub"), 0777));
	make("f", "f"), make("d/file", "file"), make("d/quiet", "quiet"), make("asked", "asked"), make("gone", "gone");
	int gone = MUST(open(fx_path("gone"), O_RDWR | O_CLOEXEC));

	int plain = all[n++] = MUST(fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC));
	MARK(plain, 0, FAN_CLOSE_WRITE | FAN_OPEN | FAN_ONDIR | FAN_EVENT_ON_CHILD, fx_path("d"));
	MARK(plain, FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_OPEN | FAN_CLOSE_WRITE, fx_path("d/quiet"));
	MARK(plain, 0, FAN_MODIFY, fx_path("gone"));
	MARK(plain, FAN_MARK_MOUNT, FAN_OPEN_EXEC, "/proc");
	MUST(unlink(fx_path("gone")));

	int content = all[n++] = MUST(fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS, O_RDWR | O_CLOEXEC | O_NOATIME));
	MARK(content, 0, FAN_OPEN_PERM | FAN_CLOSE_NOWRITE, fx_path("asked"));
	MARK(content, FAN_MARK_IGNORED_MASK, FAN_ACCESS, fx_path("f"));
	int pre = all[n++] = MUST(fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_NONBLOCK, O_RDONLY));
	MUST(fcntl(pre, F_SETFL, O_APPEND)); /* no longer O_NONBLOCK */

	int named = all[n++] = MUST(fanotify_init(FAN_REPORT_DFID_NAME | FAN_REPORT_FID | FAN_REPORT_TARGET_FID | FAN_REPORT_TID, O_RDONLY));
	MARK(named, 0, FAN_CREATE | FAN_DELETE | FAN_ONDIR, fx_path("d"));
	MARK(named, FAN_MARK_EVICTABLE, FAN_RENAME, fx_path("d/sub"));
	MARK(named, FAN_MARK_FILESYSTEM, FAN_MOVE_SELF, "/dev");
	if (fanotify_mark(named, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_CREATE | FAN_ONDIR, AT_FDCWD, fx_path("d/sub")) && errno != EINVAL)
		FAIL("FAN_MARK_IGNORE: %s", strerror(errno));

	int fid = all[n++] = MUST(fanotify_init(FAN_REPORT_FID, O_RDONLY));
	MARK(fid, 0, FAN_ATTRIB, fx_path("f"));
	int ns = fanotify_init(REPORT_MNT, O_RDONLY);
	if (ns >= 0) {
		all[n++] = ns;
		MARK(ns, MARK_MNTNS, MNT_ATTACH_DETACH, "/proc/self/ns/mnt");
	}
	/* made by an unprivileged child, that shares the table with us */
	int low = all[n++] = MUST(dup(fid));
	static char stack[65536] __attribute__((aligned(16)));
	pid_t child = MUST(clone(unprivileged, stack + sizeof stack, CLONE_FILES | SIGCHLD, &low));
	fx_reap_ok(child);
	MARK(low, 0, FAN_CREATE, fx_path("d"));

	int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u64 = 99 };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, named, &ev));
	int waited = all[n++] = MUST(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY));
	MARK(waited, 0, FAN_MODIFY, fx_path("f"));
	pid_t reader = MUST(fork());
	if (!reader) {
		struct fanotify_event_metadata m;
		fx_up();
		ssize_t got = read(waited, &m, sizeof m);
		CHECK(got == sizeof m && m.mask == FAN_MODIFY, "the child read %zd (%s)", got, strerror(errno));
		_exit(0);
	}
	fx_await_up(1);
	fx_await_state(reader, 'S');
	for (int i = 0; i < n; i++)
		shown(all[i], groups[i], sizeof groups[i]);
	fx_ready();
	fx_wait_check();

	for (int i = 0; i < n; i++) {
		char now[16384];
		shown(all[i], now, sizeof now);
		CHECK(!strcmp(now, groups[i]), "group %d has\n%sit had\n%s", i, now, groups[i]);
		none(all[i], "unread events");
	}
	CHECK_EQ(fcntl(plain, F_GETFL) & ~O_ACCMODE, 0, "flags");
	CHECK_EQ(fcntl(plain, F_GETFD), FD_CLOEXEC, "close-on-exec");
	CHECK_EQ(fcntl(content, F_GETFL) & ~O_ACCMODE, O_NONBLOCK, "flags");
	CHECK_EQ(fcntl(content, F_GETFD), 0, "close-on-exec");
	CHECK_EQ(fcntl(pre, F_GETFL) & ~O_ACCMODE, O_APPEND, "flags");
	CHECK_EQ(epoll_wait(ep, &ev, 1, 0), 0, "events of epoll");

	pid_t self = getpid();
	close(MUST(open(fx_path("d/quiet"), O_WRONLY | O_CLOEXEC)));
	none(plain, "events that are ignored");
	close(MUST(open(fx_path("d/file"), O_WRONLY | O_CLOEXEC)));
	expect(plain, FAN_OPEN | FAN_CLOSE_WRITE, "file", self, "open and close");
	MUST(write(gone, "x", 1));
	expect(plain, FAN_MODIFY, NULL, self, "a removed file");
	child = MUST(fork());
	if (!child) {
		close(MUST(open(fx_path("asked"), O_RDONLY | O_CLOEXEC)));
		close(MUST(creat(fx_path("d/new"), 0666)));
		_exit(0);
	}
	expect(content, FAN_OPEN_PERM, "asked", child, "leave to open");
	fx_reap_ok(child);
	expect(content, FAN_CLOSE_NOWRITE, "asked", child, "close");
	CHECK_EQ(epoll_wait(ep, &ev, 1, 2000), 1, "events of epoll");
	expect(named, FAN_CREATE, "new", child, "creat");
	expect(low, FAN_CREATE, "new", 0, "creat, for who may not know by whom");
	expect(plain, FAN_OPEN | FAN_CLOSE_WRITE, "new", child, "creat");
	MUST(chmod(fx_path("f"), 0640));
	expect(fid, FAN_ATTRIB, "", self, "chmod");
	int fd = MUST(open(fx_path("f"), O_RDWR | O_CLOEXEC));
	MUST(write(fd, "y", 1));
	close(fd);
	MUST(waitpid(reader, &st, 0));
	CHECK_EQ(st, 0, "the child that waited");
	for (int i = 0; i < n; i++)
		none(all[i], "more events");
	fx_finish();
}
