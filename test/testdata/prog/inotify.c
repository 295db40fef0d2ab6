/*
 * inotify: watches of directories and files with gaps in their numbers, one by a symbolic link itself, with IN_ONESHOT and IN_EXCL_UNLINK; an empty instance; one that two processes share, in which
 * one waits in read; one that epoll watches; one whose next number is below its highest. Nothing is in a queue after the restore, and then exactly what happens is.
 */
#include "fixture.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#ifndef INOTIFY_IOC_SETNEXTWD
#define INOTIFY_IOC_SETNEXTWD _IOW('I', 0, int32_t)
#endif

static char text[8192], before[8192];

/* the watches as fdinfo shows them */
static void watches(int fd, char *to, size_t size)
{
	char path[64], line[1024];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(path, "re");
	*to = 0;
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, "inotify ", 8))
			strncat(to, line, size - strlen(to) - 1);
	if (f)
		fclose(f);
}

static int unread(int fd)
{
	int n = -1;
	MUST(ioctl(fd, FIONREAD, &n));
	return n;
}

/* the next event is this one */
static uint32_t expect(int fd, int wd, uint32_t mask, const char *name, const char *what)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	union { struct inotify_event e; char room[sizeof(struct inotify_event) + NAME_MAX + 1]; } u;
	size_t len = *name ? (strlen(name) + 1 + 15) / 16 * 16 : 0;
	if (poll(&p, 1, 2000) != 1) {
		FAIL("%s: no event", what);
		return 0;
	}
	/* room for this one alone */
	ssize_t n = read(fd, u.room, sizeof(struct inotify_event) + len);
	if (n != (ssize_t)(sizeof(struct inotify_event) + len)) {
		FAIL("%s: read: %zd (%s)", what, n, strerror(errno));
		return 0;
	}
	if (u.e.wd != wd || u.e.mask != mask || strcmp(len ? u.e.name : "", name))
		FAIL("%s: event wd %d mask %#x name %s, want wd %d mask %#x name %s", what, u.e.wd, u.e.mask, u.e.len ? u.e.name : "", wd, mask, name);
	return u.e.cookie;
}

static void none(int fd, const char *what) { CHECK_EQ(unread(fd), 0, what); }

