/*
 * inotify watches of files that were removed and are open, in this process and in a child, with other watches around them: what is written to them is told.
 */
#include "fixture.h"
#include <sys/inotify.h>
#include <sys/ioctl.h>

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
