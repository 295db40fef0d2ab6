/*
 * A busy multi-threaded program that checks itself all the time, for the tests that kill the commands: threads that compute in registers, that pass a token by futex, that
 * write and read a pipe, that map and unmap, that take signals from a timer, that sleep and must not be woken, and a child that does the same. A counter file shows that it goes on.
 */
#include "fixture.h"
#include <linux/futex.h>
#include <sys/epoll.h>

static volatile int stop;
static int lenient; /* the argument "eintr": a call that returns EINTR without a signal is no failure */
static volatile uint64_t beats[16];
static volatile uint32_t token;
static volatile uint64_t ticks;

static void *compute(void *arg)
{
	uint64_t first = 0;
	while (!stop) {
		uint64_t a = 1, b = (uintptr_t)arg;
		for (int i = 0; i < 20000; i++)
			a = fx_mix(a ^ b), b += a >> 3;
		if (!first)
			first = a ^ b;
		if ((a ^ b) != first)
			FAIL("a calculation came out as %" PRIx64 ", the first time as %" PRIx64, a ^ b, first);
		beats[(long)arg]++;
	}
	return NULL;
}

static void *relay(void *arg)
{
	uint32_t me = (long)arg & 1;
	while (!stop) {
		uint32_t v = token;
		if ((v & 1) == me) {
			struct timespec t = { 0, 50000000 };
			long r = syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, v, &t, NULL, 0);
			if (r && errno == EINTR && !lenient)
				FAIL("futex: EINTR that no signal caused");
			continue;
		}
		token = v + 1;
		syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		beats[(long)arg]++;
		fx_pause_ms(1);
	}
	return NULL;
}

static int pipefd[2];

static void *piper(void *arg)
{
	uint64_t n = 0, got;
	while (!stop) {
		n++;
		if (write(pipefd[1], &n, 8) != 8)
			FAIL("write: %s", strerror(errno));
		if (read(pipefd[0], &got, 8) != 8 || got != n)
			FAIL("read: %" PRIu64 ", want %" PRIu64 ", %s", got, n, strerror(errno));
		beats[(long)arg]++;
		if (n % 100 == 0)
			fx_pause_ms(1);
	}
	return NULL;
}

static void *mapper(void *arg)
{
	while (!stop) {
		char *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED) {
			FAIL("mmap: %s", strerror(errno));
			return NULL;
		}
		fx_fill(p, 65536, (uintptr_t)p);
		fx_verify("mapping", p, 65536, (uintptr_t)p);
		munmap(p, 65536);
		beats[(long)arg]++;
		fx_pause_ms(2);
	}
	return NULL;
}

static void *sleeper(void *arg)
{
	int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
	sigset_t none;
	sigemptyset(&none);
	sigaddset(&none, SIGUSR1);
	sigaddset(&none, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &none, NULL);
	sigdelset(&none, SIGALRM);
	while (!stop) {
		struct timespec t = { 0, 30000000 };
		struct epoll_event e;
		if (nanosleep(&t, NULL))
			FAIL("nanosleep: %s", strerror(errno));
		if (epoll_wait(ep, &e, 1, 30) && !(lenient && errno == EINTR))
			FAIL("epoll_wait: %s", strerror(errno));
		if (sigtimedwait(&none, NULL, &t) != -1 || (errno != EAGAIN && !(lenient && errno == EINTR)))
			FAIL("sigtimedwait: %s", strerror(errno));
		beats[(long)arg]++;
	}
	close(ep);
	return NULL;
}

static void tick(int sig) { (void)sig; ticks++; }

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	lenient = fx_argc && !strcmp(fx_argv[0], "eintr");
	void *(*what[])(void *) = { compute, compute, relay, relay, piper, mapper, sleeper };
	enum { N = sizeof what / sizeof *what };
	sigset_t alrm, old;
	sigemptyset(&alrm);
	sigaddset(&alrm, SIGALRM);
	pid_t kid = MUST(fork());
	MUST(pipe2(pipefd, O_CLOEXEC));
	sigprocmask(SIG_BLOCK, &alrm, &old); /* only the leader takes it */
	pthread_t t[N];
	for (long i = 0; i < N; i++)
		pthread_create(&t[i], NULL, what[i], (void *)i);
	sigprocmask(SIG_SETMASK, &old, NULL);
	struct sigaction sa = { .sa_handler = tick, .sa_flags = SA_RESTART };
	MUST(sigaction(SIGALRM, &sa, NULL));
	struct itimerval it = { { 0, 10000 }, { 0, 10000 } };
	MUST(setitimer(ITIMER_REAL, &it, NULL));
	/* ready is who has made all that it makes, and that includes the child */
	for (int i = 0; i < N; i++)
		while (!beats[i])
			fx_pause_ms(2);
	if (kid) {
		fx_await_up(1);
		fx_ready();
	} else {
		fx_up();
	}
	/* DIR/beat says how far everybody is: the harness sees that all go on after each kill */
	while (!fx_exists("check")) {
		uint64_t least = UINT64_MAX;
		for (int i = 0; i < N; i++)
			if (beats[i] < least)
				least = beats[i];
		if (ticks < least)
			least = ticks;
		char line[512];
		int len = snprintf(line, sizeof line, "%" PRIu64 "\n", least);
		for (int i = 0; i < N; i++)
			len += snprintf(line + len, sizeof line - len, "%d:%" PRIu64 " ", i, beats[i]);
		snprintf(line + len, sizeof line - len, "ticks:%" PRIu64 "\n", ticks);
		fx_touch(kid ? "beat" : "beat.child", line);
		fx_pause_ms(20);
	}
	stop = 1;
	for (int i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	if (!kid)
		_exit(0);
	fx_reap_ok(kid);
	fx_finish();
}
