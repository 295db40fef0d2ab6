/*
 * Blocking calls that a dump and a restore interrupt. Each is made by a process of its own and must end as if nothing had happened:
 * never EINTR, never too early, and never late. The harness leaves in DIR/downtime a line "A B C D" for every time the tree was away
 * (nanoseconds of CLOCK_MONOTONIC: dump began, dump had ended, restore began, restore had ended): a relative wait that was under way at A
 * lasts longer by C-B at least and by D-A at most, an absolute one does not. The kernel keeps nowhere how much of epoll_wait and sigtimedwait was left
 * (they show EINTR, not a restart block): these may begin afresh, and still must not end early or with EINTR.
 *
 *   sleeps DIR TIMEOUT-MS
 */
#include "fixture.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#define SLACK 1500000000ll /* a loaded machine; less than TIMEOUT-MS, so that a wait started afresh is seen */

static int64_t T; /* the timeout, ns */
static struct { volatile uint32_t word, wake[8]; volatile pid_t pid[64]; } *sh;
static int quiet[2], pipe_in[2], pipe_full[2], efd, pipe_poll[2], pipe_epoll[2], pipe_select[2];

static struct timespec ts(int64_t ns) { return (struct timespec){ ns / 1000000000, ns % 1000000000 }; }

static void nothing(int sig) { (void)sig; }

enum kind { REL, ABS, AGAIN, EVENT };

/* r: what the call gave */
static void result(const char *name, long r, long want)
{
	if (r != want)
		FAIL("%s: returned %ld (%s), want %ld", name, r, r < 0 ? strerror(errno) : "-", want);
}

/* each call below starts at once and returns 0 for REL and ABS kinds after having checked what the call gave */
static void c_nanosleep(void) { struct timespec t = ts(T); result("nanosleep", nanosleep(&t, NULL), 0); }
static void c_nanosleep_rem(void)
{
	struct timespec t = ts(T), rem = { -7, -7 };
	result("nanosleep with rem", nanosleep(&t, &rem), 0);
	/* the kernel writes rem only when a sleep ends early; an interruption that nobody asked for may have written it */
	CHECK((t.tv_sec == T / 1000000000), "the request was overwritten: %ld", (long)t.tv_sec);
}
static void c_clock_mono(void) { struct timespec t = ts(T); errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL); result("clock_nanosleep", errno, 0); }
static void c_clock_real(void) { struct timespec t = ts(T); errno = clock_nanosleep(CLOCK_REALTIME, 0, &t, NULL); result("clock_nanosleep real", errno, 0); }
static void c_clock_boot(void) { struct timespec t = ts(T); errno = clock_nanosleep(CLOCK_BOOTTIME, 0, &t, NULL); result("clock_nanosleep boot", errno, 0); }
static void c_abs_mono(void) { struct timespec t = ts(fx_now(CLOCK_MONOTONIC) + T); errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL); result("clock_nanosleep absolute", errno, 0); }
static void c_abs_real(void) { struct timespec t = ts(fx_now(CLOCK_REALTIME) + T); errno = clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL); result("clock_nanosleep absolute real", errno, 0); }
static void c_poll(void) { struct pollfd p = { quiet[0], POLLIN, 0 }; result("poll", poll(&p, 1, T / 1000000), 0); }
static void c_poll_none(void) { result("poll of nothing", poll(NULL, 0, T / 1000000), 0); }
static void c_ppoll(void)
{
	struct pollfd p = { quiet[0], POLLIN, 0 };
	struct timespec t = ts(T);
	sigset_t m, before, after;
	sigprocmask(SIG_SETMASK, NULL, &before);
	sigemptyset(&m);
	sigaddset(&m, SIGHUP);
	result("ppoll", ppoll(&p, 1, &t, &m), 0);
	sigprocmask(SIG_SETMASK, NULL, &after);
	CHECK(!memcmp(&before, &after, 8), "signal mask after ppoll: %lx, want %lx", *(long *)&after, *(long *)&before);
}
static void c_select(void) { struct timeval t = { T / 1000000000, T / 1000 % 1000000 }; fd_set r; FD_ZERO(&r); FD_SET(quiet[0], &r); result("select", select(quiet[0] + 1, &r, NULL, NULL, &t), 0); }
static void c_pselect(void)
{
	struct timespec t = ts(T);
	fd_set r;
	sigset_t m, before, after;
	sigprocmask(SIG_SETMASK, NULL, &before);
	sigemptyset(&m);
	sigaddset(&m, SIGUSR2);
	FD_ZERO(&r);
	FD_SET(quiet[0], &r);
	result("pselect", pselect(quiet[0] + 1, &r, NULL, NULL, &t, &m), 0);
	sigprocmask(SIG_SETMASK, NULL, &after);
	CHECK(!memcmp(&before, &after, 8), "signal mask after pselect: %lx", *(long *)&after);
}
static void c_futex(void)
{
	uint32_t mine = 5;
	struct timespec t = ts(T);
	long r = syscall(SYS_futex, &mine, FUTEX_WAIT_PRIVATE, 5, &t, NULL, 0);
	CHECK(r == -1 && errno == ETIMEDOUT, "futex: %ld, %s, want ETIMEDOUT", r, strerror(errno));
}
static void c_futex_abs(void)
{
	struct timespec t = ts(fx_now(CLOCK_MONOTONIC) + T);
	long r = syscall(SYS_futex, &sh->word, FUTEX_WAIT_BITSET, 0, &t, NULL, 0x10);
	CHECK(r == -1 && errno == ETIMEDOUT, "futex absolute: %ld, %s, want ETIMEDOUT", r, strerror(errno));
}
static void c_epoll(void)
{
	int e = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event ev = { .events = EPOLLIN };
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, quiet[0], &ev));
	result("epoll_wait", epoll_wait(e, &ev, 1, T / 1000000), 0);
}
static void c_epoll_pwait(void)
{
	int e = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event ev = { .events = EPOLLIN };
	sigset_t m, before, after;
	sigprocmask(SIG_SETMASK, NULL, &before);
	sigfillset(&m);
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, quiet[0], &ev));
	result("epoll_pwait", epoll_pwait(e, &ev, 1, T / 1000000, &m), 0);
	sigprocmask(SIG_SETMASK, NULL, &after);
	CHECK(!memcmp(&before, &after, 8), "signal mask after epoll_pwait: %lx", *(long *)&after);
}
static void c_sigtimedwait(void)
{
	sigset_t s;
	struct timespec t = ts(T);
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN + 7);
	sigprocmask(SIG_BLOCK, &s, NULL);
	long r = sigtimedwait(&s, NULL, &t);
	CHECK(r == -1 && errno == EAGAIN, "sigtimedwait: %ld, %s, want EAGAIN", r, strerror(errno));
}
static void c_timerfd(void)
{
	int fd = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	struct itimerspec it = { .it_value = ts(T) };
	uint64_t n = 0;
	MUST(timerfd_settime(fd, 0, &it, NULL));
	result("read of a timerfd", read(fd, &n, 8), 8);
	CHECK_EQ(n, 1, "expirations");
}

