/*
 * Every blocking call that there is, a row each, interrupted by a dump and a restore, or by a freeze and thaw alone, and ending as if nothing had happened: with the right result, never with
 * an EINTR that no signal caused, never early, with the time that was left. Calls on what cannot be checkpointed yet (sockets, POSIX message queues, terminals) are missing; those on AIO are in aio.c.
 *
 * REL rows have a timeout of T, half of which has passed when the program says that it is ready; ABS rows one that is absolute. A row AGAIN waits for a time that the kernel keeps nowhere
 * once the call was interrupted: it may start afresh (crpipe(7)). EVENT rows wait for what a second thread or process of the row does after the restore.
 *
 * The machine may be slow: what is measured is that no row is early, and that a REL row does not take its whole time again. The harness leaves in DIR/downtime a line "A B C D" for each time that
 * the tree was away: it did not run between B and C, nor perhaps between A and D.
 */
#include "fixture.h"
#include <linux/futex.h>
#include <linux/time_types.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

#define T 8000000000ll
#define FULL 65536

enum kind { REL, ABS, AGAIN, EVENT };
struct row {
	const char *name;
	enum kind kind;
	void (*prepare)(void), (*call)(void), (*event)(void);
};

enum { MAX = 160 };
static struct shared {
	volatile uint32_t go, word[MAX][4];
	volatile int64_t start[MAX], end[MAX];
	volatile int done[MAX], absent[MAX];
} *sh;
static int me; /* the row of this process */
static const struct row *row;
static pid_t main_tid, kid;
static int p[2], q[2], fd, fd2, id;
static char full[4 * FULL];
static volatile int handled;

static struct timespec ts(int64_t ns) { return (struct timespec){ ns / 1000000000, ns % 1000000000 }; }
static struct timespec at(clockid_t c) { return ts(fx_now(c) + T); }
static void on_signal(int sig) { (void)sig; handled++; }

static void result(long r, long want)
{
	if (r != want)
		FAIL("%s: returned %ld (%s), want %ld", row->name, r, r < 0 ? strerror(errno) : "-", want);
}

static void failed(long r, int want)
{
	if (r != -1 || errno != want)
		FAIL("%s: returned %ld, %s, want %s", row->name, r, r < 0 ? strerror(errno) : "-", strerror(want));
}

/* the call is not there: an old kernel, or hardware that is missing */
static int missing(long r)
{
	if (r == -1 && (errno == ENOSYS || errno == EOPNOTSUPP || errno == EINVAL || errno == EPERM))
		return sh->absent[me] = 1;
	return 0;
}

static void await_go(void)
{
	while (!sh->go)
		if (syscall(SYS_futex, &sh->go, FUTEX_WAIT, 0, NULL, NULL, 0) < 0 && errno != EAGAIN)
			FAIL("%s: the thread that waits for the event got %s", row->name, strerror(errno));
}

static void *helper(void *arg)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	await_go();
	fx_pause_ms(20);
	row->event();
	return arg;
}

/* what rows need */
static void mk_pipe(void) { MUST(pipe2(p, O_CLOEXEC)); }
static void mk_full(void)
{
	mk_pipe();
	fcntl(p[1], F_SETFL, O_NONBLOCK);
	while (write(p[1], full, sizeof full) > 0)
		;
	fcntl(p[1], F_SETFL, 0);
}
static void mk_both(void) /* p is full, q has a byte in it */
{
	mk_full();
	MUST(pipe2(q, O_CLOEXEC));
	MUST(write(q[1], "q", 1));
}
static void mk_q(void) { mk_pipe(); MUST(pipe2(q, O_CLOEXEC)); }
static void put(void) { result(write(p[1], "r", 1), 1); }
static void take(void) { result(read(p[0], full, FULL), FULL); }
static void sig(void) { MUST(syscall(SYS_tgkill, getpid(), main_tid, SIGUSR1)); }
static void mk_handler(void) { signal(SIGUSR1, on_signal); }
static void block(int s)
{
	sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, s);
	sigprocmask(SIG_BLOCK, &m, NULL);
}
static void mk_blocked(void) { block(SIGUSR1); }
static sigset_t before;
static void mask_before(void) { sigprocmask(SIG_SETMASK, NULL, &before); }
static void mask_after(void)
{
	sigset_t after;
	sigprocmask(SIG_SETMASK, NULL, &after);
	CHECK(!memcmp(&before, &after, 8), "%s: signal mask %lx afterwards, want %lx", row->name, *(long *)&after, *(long *)&before);
}
static sigset_t *only(int s)
{
	static sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, s);
	return &m;
}

