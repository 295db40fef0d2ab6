/*
 * inotify watches of files that were removed and are open, in this process and in a child, with other watches around them: what is written to them is told.
 */
#include "fixture.h"
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static void expect(int in, int wd, uint32_t mask)
{
	struct inotify_event e = {0};
	ssize_t n = read(in, &e, sizeof e);
	if (n != sizeof e || e.wd != wd || e.mask != mask)
		FAIL("read %zd (%s), wd %d mask %#x, want %d %#x", n, n < 0 ? strerror(errno) : "-", e.wd, e.mask, wd, mask);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	int in = MUST(inotify_init1(IN_NONBLOCK));
	int a = MUST(open(fx_path("a"), O_RDWR | O_CREAT, 0600)), b = MUST(open(fx_path("b"), O_RDWR | O_CREAT, 0600));
	MUST(write(a, "contents", 8));
	int wd_dir = MUST(inotify_add_watch(in, fx_path("."), IN_DELETE_SELF));
	int wd_a = MUST(inotify_add_watch(in, fx_path("a"), IN_MODIFY));
	int wd_b = MUST(inotify_add_watch(in, fx_path("b"), IN_MODIFY | IN_CLOSE_WRITE));
	/* what is set after the pool of files has gone, and what still needs it then */
	int p[2], timer = MUST(timerfd_create(CLOCK_MONOTONIC, 0)), sock = MUST(socket(AF_INET, SOCK_STREAM, 0));
	struct itimerspec it = { .it_value = { 3000, 0 } };
	MUST(timerfd_settime(timer, 0, &it, NULL));
	MUST(listen(sock, 5));
	MUST(pipe(p));
	MUST(fcntl(p[0], F_SETOWN, getpid()));
	pid_t child = MUST(fork());
	if (!child) {
		close(a);
		fx_up();
		fx_wait_check();
		while (!fx_exists("go"))
			fx_pause_ms(5);
		MUST(write(b, "y", 1));
		close(b); /* the last descriptor */
		_exit(0);
	}
	fx_await_up(1);
	close(b);
	MUST(unlink(fx_path("a")));
	MUST(unlink(fx_path("b")));
	int n = -1;
	MUST(ioctl(in, FIONREAD, &n));
	CHECK_EQ(n, 0, "set-up: unread bytes");
	fx_ready();
	fx_wait_check();
	CHECK_EQ(fcntl(p[0], F_GETOWN), getpid(), "the owner of the pipe");
	MUST(timerfd_gettime(timer, &it));
	CHECK(it.it_value.tv_sec > 0 && it.it_value.tv_sec <= 3000, "the timer has %ld s left", (long)it.it_value.tv_sec);
	int yes = 0;
	socklen_t len = sizeof yes;
	MUST(getsockopt(sock, SOL_SOCKET, SO_ACCEPTCONN, &yes, &len));
	CHECK_EQ(yes, 1, "the socket listens");
	MUST(write(a, "x", 1));
	expect(in, wd_a, IN_MODIFY);
	fx_touch("go", "");
	fx_reap_ok(child);
	expect(in, wd_b, IN_MODIFY);
	expect(in, wd_b, IN_CLOSE_WRITE);
	expect(in, wd_b, IN_IGNORED); /* and with it the file */
	CHECK_EQ(inotify_rm_watch(in, wd_dir), 0, "the watch of the directory");
	fx_finish();
}