/* waits that the root ends after the check */
static void e_read(void) { char c = 0; result("read of a pipe", read(pipe_in[0], &c, 1), 1); CHECK_EQ(c, 'r', "byte read"); }
static void e_write(void) { char c = 'w'; result("write to a full pipe", write(pipe_full[1], &c, 1), 1); }
static void e_eventfd(void) { uint64_t v = 0; result("read of an eventfd", read(efd, &v, 8), 8); CHECK_EQ(v, 42, "eventfd value"); }
static void e_poll(void) { struct pollfd p = { pipe_poll[0], POLLIN, 0 }; result("poll without end", poll(&p, 1, -1), 1); CHECK_EQ(p.revents, POLLIN, "revents"); }
static void e_select(void) { fd_set r; FD_ZERO(&r); FD_SET(pipe_select[0], &r); result("select without end", select(pipe_select[0] + 1, &r, NULL, NULL, NULL), 1); CHECK(FD_ISSET(pipe_select[0], &r), "descriptor set after select"); }
static void e_epoll(void)
{
	int e = MUST(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0x1234567890ull };
	MUST(epoll_ctl(e, EPOLL_CTL_ADD, pipe_epoll[0], &ev));
	memset(&ev, 0, sizeof ev);
	result("epoll_wait without end", epoll_wait(e, &ev, 1, -1), 1);
	CHECK_EQ(ev.data.u64, 0x1234567890ull, "data of the event");
}
static void e_futex(void) { long r = syscall(SYS_futex, &sh->wake[0], FUTEX_WAIT, 0, NULL, NULL, 0); result("futex without timeout", r, 0); CHECK_EQ(sh->wake[0], 1, "the futex word"); }
static void e_signalfd(void)
{
	sigset_t s;
	struct signalfd_siginfo si;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL);
	int fd = MUST(signalfd(-1, &s, SFD_CLOEXEC));
	result("read of a signalfd", read(fd, &si, sizeof si), sizeof si);
	CHECK_EQ(si.ssi_signo, SIGUSR1, "ssi_signo");
}
static void e_sigwaitinfo(void)
{
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL);
	result("sigwaitinfo", sigwaitinfo(&s, NULL), SIGUSR1);
}
static void e_pause(void) { signal(SIGUSR1, nothing); int r = pause(); CHECK(r == -1 && errno == EINTR, "pause: %d, %s", r, strerror(errno)); CHECK(fx_exists("check"), "pause returned before the signal"); }
static void e_sigsuspend(void)
{
	sigset_t m, before, after;
	signal(SIGUSR1, nothing);
	sigemptyset(&m);
	sigaddset(&m, SIGUSR1);
	sigaddset(&m, SIGUSR2);
	sigprocmask(SIG_SETMASK, &m, &before);
	sigprocmask(SIG_SETMASK, NULL, &before);
	sigemptyset(&m);
	sigaddset(&m, SIGHUP);
	int r = sigsuspend(&m);
	CHECK(r == -1 && errno == EINTR, "sigsuspend: %d, %s", r, strerror(errno));
	CHECK(fx_exists("check"), "sigsuspend returned before the signal");
	sigprocmask(SIG_SETMASK, NULL, &after);
	CHECK(!memcmp(&before, &after, 8), "signal mask after sigsuspend: %lx, want %lx", *(long *)&after, *(long *)&before);
}
static void e_wait4(void)
{
	int st = 0;
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_wait_check();
		fx_pause_ms(50);
		_exit(5);
	}
	result("wait4", waitpid(kid, &st, 0), kid);
	CHECK_EQ(st, 5 << 8, "status");
}
static void e_waitid(void)
{
	siginfo_t si = { 0 };
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_wait_check();
		fx_pause_ms(50);
		_exit(6);
	}
	result("waitid", waitid(P_ALL, 0, &si, WEXITED), 0);
	CHECK_EQ(si.si_pid, kid, "si_pid");
	CHECK_EQ(si.si_status, 6, "si_status");
}
static void e_fifo(void) { int fd = open(fx_path("fifo"), O_RDONLY); CHECK(fd >= 0, "open of a FIFO: %s", strerror(errno)); char c = 0; result("read of the FIFO", read(fd, &c, 1), 1); }
/* a sleep that a real signal ends says what was left, counted without the time away */
static void e_rem(void)
{
	struct timespec t = { 100, 0 }, rem = { 0, 0 };
	signal(SIGUSR1, nothing);
	int r = nanosleep(&t, &rem);
	CHECK(r == -1 && errno == EINTR, "nanosleep that a signal ends: %d, %s", r, strerror(errno));
	CHECK(fx_exists("check"), "nanosleep returned before the signal");
	CHECK(rem.tv_sec < 100 && rem.tv_sec > 20, "time left %ld s", (long)rem.tv_sec);
}