/* sleeps */
static void c_nanosleep(void) { struct timespec t = ts(T); result(nanosleep(&t, NULL), 0); }
static void c_nanosleep_rem(void)
{
	struct timespec t = ts(T), rem;
	result(nanosleep(&t, &rem), 0);
	CHECK_EQ(t.tv_sec * 1000000000ll + t.tv_nsec, T, "the time that nanosleep was asked for");
}
static void sleep_on(clockid_t c, int flags)
{
	struct timespec t = flags ? at(c) : ts(T);
	long r = syscall(SYS_clock_nanosleep, c, flags, &t, NULL);
	if (!missing(r))
		result(r, 0);
}
static void c_mono(void) { sleep_on(CLOCK_MONOTONIC, 0); }
static void c_real(void) { sleep_on(CLOCK_REALTIME, 0); }
static void c_boot(void) { sleep_on(CLOCK_BOOTTIME, 0); }
static void c_tai(void) { sleep_on(CLOCK_TAI, 0); }
static void c_bootalarm(void) { sleep_on(CLOCK_BOOTTIME_ALARM, 0); }
static void c_realalarm(void) { sleep_on(CLOCK_REALTIME_ALARM, 0); }
static void c_amono(void) { sleep_on(CLOCK_MONOTONIC, TIMER_ABSTIME); }
static void c_areal(void) { sleep_on(CLOCK_REALTIME, TIMER_ABSTIME); }
static void c_aboot(void) { sleep_on(CLOCK_BOOTTIME, TIMER_ABSTIME); }
static void c_atai(void) { sleep_on(CLOCK_TAI, TIMER_ABSTIME); }
/* on CPU time: the process uses none before the event */
static void burn(void) { while (!sh->done[me]) ; }
static void cpu_sleep(clockid_t c, int absolute)
{
	int64_t least = fx_now(c) + 30000000;
	struct timespec t = ts(absolute ? least : 30000000);
	result(syscall(SYS_clock_nanosleep, c, absolute ? TIMER_ABSTIME : 0, &t, NULL), 0);
	if (absolute) /* a clock that began anew with the process is not past the end by its old number, but by the time left */
		CHECK(sh->go, "a sleep on CPU time ended early");
}
static void c_cpu(void) { cpu_sleep(CLOCK_PROCESS_CPUTIME_ID, 0); }
static void c_rem(void)
{
	struct timespec t = { 1000, 0 }, rem = { 0, 0 };
	failed(nanosleep(&t, &rem), EINTR);
	CHECK(rem.tv_sec < 1000 && rem.tv_sec > 100, "nanosleep: %ld s left of 1000", (long)rem.tv_sec);
}
static void c_alarm(void)
{
	struct itimerval it = { .it_value = { T / 1000000000, 0 } };
	signal(SIGALRM, on_signal);
	MUST(setitimer(ITIMER_REAL, &it, NULL));
	failed(pause(), EINTR);
	CHECK_EQ(handled, 1, "runs of the handler of SIGALRM");
}

/* poll and select */
static void c_poll(void) { struct pollfd f = { p[0], POLLIN, 0 }; result(poll(&f, 1, T / 1000000), 0); }
static void c_poll_none(void) { result(poll(NULL, 0, T / 1000000), 0); }
static void c_ppoll(void) { struct pollfd f = { p[0], POLLIN, 0 }; struct timespec t = ts(T); mask_before(); result(ppoll(&f, 1, &t, only(SIGHUP)), 0); mask_after(); }
static void c_select(void) { struct timeval t = { T / 1000000000, 0 }; fd_set r; FD_ZERO(&r); FD_SET(p[0], &r); result(select(p[0] + 1, &r, NULL, NULL, &t), 0); }
static void c_pselect(void) { struct timespec t = ts(T); fd_set r; FD_ZERO(&r); FD_SET(p[0], &r); mask_before(); result(pselect(p[0] + 1, &r, NULL, NULL, &t, only(SIGHUP)), 0); mask_after(); }
static void e_poll(void) { struct pollfd f = { p[0], POLLIN, 0 }; result(poll(&f, 1, -1), 1); CHECK_EQ(f.revents, POLLIN, "events of poll"); }
static void e_ppoll(void) { struct pollfd f = { p[0], POLLIN, 0 }; mask_before(); result(ppoll(&f, 1, NULL, only(SIGHUP)), 1); mask_after(); }
static void e_select(void) { fd_set r; FD_ZERO(&r); FD_SET(p[0], &r); result(select(p[0] + 1, &r, NULL, NULL, NULL), 1); CHECK(FD_ISSET(p[0], &r), "select's set"); }
static void e_pselect(void) { fd_set r; FD_ZERO(&r); FD_SET(p[0], &r); mask_before(); result(pselect(p[0] + 1, &r, NULL, NULL, NULL, only(SIGHUP)), 1); mask_after(); }
static void mk_epoll(void)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0x123456789abcull };
	mk_pipe();
	fd = MUST(epoll_create1(EPOLL_CLOEXEC));
	MUST(epoll_ctl(fd, EPOLL_CTL_ADD, p[0], &ev));
}
static struct epoll_event ev;
static void c_epoll(void) { result(epoll_wait(fd, &ev, 1, T / 1000000), 0); }
static void c_epoll_pwait(void) { mask_before(); result(epoll_pwait(fd, &ev, 1, T / 1000000, only(SIGHUP)), 0); mask_after(); }
static void c_epoll_pwait2(void) { struct { int64_t sec, nsec; } t = { T / 1000000000, T % 1000000000 }; mask_before(); long r = syscall(SYS_epoll_pwait2, fd, &ev, 1, &t, only(SIGHUP), 8); if (!missing(r)) result(r, 0); mask_after(); }
static void e_epoll(void) { result(epoll_wait(fd, &ev, 1, -1), 1); CHECK_EQ(ev.data.u64, 0x123456789abcull, "data of the event"); }
static void e_epoll_pwait(void) { mask_before(); result(epoll_pwait(fd, &ev, 1, -1, only(SIGHUP)), 1); mask_after(); }
static void e_epoll_pwait2(void) { mask_before(); long r = syscall(SYS_epoll_pwait2, fd, &ev, 1, NULL, only(SIGHUP), 8); if (!missing(r)) result(r, 1); mask_after(); }
/* a signal that the call lets in, and nobody else */
static void mk_let_in(void) { mk_handler(); mk_blocked(); mk_epoll(); }
static sigset_t *none(void) { static sigset_t m; sigemptyset(&m); return &m; }
static void s_ppoll(void) { struct pollfd f = { p[0], POLLIN, 0 }; failed(ppoll(&f, 1, NULL, none()), EINTR); CHECK_EQ(handled, 1, "runs of the handler"); }
static void s_pselect(void) { fd_set r; FD_ZERO(&r); FD_SET(p[0], &r); failed(pselect(p[0] + 1, &r, NULL, NULL, NULL, none()), EINTR); CHECK_EQ(handled, 1, "runs of the handler"); }
static void s_epoll_pwait(void) { failed(epoll_pwait(fd, &ev, 1, -1, none()), EINTR); CHECK_EQ(handled, 1, "runs of the handler"); }

