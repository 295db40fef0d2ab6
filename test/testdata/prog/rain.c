/*
 * Blocking calls in a rain of signals: a timer of 50 ms whose handler counts, with and without SA_RESTART. An EINTR must be one that a handler has caused: whoever gets it looks whether its handler
 * ran since the call began. Calls that go on after a handler with SA_RESTART, as signal(7) lists them, must never give it. That holds before, while and after the tree is frozen, dumped and restored.
 */
#include "fixture.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>

static struct shared { volatile uint32_t go; volatile uint32_t rounds[64]; } *sh;
static volatile sig_atomic_t runs;
static int p[2], full[2], ep, ev, sem, queue, locked;
static pid_t kid;
static uint32_t word;

static void on_alarm(int sig) { (void)sig; runs++; }

/* calls that go on by themselves with SA_RESTART: 1; that never do: 0. They wait for ever, or for 100 s. */
static struct timespec t = { 100, 0 };
static long r_read(void) { char c; return read(p[0], &c, 1); }
static long r_write(void) { return write(full[1], "x", 1); }
static long r_wait(void) { int st; return waitpid(kid, &st, 0); }
static long r_waitid(void) { siginfo_t si; return waitid(P_PID, kid, &si, WEXITED | WNOWAIT); }
static long r_flock(void) { return flock(locked, LOCK_EX); }
static long r_ofd(void) { struct flock l = { .l_type = F_WRLCK }; return fcntl(locked, F_OFD_SETLKW, &l); }
static long r_futex(void) { return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0); }
static long r_eventfd(void) { uint64_t v; return read(ev, &v, 8); }
static long n_nanosleep(void) { return nanosleep(&t, NULL); }
static long n_clock(void) { struct timespec a; clock_gettime(CLOCK_MONOTONIC, &a); a.tv_sec += 100; errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &a, NULL); return errno ? -1 : 0; }
static long n_poll(void) { struct pollfd f = { p[0], POLLIN, 0 }; return poll(&f, 1, 100000); }
static long n_ppoll(void) { struct pollfd f = { p[0], POLLIN, 0 }; return ppoll(&f, 1, &t, NULL); }
static long n_select(void) { struct timeval v = { 100, 0 }; fd_set r; FD_ZERO(&r); FD_SET(p[0], &r); return select(p[0] + 1, &r, NULL, NULL, &v); }
static long n_epoll(void) { struct epoll_event e; return epoll_wait(ep, &e, 1, 100000); }
static long n_sigtimedwait(void) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); return sigtimedwait(&s, NULL, &t); }
static long n_semop(void) { struct sembuf b = { 0, -1, 0 }; return semop(sem, &b, 1); }
static long n_semtimedop(void) { struct sembuf b = { 0, -1, 0 }; return semtimedop(sem, &b, 1, &t); }
static long n_msgrcv(void) { struct { long type; char c; } m; return msgrcv(queue, &m, 1, 1, 0); }
static long n_pause(void) { return pause(); }
static long n_sigsuspend(void) { sigset_t s; sigemptyset(&s); return sigsuspend(&s); }

static const struct { const char *name; long (*call)(void); int restarts; } rows[] = {
	{ "read", r_read, 1 }, { "write", r_write, 1 }, { "waitpid", r_wait, 1 }, { "waitid", r_waitid, 1 }, { "flock", r_flock, 1 }, { "F_OFD_SETLKW", r_ofd, 1 }, { "futex", r_futex, 1 }, { "eventfd", r_eventfd, 1 },
	{ "nanosleep", n_nanosleep, 0 }, { "clock_nanosleep", n_clock, 0 }, { "poll", n_poll, 0 }, { "ppoll", n_ppoll, 0 }, { "select", n_select, 0 }, { "epoll_wait", n_epoll, 0 }, { "sigtimedwait", n_sigtimedwait, 0 },
	{ "semop", n_semop, 0 }, { "semtimedop", n_semtimedop, 0 }, { "msgrcv", n_msgrcv, 0 }, { "pause", n_pause, 0 }, { "sigsuspend", n_sigsuspend, 0 },
};
enum { N = sizeof rows / sizeof *rows };

static void rain(int i, int restart)
{
	struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = restart ? SA_RESTART : 0 };
	struct itimerval it = { { 0, 50000 }, { 0, 50000 } };
	const char *name = rows[i].name;
	sigset_t m;
	if (rows[i].call == r_wait || rows[i].call == r_waitid) {
		kid = MUST(fork());
		if (!kid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
	}
	sigemptyset(&m);
	sigaddset(&m, SIGUSR2);
	sigprocmask(SIG_BLOCK, &m, NULL);
	MUST(sigaction(SIGALRM, &sa, NULL));
	MUST(setitimer(ITIMER_REAL, &it, NULL));
	fx_up();
	/* SIGUSR1 from the root ends it: its default action, once it has looked */
	while (!sh->go) {
		sig_atomic_t before = runs;
		long r = rows[i].call();
		if (r != -1 || errno != EINTR)
			FAIL("%s%s: returned %ld, %s", name, restart ? " with SA_RESTART" : "", r, r < 0 ? strerror(errno) : "-");
		else if (runs == before)
			FAIL("%s%s: EINTR, and no handler has run", name, restart ? " with SA_RESTART" : "");
		else if (restart && rows[i].restarts)
			FAIL("%s with SA_RESTART: EINTR", name);
		sh->rounds[2 * i + restart]++;
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	static char buf[65536];
	pid_t pid[2 * N];
	sh = MUST(mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(pipe2(p, O_CLOEXEC)), MUST(pipe2(full, O_CLOEXEC | O_NONBLOCK));
	while (write(full[1], buf, sizeof buf) > 0)
		;
	fcntl(full[1], F_SETFL, 0);
	ep = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event e = { .events = EPOLLIN };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e));
	ev = MUST(eventfd(0, EFD_CLOEXEC));
	sem = MUST(semget(IPC_PRIVATE, 1, 0600)), queue = MUST(msgget(IPC_PRIVATE, 0600));
	int held = MUST(open(fx_path("lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	struct flock l = { .l_type = F_WRLCK };
	MUST(flock(held, LOCK_EX));
	MUST(fcntl(held, F_OFD_SETLK, &l));
	locked = MUST(open(fx_path("lock"), O_RDWR | O_CLOEXEC));
	for (int i = 0; i < 2 * N; i++)
		if (!(pid[i] = MUST(fork())))
			rain(i / 2, i % 2);
	fx_await_up(2 * N);
	fx_pause_ms(300);
	fx_ready();
	fx_wait_check();
	fx_pause_ms(300);
	for (int i = 0; i < 2 * N; i++) {
		int st;
		CHECK_EQ(waitpid(pid[i], &st, WNOHANG), 0, rows[i / 2].name);
		if (!(i % 2 && rows[i / 2].restarts))
			CHECK(sh->rounds[i] > 0, "%s never came back: no rain", rows[i / 2].name);
		else
			CHECK_EQ(sh->rounds[i], 0, rows[i / 2].name);
	}
	sh->go = 1;
	for (int i = 0; i < 2 * N; i++) {
		/* whoever goes on with SA_RESTART does not see go */
		kill(pid[i], SIGKILL);
		MUST(waitpid(pid[i], NULL, 0));
	}
	semctl(sem, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL);
	fx_finish();
}