static struct wait { const char *name; void (*call)(void); enum kind kind; int signal; } waits[] = {
	{ "nanosleep", c_nanosleep, REL, 0 }, { "nanosleep-rem", c_nanosleep_rem, REL, 0 }, { "clock-mono", c_clock_mono, REL, 0 }, { "clock-real", c_clock_real, REL, 0 },
	{ "clock-boot", c_clock_boot, REL, 0 }, { "abs-mono", c_abs_mono, ABS, 0 }, { "abs-real", c_abs_real, ABS, 0 }, { "poll", c_poll, REL, 0 }, { "poll-none", c_poll_none, REL, 0 },
	{ "ppoll", c_ppoll, REL, 0 }, { "select", c_select, REL, 0 }, { "pselect", c_pselect, REL, 0 }, { "futex", c_futex, REL, 0 }, { "futex-abs", c_futex_abs, ABS, 0 },
	{ "epoll", c_epoll, AGAIN, 0 }, { "epoll-pwait", c_epoll_pwait, AGAIN, 0 }, { "sigtimedwait", c_sigtimedwait, AGAIN, 0 }, { "timerfd", c_timerfd, REL, 0 },
	{ "read", e_read, EVENT, 0 }, { "write", e_write, EVENT, 0 }, { "eventfd", e_eventfd, EVENT, 0 }, { "poll-event", e_poll, EVENT, 0 }, { "select-event", e_select, EVENT, 0 },
	{ "epoll-event", e_epoll, EVENT, 0 }, { "futex-event", e_futex, EVENT, 0 }, { "signalfd", e_signalfd, EVENT, SIGUSR1 }, { "sigwaitinfo", e_sigwaitinfo, EVENT, SIGUSR1 },
	{ "pause", e_pause, EVENT, SIGUSR1 }, { "sigsuspend", e_sigsuspend, EVENT, SIGUSR1 }, { "wait4", e_wait4, EVENT, 0 }, { "waitid", e_waitid, EVENT, 0 },
	{ "fifo", e_fifo, EVENT, 0 }, { "rem", e_rem, EVENT, SIGUSR1 },
};
enum { N = sizeof waits / sizeof *waits };