/* signals */
static void e_pause(void) { failed(pause(), EINTR); CHECK_EQ(handled, 1, "runs of the handler"); }
static void e_sigsuspend(void) { mask_before(); failed(sigsuspend(none()), EINTR); mask_after(); CHECK_EQ(handled, 1, "runs of the handler"); }
static void c_sigtimedwait(void) { struct timespec t = ts(T); failed(sigtimedwait(only(SIGUSR1), NULL, &t), EAGAIN); }
static void e_sigwaitinfo(void) { siginfo_t si = { 0 }; result(sigwaitinfo(only(SIGUSR1), &si), SIGUSR1); CHECK_EQ(si.si_code, SI_USER, "si_code (of glibc)"); }
static void mk_signalfd(void) { mk_blocked(); fd = MUST(signalfd(-1, only(SIGUSR1), SFD_CLOEXEC)); }
static void e_signalfd(void) { struct signalfd_siginfo si; result(read(fd, &si, sizeof si), sizeof si); CHECK_EQ(si.ssi_signo, SIGUSR1, "ssi_signo"); }

/* children */
static void child(int how)
{
	kid = MUST(fork());
	if (kid)
		return;
	await_go();
	fx_pause_ms(20);
	if (how < 0)
		raise(SIGSTOP);
	_exit(how < 0 ? 0 : how);
}
static void mk_child(void) { child(5); }
static void mk_child_group(void) { child(5); setpgid(kid, kid); }
static void mk_stopper(void) { child(-1); }
static siginfo_t si;
static void e_wait4(void) { int st = 0; struct rusage ru; result(wait4(kid, &st, 0, &ru), kid); CHECK_EQ(st, 5 << 8, "status"); }
static void e_wait4_group(void) { int st = 0; result(wait4(-kid, &st, 0, NULL), kid); CHECK_EQ(st, 5 << 8, "status"); }
static void e_waitid(void) { result(waitid(P_ALL, 0, &si, WEXITED), 0); CHECK_EQ(si.si_pid, kid, "si_pid"); CHECK_EQ(si.si_status, 5, "si_status"); }
static void e_waitid_pid(void) { result(waitid(P_PID, kid, &si, WEXITED), 0); CHECK_EQ(si.si_status, 5, "si_status"); }
static void e_waitid_group(void) { result(waitid(P_PGID, kid, &si, WEXITED), 0); CHECK_EQ(si.si_pid, kid, "si_pid"); }
static void e_wnowait(void) { result(waitid(P_PID, kid, &si, WEXITED | WNOWAIT), 0); CHECK_EQ(si.si_status, 5, "si_status"); fx_reap_ok(fork() ?: (_exit(0), 0)); result(waitpid(kid, NULL, 0), kid); }
static void mk_pidfd(void) { child(5); fd = MUST(syscall(SYS_pidfd_open, kid, 0)); }
static void e_waitid_pidfd(void) { long r = waitid(P_PIDFD, fd, &si, WEXITED); if (!missing(r)) result(r, 0); CHECK_EQ(si.si_status, 5, "si_status"); }
static void e_wstopped(void)
{
	result(waitid(P_PID, kid, &si, WSTOPPED), 0);
	CHECK_EQ(si.si_status, SIGSTOP, "si_status");
	kill(kid, SIGKILL);
	result(waitpid(kid, NULL, 0), kid);
}