static void make(const char *name, const char *data)
{
	int fd = MUST(open(fx_path(name), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
	MUST(write(fd, data, strlen(data)));
	close(fd);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	MUST(mkdir(fx_path("d"), 0777));
	MUST(mkdir(fx_path("d/sub dir\n"), 0777));
	make("d/file", "x");
	make("f", "y");
	MUST(link(fx_path("f"), fx_path("d/hard")));
	MUST(symlink("nowhere", fx_path("l")));

	int in = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	int wd_d = MUST(inotify_add_watch(in, fx_path("d"), IN_ALL_EVENTS));
	int wd_gone = MUST(inotify_add_watch(in, fx_path("f"), IN_MODIFY));
	MUST(inotify_rm_watch(in, wd_gone));
	expect(in, wd_gone, IN_IGNORED, "", "set-up");
	int wd_f = MUST(inotify_add_watch(in, fx_path("f"), IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE));
	if (ioctl(in, INOTIFY_IOC_SETNEXTWD, 1000000000) && errno != ENOTTY)
		FAIL("INOTIFY_IOC_SETNEXTWD: %s", strerror(errno));
	int wd_sub = MUST(inotify_add_watch(in, fx_path("d/sub dir\n"), IN_CREATE | IN_DELETE | IN_EXCL_UNLINK | IN_ONLYDIR));
	int wd_l = MUST(inotify_add_watch(in, fx_path("l"), IN_ATTRIB | IN_DONT_FOLLOW));
	int wd_file = MUST(inotify_add_watch(in, fx_path("d/file"), IN_MODIFY | IN_ONESHOT));
	/* the last one is removed: its number is not used again */
	int wd_last = MUST(inotify_add_watch(in, fx_path("."), IN_DELETE_SELF));
	MUST(inotify_rm_watch(in, wd_last));
	expect(in, wd_last, IN_IGNORED, "", "set-up");

	int empty = MUST(inotify_init1(0));
	MUST(fcntl(empty, F_SETFL, O_APPEND));

	int high = MUST(inotify_init1(IN_NONBLOCK));
	int wd_high, wd_max;
	if (ioctl(high, INOTIFY_IOC_SETNEXTWD, INT_MAX) && errno != ENOTTY)
		FAIL("INOTIFY_IOC_SETNEXTWD: %s", strerror(errno));
	wd_max = MUST(inotify_add_watch(high, fx_path("d"), IN_DELETE_SELF | IN_DELETE));
	wd_high = MUST(inotify_add_watch(high, fx_path("f"), IN_OPEN)); /* numbers begin anew */

	/* in epoll, and shared with a child that waits in a read */
	int shared = MUST(inotify_init1(0));
	int wd_shared = MUST(inotify_add_watch(shared, fx_path("d"), IN_MOVED_FROM));
	int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u64 = 99 };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, in, &ev));
	pid_t child = MUST(fork());
	if (!child) {
		char room[512];
		struct inotify_event *e = (void *)room;
		fx_up();
		ssize_t n = read(shared, room, sizeof room);
		if (n < 0)
			FAIL("read in the child: %s", strerror(errno));
		else if (e->wd != wd_shared || e->mask != IN_MOVED_FROM || strcmp(e->name, "file"))
			FAIL("the child got wd %d mask %#x name %s", e->wd, e->mask, e->len ? e->name : "");
		_exit(0);
	}
	fx_await_up(1);
	fx_await_state(child, 'S');
	watches(in, before, sizeof before);
	static char before_high[8192];
	watches(high, before_high, sizeof before_high);
	none(in, "set-up");
	fx_ready();
	fx_wait_check();

	none(in, "unread events");
	none(high, "unread events");
	none(shared, "unread events");
	none(empty, "unread events");
	watches(in, text, sizeof text);
	CHECK(!strcmp(text, before), "watches are\n%swere\n%s", text, before);
	watches(high, text, sizeof text);
	CHECK(!strcmp(text, before_high), "watches are\n%swere\n%s", text, before_high);
	CHECK_EQ(fcntl(in, F_GETFL), O_NONBLOCK, "flags");
	CHECK_EQ(fcntl(in, F_GETFD), FD_CLOEXEC, "close-on-exec");
	CHECK_EQ(fcntl(empty, F_GETFL), O_APPEND, "flags of the empty one");
	CHECK_EQ(fcntl(empty, F_GETFD), 0, "close-on-exec of the empty one");
	CHECK(read(in, text, sizeof text) == -1 && errno == EAGAIN, "a read of an empty queue");
	CHECK_EQ(epoll_wait(ep, &ev, 1, 0), 0, "events of epoll");

	MUST(chmod(fx_path("f"), 0644));
	CHECK_EQ(epoll_wait(ep, &ev, 1, 2000), 1, "events of epoll");
	CHECK_EQ(ev.data.u64, 99, "what epoll tells");
	expect(in, wd_f, IN_ATTRIB, "", "chmod");
	int fd = MUST(open(fx_path("d/file"), O_WRONLY | O_CLOEXEC));
	MUST(write(fd, "z", 1));
	close(fd);
	expect(in, wd_d, IN_OPEN, "file", "open");
	expect(in, wd_d, IN_MODIFY, "file", "write");
	expect(in, wd_file, IN_MODIFY, "", "write");
	expect(in, wd_file, IN_IGNORED, "", "a watch with IN_ONESHOT is over");
	expect(in, wd_d, IN_CLOSE_WRITE, "file", "close");
	MUST(mkdir(fx_path("d/sub dir\n/x"), 0777));
	MUST(rmdir(fx_path("d/sub dir\n/x")));
	expect(in, wd_sub, IN_CREATE | IN_ISDIR, "x", "mkdir");
	expect(in, wd_sub, IN_DELETE | IN_ISDIR, "x", "rmdir");
	MUST(lchown(fx_path("l"), getuid(), getgid()));
	expect(in, wd_l, IN_ATTRIB, "", "lchown");

	MUST(rename(fx_path("d/file"), fx_path("d/moved")));
	fx_reap_ok(child);
	uint32_t cookie = expect(in, wd_d, IN_MOVED_FROM, "file", "rename");
	CHECK(cookie != 0, "a cookie of a rename");
	CHECK_EQ(expect(in, wd_d, IN_MOVED_TO, "moved", "rename"), cookie, "the second cookie");
	MUST(rename(fx_path("d/moved"), fx_path("d/file")));
	expect(shared, wd_shared, IN_MOVED_FROM, "moved", "rename back");
	expect(in, wd_d, IN_MOVED_FROM, "moved", "rename back");
	expect(in, wd_d, IN_MOVED_TO, "file", "rename back");

	MUST(unlink(fx_path("d/hard")));
	expect(in, wd_f, IN_ATTRIB, "", "unlink");
	expect(in, wd_d, IN_DELETE, "hard", "unlink");
	expect(high, wd_max, IN_DELETE, "hard", "unlink");
	MUST(link(fx_path("f"), fx_path("d/hard")));
	expect(in, wd_f, IN_ATTRIB, "", "link");
	expect(in, wd_d, IN_CREATE, "hard", "link");
	close(MUST(open(fx_path("f"), O_RDONLY | O_CLOEXEC)));
	expect(high, wd_high, IN_OPEN, "", "open");
	none(in, "more events");
	none(high, "more events");

	CHECK_EQ(inotify_add_watch(in, fx_path("."), IN_DELETE_SELF), wd_last + 1, "the next number");
	CHECK_EQ(inotify_add_watch(high, fx_path("."), IN_DELETE_SELF), wd_high + 1, "the next number");
	CHECK_EQ(inotify_add_watch(empty, fx_path("."), IN_DELETE_SELF), 1, "the first number");
	fx_finish();
}