static void check_times(struct wait *w, int64_t start, int64_t end)
{
	long long a, b, c, d;
	int64_t least = T, most = T;
	FILE *f = fopen(fx_path("downtime"), "re");
	while (f && fscanf(f, "%lld %lld %lld %lld", &a, &b, &c, &d) == 4) {
		if (end < a)
			continue;
		if (w->kind == REL)
			least += c - b, most += d - a;
		else if (w->kind == AGAIN)
			most = d - start + T;
		else if (d > start + most)
			most = d - start; /* an absolute time that passed meanwhile is noticed at the restore */
	}
	if (f)
		fclose(f);
	CHECK(end - start >= least - 2000000, "%s ended %.3f s too early: after %.3f s, at least %.3f due", w->name, (least - (end - start)) / 1e9, (end - start) / 1e9, least / 1e9);
	CHECK(end - start <= most + SLACK, "%s ended %.3f s too late: after %.3f s, at most %.3f due", w->name, (end - start - most) / 1e9, (end - start) / 1e9, most / 1e9);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	T = (fx_argc > 0 ? atoll(fx_argv[0]) : 4000) * 1000000;
	if (T < 2 * SLACK)
		fprintf(stderr, "timeout below %lld ms proves little\n", 2 * SLACK / 1000000);
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(pipe2(quiet, O_CLOEXEC)), MUST(pipe2(pipe_in, O_CLOEXEC)), MUST(pipe2(pipe_full, O_CLOEXEC)), MUST(pipe2(pipe_poll, O_CLOEXEC)), MUST(pipe2(pipe_epoll, O_CLOEXEC)), MUST(pipe2(pipe_select, O_CLOEXEC));
	efd = MUST(eventfd(0, EFD_CLOEXEC));
	MUST(mkfifo(fx_path("fifo"), 0600));
	fcntl(pipe_full[1], F_SETFL, O_NONBLOCK);
	static char full[65536];
	while (write(pipe_full[1], full, sizeof full) > 0)
		;
	fcntl(pipe_full[1], F_SETFL, 0);
	pid_t pid[N];
	for (int i = 0; i < N; i++) {
		pid[i] = MUST(fork());
		if (pid[i])
			continue;
		fx_up();
		int64_t start = fx_now(CLOCK_MONOTONIC);
		waits[i].call();
		int64_t end = fx_now(CLOCK_MONOTONIC);
		fx_wait_check();
		if (waits[i].kind != EVENT)
			check_times(&waits[i], start, end);
		_exit(0);
	}
	fx_await_up(N);
	for (int i = 0; i < N; i++)
		fx_await_state(pid[i], 'S');
	fx_ready();
	fx_wait_check();
	/* nothing that waits for an event has returned */
	fx_pause_ms(100);
	for (int i = 0; i < N; i++)
		if (waits[i].kind == EVENT && waits[i].call != e_wait4 && waits[i].call != e_waitid)
			CHECK_EQ(waitpid(pid[i], NULL, WNOHANG), 0, waits[i].name);
	CHECK(write(pipe_in[1], "r", 1) == 1, "write");
	CHECK(read(pipe_full[0], full, 8192) == 8192, "read");
	CHECK(write(pipe_poll[1], "p", 1) == 1 && write(pipe_epoll[1], "e", 1) == 1 && write(pipe_select[1], "s", 1) == 1, "write");
	uint64_t v = 42;
	CHECK(write(efd, &v, 8) == 8, "write");
	sh->wake[0] = 1;
	syscall(SYS_futex, &sh->wake[0], FUTEX_WAKE, 1, NULL, NULL, 0);
	int fd = open(fx_path("fifo"), O_WRONLY);
	CHECK(fd >= 0 && write(fd, "f", 1) == 1, "FIFO: %s", strerror(errno));
	for (int i = 0; i < N; i++)
		if (waits[i].signal)
			MUST(kill(pid[i], waits[i].signal));
	for (int i = 0; i < N; i++)
		fx_reap_ok(pid[i]);
	fx_finish();
}
