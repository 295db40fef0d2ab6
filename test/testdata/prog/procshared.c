/* An open /proc/self/stat that a child has inherited: it goes on to speak of the parent, in both. */
#include "fixture.h"

static void check(int fd, pid_t want, const char *who)
{
	char b[512];
	ssize_t n = pread(fd, b, sizeof b - 1, 0);
	b[n > 0 ? n : 0] = 0;
	CHECK(n > 0 && atoi(b) == want, "%s: the open stat is of %d now, was of %d", who, n > 0 ? atoi(b) : -1, want);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int fd = MUST(open("/proc/self/stat", O_RDONLY));
	pid_t root = getpid(), kid = MUST(fork());
	if (!kid) {
		fx_up();
		fx_wait_check();
		check(fd, root, "child");
		_exit(0);
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	check(fd, root, "parent");
	fx_reap_ok(kid);
	fx_finish();
}
