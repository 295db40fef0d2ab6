/* FIFOs: contents, ends in two processes, both ways by one descriptor (O_RDWR), a reader without a writer. */
#include "fixture.h"

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	const char *name[] = { "fifo.a", "fifo.b", "fifo.c" };
	for (int i = 0; i < 3; i++)
		MUST(mkfifo(fx_path(name[i]), 0600));
	int both = MUST(open(fx_path("fifo.a"), O_RDWR));
	MUST(write(both, "within", 6));
	int alone = MUST(open(fx_path("fifo.c"), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	pid_t kid = MUST(fork());
	if (!kid) {
		int w = MUST(open(fx_path("fifo.b"), O_WRONLY));
		MUST(write(w, "from the child", 14));
		fx_up();
		fx_wait_check();
		for (int i = 0; i < 2000 && !fx_exists("drained"); i++)
			fx_pause_ms(5);
		CHECK(write(w, "again", 5) == 5, "write after: %s", strerror(errno));
		_exit(0);
	}
	int r = MUST(open(fx_path("fifo.b"), O_RDONLY));
	fx_await_up(1);
	char b[64] = "";
	fx_ready();
	fx_wait_check();
	CHECK(read(r, b, 64) == 14 && !memcmp(b, "from the child", 14), "contents of the FIFO: %.14s", b);
	fx_touch("drained", "");
	CHECK(read(r, b, 64) == 5 && !memcmp(b, "again", 5), "what the child writes after");
	CHECK(read(r, b, 64) == 0, "end of file when the child is gone");
	fx_reap_ok(kid);
	CHECK(read(both, b, 64) == 6 && !memcmp(b, "within", 6), "contents of the FIFO open both ways");
	CHECK_EQ(fcntl(both, F_GETFL) & O_ACCMODE, O_RDWR, "access mode");
	CHECK_EQ(read(alone, b, 64), 0, "FIFO without a writer");
	CHECK_EQ(fcntl(alone, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK, "flags");
	CHECK_EQ(fcntl(alone, F_GETFD), FD_CLOEXEC, "close-on-exec");
	int w = open(fx_path("fifo.c"), O_WRONLY | O_NONBLOCK);
	CHECK(w >= 0 && write(w, "new", 3) == 3, "a new writer: %s", strerror(errno));
	CHECK(read(alone, b, 64) == 3, "what the new writer wrote");
	fx_finish();
}