/* futexes */
#define W(n) (&sh->word[me][n])
static long futex(volatile uint32_t *w, int op, uint32_t val, const struct timespec *t, volatile uint32_t *w2, uint32_t val3) { return syscall(SYS_futex, w, op, val, t, w2, val3); }
static void c_futex(void) { struct timespec t = ts(T); failed(futex(W(0), FUTEX_WAIT, 0, &t, NULL, 0), ETIMEDOUT); }
static void c_futex_private(void) { uint32_t w = 3; struct timespec t = ts(T); failed(futex(&w, FUTEX_WAIT_PRIVATE, 3, &t, NULL, 0), ETIMEDOUT); }
static void c_futex_bits(void) { struct timespec t = at(CLOCK_MONOTONIC); failed(futex(W(0), FUTEX_WAIT_BITSET, 0, &t, NULL, 6), ETIMEDOUT); }
static void c_futex_bits_private(void) { uint32_t w = 3; struct timespec t = at(CLOCK_MONOTONIC); failed(futex(&w, FUTEX_WAIT_BITSET_PRIVATE, 3, &t, NULL, 6), ETIMEDOUT); }
static void c_futex_real(void) { struct timespec t = at(CLOCK_REALTIME); failed(futex(W(0), FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &t, NULL, ~0u), ETIMEDOUT); }
static void wake(void) { *W(0) = 1; result(futex(W(0), FUTEX_WAKE, 1, NULL, NULL, 0), 1); }
static void wake_bits(void) { *W(0) = 1; result(futex(W(0), FUTEX_WAKE_BITSET, 1, NULL, NULL, 8), 0); result(futex(W(0), FUTEX_WAKE_BITSET, 1, NULL, NULL, 4), 1); }
static void e_futex(void) { result(futex(W(0), FUTEX_WAIT, 0, NULL, NULL, 0), 0); CHECK_EQ(*W(0), 1, "the futex word"); }
static void e_futex_timed(void) { struct timespec t = { 5000, 0 }; result(futex(W(0), FUTEX_WAIT, 0, &t, NULL, 0), 0); CHECK_EQ(*W(0), 1, "the futex word"); }
static void e_futex_bits(void) { result(futex(W(0), FUTEX_WAIT_BITSET, 0, NULL, NULL, 6), 0); CHECK_EQ(*W(0), 1, "the futex word"); }
/* one that inherits priority is held by another thread of the row */
static void *holder(void *arg)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	*W(0) = syscall(SYS_gettid);
	*W(1) = 1;
	await_go();
	fx_pause_ms(20);
	if (arg)
		result(futex(W(0), FUTEX_UNLOCK_PI, 0, NULL, NULL, 0), 0);
	else
		while (!sh->done[me])
			fx_pause_ms(20);
	return NULL;
}
static void hold(void *release) { pthread_t th; pthread_create(&th, NULL, holder, release); while (!*W(1)) fx_pause_ms(1); }
static void mk_held(void) { hold(NULL); }
static void mk_let_go(void) { hold(""); }
static void lock_pi(int op, clockid_t c, int timed)
{
	struct timespec t = at(c);
	long r = futex(W(0), op, 0, timed ? &t : NULL, NULL, 0);
	if (missing(r))
		return;
	if (timed)
		failed(r, ETIMEDOUT);
	else
		{ result(r, 0); CHECK_EQ(*W(0) & FUTEX_TID_MASK, main_tid, "owner of the futex"); }
}
static void c_lock_pi(void) { lock_pi(FUTEX_LOCK_PI, CLOCK_REALTIME, 1); }
static void c_lock_pi2(void) { lock_pi(FUTEX_LOCK_PI2, CLOCK_MONOTONIC, 1); }
static void c_lock_pi2_real(void) { lock_pi(FUTEX_LOCK_PI2 | FUTEX_CLOCK_REALTIME, CLOCK_REALTIME, 1); }
static void e_lock_pi(void) { lock_pi(FUTEX_LOCK_PI, CLOCK_REALTIME, 0); }
static void e_lock_pi2(void) { lock_pi(FUTEX_LOCK_PI2, CLOCK_MONOTONIC, 0); }
static void c_requeue_pi(void) { struct timespec t = at(CLOCK_MONOTONIC); failed(futex(W(0), FUTEX_WAIT_REQUEUE_PI, 0, &t, W(1), 0), ETIMEDOUT); }
static void e_requeue_pi(void) { result(futex(W(0), FUTEX_WAIT_REQUEUE_PI, 0, NULL, W(1), 0), 0); CHECK_EQ(*W(1) & FUTEX_TID_MASK, main_tid, "owner of the futex"); }
static void requeue(void) { result(syscall(SYS_futex, W(0), FUTEX_CMP_REQUEUE_PI, 1, 1, W(1), 0), 1); }
struct waitv { uint64_t val, uaddr; uint32_t flags, reserved; };
struct ktimespec { int64_t sec, nsec; }; /* of newer calls, in 32-bit programs too */
static long waitv(int flags, struct timespec *t, clockid_t c)
{
	struct waitv v[2] = { { 0, (uintptr_t)W(1), 2 | flags, 0 }, { 0, (uintptr_t)W(0), 2 | flags, 0 } };
	struct ktimespec k = { t ? t->tv_sec : 0, t ? t->tv_nsec : 0 };
	return syscall(SYS_futex_waitv, v, 2, 0, t ? &k : NULL, c);
}
static void c_waitv(void) { struct timespec t = at(CLOCK_MONOTONIC); long r = waitv(0, &t, CLOCK_MONOTONIC); if (!missing(r)) failed(r, ETIMEDOUT); }
static void c_waitv_real(void) { struct timespec t = at(CLOCK_REALTIME); long r = waitv(0, &t, CLOCK_REALTIME); if (!missing(r)) failed(r, ETIMEDOUT); }
static void e_waitv(void) { long r = waitv(0, NULL, 0); if (!missing(r)) result(r, 1); }

