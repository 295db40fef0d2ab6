/*
 * N threads, most of which sleep in a futex, some in nanosleep, and M MiB of memory (the arguments). At the end each says what it has kept in
 * its own storage.
 */
#define FX_THREAD
#include "fixture.h"
#include <linux/futex.h>

static __thread uint64_t mine;
static uint32_t go;
static int up, right;

static void *member(void *arg)
{
	uint64_t n = (uintptr_t)arg;
	struct timespec t = { 0, 50000000 };
	mine = fx_mix(n);
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST))
		if (n % 100 == 0) {
			if (nanosleep(&t, NULL))
				FAIL("nanosleep: %s", strerror(errno));
		} else if (syscall(SYS_futex, &go, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) && errno != EAGAIN) {
			FAIL("futex: %s", strerror(errno));
		}
	if (mine == fx_mix(n))
		__atomic_add_fetch(&right, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	long n = fx_argc ? atol(fx_argv[0]) : 100, size = fx_argc > 1 ? atol(fx_argv[1]) << 20 : 4096;
	char *bulk = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fx_fill(bulk, size, 1);
	pthread_t *t = calloc(n, sizeof *t);
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 16384 + 16384);
	pthread_attr_setguardsize(&a, 0);
	for (long i = 0; i < n; i++) {
		int err = pthread_create(&t[i], &a, member, (void *)i);
		if (err) {
			FAIL("thread %ld: %s", i, strerror(err));
			fx_finish();
		}
	}
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < n)
		fx_pause_ms(5);
	fx_pause_ms(20);
	fx_ready();
	fx_wait_check();
	go = 1;
	syscall(SYS_futex, &go, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
	for (long i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	fx_verify("memory", bulk, size, 1);
	CHECK_EQ(right, n, "threads that kept their storage");
	fx_finish();
}
