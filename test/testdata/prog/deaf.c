/*
 * Tasks that no signal reaches: all blocked in one thread, all ignored in the process, pending ones that nobody takes, and each in a
 * call that would show EINTR: a futex, a read, epoll_wait, sigwait for a signal that does not come, nanosleep.
 */
#include "fixture.h"
#include <linux/futex.h>
#include <sys/epoll.h>

static volatile int stop;
static uint32_t word;
static int pipefd[2];
static sigset_t pending;

static void *futexer(void *arg)
{
	(void)arg;
	while (!stop)
		if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) && errno != EAGAIN)
			FAIL("futex: %s", strerror(errno));
	return NULL;
}

static void *reader(void *arg)
{
	char c;
	(void)arg;
	CHECK_EQ(read(pipefd[0], &c, 1), 1, "read");
	return NULL;
}

static void *poller(void *arg)
{
	struct epoll_event e = { .events = EPOLLIN };
	int ep = MUST(epoll_create1(EPOLL_CLOEXEC)), gate = MUST(dup(pipefd[0]));
	(void)arg;
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, gate, &e));
	CHECK_EQ(epoll_wait(ep, &e, 1, -1), 1, "epoll_wait");
	return NULL;
}

static void *sleeper(void *arg)
{
	struct timespec t = { 0, 20000000 };
	(void)arg;
	while (!stop)
		CHECK_EQ(nanosleep(&t, NULL), 0, "nanosleep");
	return NULL;
}

static void *waiter(void *arg)
{
	sigset_t one;
	struct timespec t = { 0, 100000000 };
	(void)arg;
	sigemptyset(&one);
	sigaddset(&one, SIGRTMIN + 3);
	while (!stop)
		if (sigtimedwait(&one, NULL, &t) != -1 || errno != EAGAIN)
			FAIL("sigtimedwait: %s", strerror(errno));
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	sigset_t all, now;
	pthread_t t[5];
	MUST(pipe2(pipefd, O_CLOEXEC));
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	void *(*what[])(void *) = { futexer, reader, poller, sleeper, waiter };
	for (int i = 0; i < 5; i++)
		pthread_create(&t[i], NULL, what[i], NULL);
	/* pending for ever: blocked, and not to be ignored while they are */
	MUST(kill(getpid(), SIGUSR1));
	MUST(raise(SIGTERM));
	MUST(kill(getpid(), SIGTSTP));
	for (int sig = 1; sig < 65; sig++)
		if (sig != SIGUSR1 && sig != SIGTERM && sig != SIGTSTP)
			signal(sig, SIG_IGN); /* of SIGKILL, SIGSTOP and glibc's own two it cannot */
	pid_t kid = MUST(fork()); /* one that only ignores */
	if (!kid) {
		sigemptyset(&now);
		sigprocmask(SIG_SETMASK, &now, NULL);
		signal(SIGUSR1, SIG_IGN), signal(SIGTERM, SIG_IGN), signal(SIGTSTP, SIG_IGN);
		fx_up();
		fx_wait_check();
		_exit(0);
	}
	fx_await_up(1);
	fx_pause_ms(20);
	if (fx_argc && !strcmp(fx_argv[0], "full")) { /* nothing more can be mapped */
		struct rlimit as = { 1 << 20, 1 << 20 };
		MUST(setrlimit(RLIMIT_AS, &as));
	}
	fx_ready();
	fx_wait_check();
	sigpending(&pending);
	for (int sig = 1; sig < 32; sig++)
		CHECK_EQ(sigismember(&pending, sig), sig == SIGUSR1 || sig == SIGTERM || sig == SIGTSTP, "pending signal");
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	for (int sig = 1; sig < 65; sig++)
		if (sig != SIGKILL && sig != SIGSTOP && sig != 32 && sig != 33)
			CHECK_EQ(sigismember(&now, sig), 1, "blocked signal");
	stop = 1;
	word = 1;
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0);
	MUST(write(pipefd[1], "ab", 2));
	for (int i = 0; i < 5; i++)
		pthread_join(t[i], NULL);
	signal(SIGCHLD, SIG_DFL);
	int st;
	if (waitpid(kid, &st, 0) != kid && errno != ECHILD) /* it may have gone by itself while SIGCHLD was ignored */
		FAIL("waitpid: %s", strerror(errno));
	fx_finish();
}