/* pipes and FIFOs */
static char c;
static struct iovec iov = { &c, 1 };
static void e_read(void) { result(read(p[0], &c, 1), 1); CHECK_EQ(c, 'r', "the byte read"); }
static void e_readv(void) { result(readv(p[0], &iov, 1), 1); CHECK_EQ(c, 'r', "the byte read"); }
static void e_preadv2(void) { result(preadv2(p[0], &iov, 1, -1, 0), 1); CHECK_EQ(c, 'r', "the byte read"); }
static void e_write(void) { result(write(p[1], "w", 1), 1); }
static void e_writev(void) { result(writev(p[1], &iov, 1), 1); }
static void e_pwritev2(void) { result(pwritev2(p[1], &iov, 1, -1, 0), 1); }
/* a write of more than there is room for: a stop may end it early, as signal(7) says, but no byte comes twice or not at all */
static uint64_t data[4 * FULL / 8];
static void e_write_much(void)
{
	size_t n = 0;
	while (n < sizeof data) {
		ssize_t r = write(p[1], (char *)data + n, sizeof data - n);
		if (r <= 0) {
			FAIL("%s: returned %zd, %s", row->name, r, strerror(errno));
			return;
		}
		n += r;
	}
}
static void mk_much(void) { mk_pipe(); fx_fill(data, sizeof data, 77); }
static void take_much(void)
{
	static uint64_t got[4 * FULL / 8];
	for (size_t n = 0; n < sizeof got;) {
		ssize_t r = read(p[0], (char *)got + n, sizeof got - n);
		if (r <= 0) {
			FAIL("%s: only %zu bytes came: %s", row->name, n, strerror(errno));
			return;
		}
		n += r;
	}
	fx_verify("a long write to a pipe", got, sizeof got, 77);
}
static const char *fifo(void)
{
	static char name[32];
	snprintf(name, sizeof name, "fifo-%d", me);
	return fx_path(name);
}
static void mk_fifo(void) { MUST(mkfifo(fifo(), 0600)); }
static void open_other(int flags) { int f = open(fifo(), flags); CHECK(f >= 0, "open of a FIFO: %s", strerror(errno)); CHECK(flags == O_RDONLY || write(f, "r", 1) == 1, "write to a FIFO"); }
static void ev_fifo_w(void) { open_other(O_WRONLY); }
static void ev_fifo_r(void) { open_other(O_RDONLY); }
static void e_fifo_r(void) { int f = open(fifo(), O_RDONLY); CHECK(f >= 0, "open of a FIFO: %s", strerror(errno)); result(read(f, &c, 1), 1); }
static void e_fifo_w(void) { int f = open(fifo(), O_WRONLY); CHECK(f >= 0, "open of a FIFO: %s", strerror(errno)); }
static void mk_fifo_open(void) { mk_fifo(); p[0] = p[1] = MUST(open(fifo(), O_RDWR | O_CLOEXEC)); }
static void mk_file(void)
{
	char name[32];
	snprintf(name, sizeof name, "file-%d", me);
	mk_full();
	fd = MUST(open(fx_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	MUST(write(fd, "contents", 8));
	MUST(lseek(fd, 0, SEEK_SET));
}
static void e_splice_empty(void) { result(splice(p[0], NULL, q[1], NULL, 10, 0), 1); result(read(q[0], &c, 1), 1); CHECK_EQ(c, 'r', "the byte spliced"); }
static void e_splice_full(void) { result(splice(q[0], NULL, p[1], NULL, 1, 0), 1); }
static void e_splice_file(void) { result(splice(fd, NULL, p[1], NULL, 8, 0), 8); CHECK_EQ(lseek(fd, 0, SEEK_CUR), 8, "the position of the file"); }
static void e_tee_empty(void) { result(tee(p[0], q[1], 10, 0), 1); result(read(p[0], &c, 1), 1); }
static void e_tee_full(void) { result(tee(q[0], p[1], 1, 0), 1); }
static void e_vmsplice(void) { result(vmsplice(p[1], &iov, 1, 0), 1); }
static void e_sendfile(void) { off_t off = 0; result(sendfile(p[1], fd, &off, 8), 8); CHECK_EQ(off, 8, "the offset of sendfile"); }

/* eventfd and the like */
static void mk_eventfd(void) { fd = MUST(eventfd(0, EFD_CLOEXEC)); }
static void mk_semfd(void) { fd = MUST(eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE)); }
static void mk_fullfd(void) { uint64_t v = ~0ull - 1; mk_eventfd(); MUST(write(fd, &v, 8)); }
static void ev_eventfd(void) { uint64_t v = 42; result(write(fd, &v, 8), 8); }
static void ev_drain(void) { uint64_t v = 0; result(read(fd, &v, 8), 8); CHECK(v == ~0ull - 1, "eventfd value %llx", (long long)v); }
static void e_eventfd(void) { uint64_t v = 0; result(read(fd, &v, 8), 8); CHECK_EQ(v, 42, "eventfd value"); }
static void e_semfd(void) { uint64_t v = 0; result(read(fd, &v, 8), 8); CHECK_EQ(v, 1, "eventfd value"); }
static void e_fullfd(void) { uint64_t v = 7; result(write(fd, &v, 8), 8); result(read(fd, &v, 8), 8); CHECK_EQ(v, 7, "eventfd value"); }
static void timer(clockid_t k, int flags)
{
	struct itimerspec it = { .it_value = flags ? at(k) : ts(T) };
	uint64_t n = 0;
	int f = MUST(timerfd_create(k, TFD_CLOEXEC));
	MUST(timerfd_settime(f, flags, &it, NULL));
	result(read(f, &n, 8), 8);
	CHECK_EQ(n, 1, "expirations");
}
static void c_timerfd(void) { timer(CLOCK_MONOTONIC, 0); }
static void c_timerfd_abs(void) { timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME); }

