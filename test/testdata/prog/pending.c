/*
 * Pending signals: blocked standard ones, real-time ones queued several times with their values in order, to the process and to each thread,
 * with code, sender and value as they were; and an ignored SIGCHLD of a child that ended. Nothing more is pending than there was.
 */
#include "fixture.h"

static pid_t tid[2];
static pthread_barrier_t bar;

static void block_all(void)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
}

static void to_thread(pid_t t, int sig, int value)
{
	siginfo_t si;
	memset(&si, 0, sizeof si);
	si.si_signo = sig;
	si.si_code = SI_QUEUE;
	si.si_pid = getpid();
	si.si_uid = 12345;
	si.si_value.sival_int = value;
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), t, sig, &si));
}

static int next(int sig, siginfo_t *si)
{
	struct timespec zero = { 0, 0 };
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, sig);
	memset(si, 0, sizeof *si);
	return syscall(SYS_rt_sigtimedwait, &s, si, &zero, 8); /* glibc's own shows SI_TKILL as SI_USER */
}

static void expect(int sig, int code, pid_t pid, uid_t uid, int value)
{
	siginfo_t si;
	int r = next(sig, &si);
	if (r != sig) {
		FAIL("signal %d (value %d) is not pending: %d, %s", sig, value, r, strerror(errno));
		return;
	}
	CHECK_EQ(si.si_code, code, "si_code");
	CHECK_EQ(si.si_pid, pid, "si_pid");
	CHECK_EQ(si.si_uid, uid, "si_uid");
	if (code == SI_QUEUE)
		CHECK_EQ(si.si_value.sival_int, value, "si_value");
}

static void expect_none(const char *who)
{
	siginfo_t si;
	sigset_t p;
	sigpending(&p);
	for (int s = 1; s < 65; s++)
		if (s != 32 && s != 33 && next(s, &si) == s)
			FAIL("%s: signal %d is pending and nobody sent it: code %d pid %d", who, s, si.si_code, si.si_pid);
}

static void *thread(void *arg)
{
	long i = (long)arg;
	tid[i] = syscall(SYS_gettid);
	fx_up();
	fx_wait_check();
	pthread_barrier_wait(&bar); /* the leader has taken the process's own */
	for (int k = 0; k < 5; k++)
		expect(SIGRTMIN + 4, SI_QUEUE, getpid(), 12345, 700 + 10 * i + k);
	expect(SIGUSR2, SI_TKILL, getpid(), getuid(), 0);
	if (i == 1)
		expect(SIGRTMIN + 9, SI_QUEUE, getpid(), 12345, -1);
	expect_none("thread");
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	block_all();
	pthread_t t[2];
	pthread_barrier_init(&bar, NULL, 3);
	for (long i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, thread, (void *)i);
	fx_await_up(2);
	pid_t sender = MUST(fork());
	if (!sender) {
		kill(getppid(), SIGUSR1);
		kill(getppid(), SIGUSR1); /* a standard one is kept once */
		kill(getppid(), SIGTERM);
		for (int k = 0; k < 20; k++) {
			union sigval v = { .sival_int = 100 + k };
			sigqueue(getppid(), SIGRTMIN + 2 + k % 3, v);
		}
		_exit(9);
	}
	fx_await_state(sender, 'Z');
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < 5; k++)
			to_thread(tid[i], SIGRTMIN + 4, 700 + 10 * i + k);
		syscall(SYS_tgkill, getpid(), tid[i], SIGUSR2);
	}
	to_thread(tid[1], SIGRTMIN + 9, -1);
	raise(SIGALRM); /* private to the leader */
	for (int k = 0; k < 3; k++)
		to_thread(getpid(), SIGRTMAX, 900 + k);
	fx_ready();
	fx_wait_check();
	uid_t uid = getuid();
	expect(SIGUSR1, SI_USER, sender, uid, 0);
	expect(SIGTERM, SI_USER, sender, uid, 0);
	for (int sig = 0; sig < 3; sig++)
		for (int k = sig; k < 20; k += 3)
			expect(SIGRTMIN + 2 + sig, SI_QUEUE, sender, uid, 100 + k);
	expect(SIGALRM, SI_TKILL, getpid(), uid, 0);
	for (int k = 0; k < 3; k++)
		expect(SIGRTMAX, SI_QUEUE, getpid(), 12345, 900 + k);
	siginfo_t si;
	CHECK_EQ(next(SIGCHLD, &si), SIGCHLD, "SIGCHLD of the ended child");
	CHECK_EQ(si.si_pid, sender, "si_pid of SIGCHLD");
	CHECK_EQ(si.si_status, 9, "si_status of SIGCHLD");
	CHECK_EQ(si.si_code, CLD_EXITED, "si_code of SIGCHLD");
	expect_none("leader");
	pthread_barrier_wait(&bar);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	CHECK_EQ(waitpid(sender, NULL, WNOHANG), sender, "zombie of the sender");
	fx_finish();
}
