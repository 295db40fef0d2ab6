/* A deleted file mapped shared by two processes, with no descriptor left. */
#include "fixture.h"

#define P 4096ul

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int fd = MUST(open(fx_path("mapped"), O_RDWR | O_CREAT | O_EXCL, 0640));
	MUST(ftruncate(fd, 8 * P));
	char *m = MUST(mmap(NULL, 8 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	fx_fill(m, 8 * P, 6);
	close(fd);
	MUST(unlink(fx_path("mapped")));
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_up();
		fx_wait_check();
		m[5 * P] ^= 0x55;
		_exit(0);
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	fx_reap_ok(kid);
	m[5 * P] ^= 0x55;
	fx_verify("deleted file mapped shared", m, 8 * P, 6);
	CHECK(!fx_exists("mapped"), "the deleted file is back");
	fx_finish();
}