static void mk_inotify(void)
{
	char name[32];
	snprintf(name, sizeof name, "watched-%d", me);
	fd2 = MUST(open(fx_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	fd = MUST(inotify_init1(IN_CLOEXEC));
	id = MUST(inotify_add_watch(fd, fx_path(name), IN_ATTRIB));
}
static void ev_inotify(void) { MUST(fchmod(fd2, 0600)); }
static void e_inotify(void)
{
	struct inotify_event e = { 0 };
	result(read(fd, &e, sizeof e), sizeof e);
	CHECK_EQ(e.wd, id, "the watch");
	CHECK_EQ(e.mask, IN_ATTRIB, "the event");
}

/* locks: another open file, or another process, has it until the event */
static struct flock whole(short type) { return (struct flock){ .l_type = type, .l_whence = SEEK_SET }; }
static void mk_lockfile(void)
{
	char name[32];
	snprintf(name, sizeof name, "lock-%d", me);
	fd = MUST(open(fx_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	fd2 = MUST(open(fx_path(name), O_RDWR | O_CLOEXEC));
}
static void mk_flock(void) { mk_lockfile(); MUST(flock(fd2, LOCK_EX)); }
static void mk_ofd(void) { struct flock l = whole(F_WRLCK); mk_lockfile(); MUST(fcntl(fd2, F_OFD_SETLK, &l)); }
static void mk_posix(void)
{
	struct flock l = whole(F_WRLCK);
	mk_lockfile();
	mk_pipe();
	kid = MUST(fork());
	if (!kid) {
		MUST(fcntl(fd2, F_SETLK, &l));
		MUST(write(p[1], "x", 1));
		await_go();
		fx_pause_ms(20);
		_exit(0);
	}
	MUST(read(p[0], &c, 1));
}
static void ev_flock(void) { result(flock(fd2, LOCK_UN), 0); }
static void ev_ofd(void) { struct flock l = whole(F_UNLCK); result(fcntl(fd2, F_OFD_SETLK, &l), 0); }
static void e_flock(void) { result(flock(fd, LOCK_EX), 0); }
static void e_flock_shared(void) { result(flock(fd, LOCK_SH), 0); }
static void e_ofd(void) { struct flock l = whole(F_RDLCK); result(fcntl(fd, F_OFD_SETLKW, &l), 0); }
static void e_posix(void) { struct flock l = whole(F_WRLCK); result(fcntl(fd, F_SETLKW, &l), 0); fx_reap_ok(kid); }

/* System V: the objects lie outside of the tree and stay */
static void mk_sem(void) { id = MUST(semget(IPC_PRIVATE, 1, 0600)); }
static void op(int by) { struct sembuf b = { 0, by, 0 }; result(semop(id, &b, 1), 0); }
static void up(void) { op(1); }
static void e_semop(void) { op(-1); semctl(id, 0, IPC_RMID); }
static void mk_sem_one(void) { mk_sem(); op(1); }
static void down(void) { op(-1); }
static void e_semzero(void) { op(0); semctl(id, 0, IPC_RMID); }
static void c_semtimedop(void) { struct sembuf b = { 0, -1, 0 }; struct timespec t = ts(T); failed(semtimedop(id, &b, 1, &t), EAGAIN); semctl(id, 0, IPC_RMID); }
static void e_semtimedop(void) { struct sembuf b = { 0, -1, 0 }; struct timespec t = { 5000, 0 }; result(semtimedop(id, &b, 1, &t), 0); semctl(id, 0, IPC_RMID); }
static struct { long type; char text[8]; } msg;
static void mk_msg(void) { id = MUST(msgget(IPC_PRIVATE, 0600)); }
static void mk_msg_full(void)
{
	mk_msg();
	msg.type = 3;
	while (msgsnd(id, &msg, 8, IPC_NOWAIT) == 0)
		;
}
static void ev_msg(void) { msg.type = 3; memcpy(msg.text, "message", 8); result(msgsnd(id, &msg, 8, 0), 0); }
/* one message, no more: as soon as there is room the sender is done and removes the queue */
static void ev_msg_take(void) { struct { long type; char text[8]; } m; result(msgrcv(id, &m, 8, 3, IPC_NOWAIT), 8); }
static void e_msgrcv(void) { struct { long type; char text[8]; } m = { 0 }; result(msgrcv(id, &m, 8, 3, 0), 8); CHECK(!strcmp(m.text, "message"), "the message"); msgctl(id, IPC_RMID, NULL); }
static void e_msgsnd(void) { msg.type = 3; result(msgsnd(id, &msg, 8, 0), 0); msgctl(id, IPC_RMID, NULL); }

static const struct row rows[] = {
	{ "nanosleep", REL, 0, c_nanosleep, 0 }, { "nanosleep with rem", REL, 0, c_nanosleep_rem, 0 },
	{ "clock_nanosleep MONOTONIC", REL, 0, c_mono, 0 }, { "clock_nanosleep REALTIME", REL, 0, c_real, 0 }, { "clock_nanosleep BOOTTIME", REL, 0, c_boot, 0 },
	{ "clock_nanosleep TAI", REL, 0, c_tai, 0 }, { "clock_nanosleep BOOTTIME_ALARM", REL, 0, c_bootalarm, 0 }, { "clock_nanosleep REALTIME_ALARM", REL, 0, c_realalarm, 0 },
	{ "clock_nanosleep MONOTONIC absolute", ABS, 0, c_amono, 0 }, { "clock_nanosleep REALTIME absolute", ABS, 0, c_areal, 0 }, { "clock_nanosleep BOOTTIME absolute", ABS, 0, c_aboot, 0 },
	{ "clock_nanosleep TAI absolute", ABS, 0, c_atai, 0 }, { "clock_nanosleep on CPU time", EVENT, 0, c_cpu, burn },
	{ "nanosleep that a signal ends", EVENT, mk_handler, c_rem, sig }, { "pause until an alarm", REL, 0, c_alarm, 0 },
	{ "poll", REL, mk_pipe, c_poll, 0 }, { "poll of nothing", REL, 0, c_poll_none, 0 }, { "ppoll", REL, mk_pipe, c_ppoll, 0 }, { "select", REL, mk_pipe, c_select, 0 }, { "pselect", REL, mk_pipe, c_pselect, 0 },
	{ "poll until ready", EVENT, mk_pipe, e_poll, put }, { "ppoll until ready", EVENT, mk_pipe, e_ppoll, put }, { "select until ready", EVENT, mk_pipe, e_select, put }, { "pselect until ready", EVENT, mk_pipe, e_pselect, put },
	{ "epoll_wait", AGAIN, mk_epoll, c_epoll, 0 }, { "epoll_pwait", AGAIN, mk_epoll, c_epoll_pwait, 0 }, { "epoll_pwait2", AGAIN, mk_epoll, c_epoll_pwait2, 0 },
	{ "epoll_wait until ready", EVENT, mk_epoll, e_epoll, put }, { "epoll_pwait until ready", EVENT, mk_epoll, e_epoll_pwait, put }, { "epoll_pwait2 until ready", EVENT, mk_epoll, e_epoll_pwait2, put },
	{ "ppoll until a signal", EVENT, mk_let_in, s_ppoll, sig }, { "pselect until a signal", EVENT, mk_let_in, s_pselect, sig }, { "epoll_pwait until a signal", EVENT, mk_let_in, s_epoll_pwait, sig },
	{ "pause", EVENT, mk_handler, e_pause, sig }, { "sigsuspend", EVENT, mk_let_in, e_sigsuspend, sig }, { "rt_sigtimedwait", AGAIN, mk_blocked, c_sigtimedwait, 0 },
	{ "sigwaitinfo", EVENT, mk_blocked, e_sigwaitinfo, sig }, { "read of a signalfd", EVENT, mk_signalfd, e_signalfd, sig },
	{ "wait4", EVENT, mk_child, e_wait4, 0 }, { "wait4 for a group", EVENT, mk_child_group, e_wait4_group, 0 }, { "waitid", EVENT, mk_child, e_waitid, 0 }, { "waitid P_PID", EVENT, mk_child, e_waitid_pid, 0 },
	{ "waitid P_PGID", EVENT, mk_child_group, e_waitid_group, 0 }, { "waitid P_PIDFD", EVENT, mk_pidfd, e_waitid_pidfd, 0 }, { "waitid WNOWAIT", EVENT, mk_child, e_wnowait, 0 }, { "waitid WSTOPPED", EVENT, mk_stopper, e_wstopped, 0 },
	{ "FUTEX_WAIT", REL, 0, c_futex, 0 }, { "FUTEX_WAIT private", REL, 0, c_futex_private, 0 }, { "FUTEX_WAIT_BITSET", ABS, 0, c_futex_bits, 0 }, { "FUTEX_WAIT_BITSET private", ABS, 0, c_futex_bits_private, 0 },
	{ "FUTEX_WAIT_BITSET realtime", ABS, 0, c_futex_real, 0 }, { "FUTEX_WAIT until woken", EVENT, 0, e_futex, wake }, { "FUTEX_WAIT with time until woken", EVENT, 0, e_futex_timed, wake },
	{ "FUTEX_WAIT_BITSET until woken", EVENT, 0, e_futex_bits, wake_bits },
	{ "FUTEX_LOCK_PI", ABS, mk_held, c_lock_pi, 0 }, { "FUTEX_LOCK_PI2", ABS, mk_held, c_lock_pi2, 0 }, { "FUTEX_LOCK_PI2 realtime", ABS, mk_held, c_lock_pi2_real, 0 },
	{ "FUTEX_LOCK_PI until free", EVENT, mk_let_go, e_lock_pi, 0 }, { "FUTEX_LOCK_PI2 until free", EVENT, mk_let_go, e_lock_pi2, 0 },
	{ "FUTEX_WAIT_REQUEUE_PI", ABS, 0, c_requeue_pi, 0 }, { "FUTEX_WAIT_REQUEUE_PI until requeued", EVENT, 0, e_requeue_pi, requeue },
	{ "futex_waitv", ABS, 0, c_waitv, 0 }, { "futex_waitv realtime", ABS, 0, c_waitv_real, 0 }, { "futex_waitv until woken", EVENT, 0, e_waitv, wake },
	{ "read of a pipe", EVENT, mk_pipe, e_read, put }, { "readv of a pipe", EVENT, mk_pipe, e_readv, put }, { "preadv2 of a pipe", EVENT, mk_pipe, e_preadv2, put },
	{ "write to a full pipe", EVENT, mk_full, e_write, take }, { "writev to a full pipe", EVENT, mk_full, e_writev, take }, { "pwritev2 to a full pipe", EVENT, mk_full, e_pwritev2, take },
	{ "a long write to a pipe", EVENT, mk_much, e_write_much, take_much }, { "read of a FIFO", EVENT, mk_fifo_open, e_read, put },
	{ "open of a FIFO to read", EVENT, mk_fifo, e_fifo_r, ev_fifo_w }, { "open of a FIFO to write", EVENT, mk_fifo, e_fifo_w, ev_fifo_r },
	{ "splice from an empty pipe", EVENT, mk_q, e_splice_empty, put }, { "splice to a full pipe", EVENT, mk_both, e_splice_full, take }, { "splice of a file to a full pipe", EVENT, mk_file, e_splice_file, take },
	{ "tee from an empty pipe", EVENT, mk_q, e_tee_empty, put }, { "tee to a full pipe", EVENT, mk_both, e_tee_full, take }, { "vmsplice to a full pipe", EVENT, mk_full, e_vmsplice, take },
	{ "sendfile to a full pipe", EVENT, mk_file, e_sendfile, take },
	{ "read of an eventfd", EVENT, mk_eventfd, e_eventfd, ev_eventfd }, { "read of a semaphore eventfd", EVENT, mk_semfd, e_semfd, ev_eventfd }, { "write to a full eventfd", EVENT, mk_fullfd, e_fullfd, ev_drain },
	{ "read of an inotify instance", EVENT, mk_inotify, e_inotify, ev_inotify },
	{ "read of a timerfd", REL, 0, c_timerfd, 0 }, { "read of an absolute timerfd", ABS, 0, c_timerfd_abs, 0 },
	{ "flock", EVENT, mk_flock, e_flock, ev_flock }, { "flock shared", EVENT, mk_flock, e_flock_shared, ev_flock }, { "F_OFD_SETLKW", EVENT, mk_ofd, e_ofd, ev_ofd }, { "F_SETLKW", EVENT, mk_posix, e_posix, 0 },
	{ "semop", EVENT, mk_sem, e_semop, up }, { "semop for zero", EVENT, mk_sem_one, e_semzero, down }, { "semtimedop", AGAIN, mk_sem, c_semtimedop, 0 }, { "semtimedop until ready", EVENT, mk_sem, e_semtimedop, up },
	{ "msgrcv", EVENT, mk_msg, e_msgrcv, ev_msg }, { "msgsnd", EVENT, mk_msg_full, e_msgsnd, ev_msg_take },
};
enum { N = sizeof rows / sizeof *rows };
_Static_assert(sizeof rows / sizeof *rows <= MAX, "rows");

static void check_times(void)
{
	for (int i = 0; i < N; i++) {
		int64_t start = sh->start[i], end = sh->end[i], least = T, most = INT64_MAX;
		long long a, b, c, d;
		if (rows[i].kind == EVENT || sh->absent[i])
			continue;
		FILE *f = fopen(fx_path("downtime"), "re");
		while (f && fscanf(f, "%lld %lld %lld %lld", &a, &b, &c, &d) == 4)
			if (end > c) {
				least += rows[i].kind == ABS ? 0 : c - b;
				/* half of T had passed; with all of it again, it would last until c + T at least */
				most = d + T / 2 + 3000000000ll > c + T ? d + T / 2 + 3000000000ll : c + T;
			}
		if (f)
			fclose(f);
		CHECK(end - start >= least - 2000000, "%s ended early, after %.3f s, at least %.3f are due", rows[i].name, (end - start) / 1e9, least / 1e9);
		if (rows[i].kind == REL)
			CHECK(end < most, "%s ended %.3f s after the tree ran again, it was due %.3f s after it at most", rows[i].name, (end - d) / 1e9, T / 2e9);
	}
}

static void run(void)
{
	pthread_t th;
	main_tid = syscall(SYS_gettid);
	if (row->prepare)
		row->prepare();
	if (row->event)
		pthread_create(&th, NULL, helper, NULL);
	fx_up();
	sh->start[me] = fx_now(CLOCK_MONOTONIC);
	row->call();
	sh->end[me] = fx_now(CLOCK_MONOTONIC);
	if (row->kind == EVENT && !sh->absent[me])
		CHECK(sh->go, "%s ended before its event", row->name);
	sh->done[me] = 1;
	if (row->event && !sh->absent[me])
		pthread_join(th, NULL);
	await_go(); /* whoever ends while the tree is dumped is missed */
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	sh = MUST(mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid_t pid[N];
	for (me = 0; me < N; me++) {
		row = &rows[me];
		if (!(pid[me] = MUST(fork())))
			run();
	}
	fx_await_up(N);
	for (int i = 0; i < N; i++)
		while (!sh->done[i] && fx_state(pid[i]) != 'S')
			fx_pause_ms(5);
	fx_pause_ms(T / 2000000);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < N; i++)
		if (rows[i].kind == EVENT && !sh->absent[i])
			CHECK(!sh->done[i], "%s ended before its event", rows[i].name);
	sh->go = 1;
	syscall(SYS_futex, &sh->go, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	for (int i = 0; i < N; i++)
		fx_reap_ok(pid[i]);
	check_times();
	fx_finish();
}
