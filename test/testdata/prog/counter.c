/*
 * Counts into a file as fast as it may, in two processes and four threads, each number once: a gap is work lost, a repeat is work done twice
 * (a dump that let the target run on before it was killed). Each counter has its own file, written through one descriptor in 8-byte records.
 */
#include "fixture.h"

static volatile int stop;

static void *count(void *arg)
{
	char name[32];
	snprintf(name, sizeof name, "count.%ld", (long)arg);
	int fd = MUST(open(fx_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
	uint64_t n = 0;
	fx_up();
	while (!stop) {
		for (int i = 0; i < 100; i++) {
			n++;
			if (write(fd, &n, sizeof n) != sizeof n)
				FAIL("writing number %" PRIu64 ": %s", n, strerror(errno));
		}
		fx_pause_ms(1);
	}
	CHECK_EQ(lseek(fd, 0, SEEK_CUR), n * 8, "file position");
	CHECK_EQ(lseek(fd, 0, SEEK_END), n * 8, "file size");
	static __thread uint64_t buf[512];
	uint64_t want = 1;
	lseek(fd, 0, SEEK_SET);
	for (ssize_t len; (len = read(fd, buf, sizeof buf)) > 0;)
		for (ssize_t i = 0; i < len / 8; i++, want++)
			if (buf[i] != want) {
				FAIL("%s: record %" PRIu64 " holds %" PRIu64, name, want, buf[i]);
				return NULL;
			}
	CHECK_EQ(want - 1, n, "records in the file");
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pid_t kid = MUST(fork());
	pthread_t t[2];
	long base = kid ? 0 : 10;
	for (long i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, count, (void *)(base + i));
	if (kid) {
		fx_await_up(4);
		fx_ready();
	}
	fx_wait_check();
	stop = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	if (!kid)
		_exit(0);
	fx_reap_ok(kid);
	fx_finish();
}
