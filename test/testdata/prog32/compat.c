/*
 * A 32-bit program of a 64-bit kernel: what only such a program has. Threads with segments of set_thread_area, robust lists and the
 * x87 stack; a thread inside a handler, whose frame is one of 32-bit code; calls that sleep, by int 0x80 and by the vdso's sysenter,
 * with times of 32 and of 64 bits; a 64-bit shell as its child, and this program again as the child of that.
 */
#include "../prog/fixture.h"
#include <asm/ldt.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/utsname.h>

#ifndef __i386__
#error this is a 32-bit fixture
#endif

static long int80(long nr, long a, long b, long c, long d, long e)
{
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
	return r;
}

/* the entry of the kernel's vdso, as libc calls it: gs:0x10 of its thread descriptor */
static long vsyscall(long nr, long a, long b, long c, long d, long e)
{
	long r;
	__asm__ volatile("call *%%gs:0x10" : "=a"(r) : "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory", "cc");
	return r;
}

typedef long caller(long, long, long, long, long, long);

enum { NR_NANOSLEEP = 162, NR_POLL = 168, NR_FUTEX = 240, NR_CLOCK_NANOSLEEP_TIME64 = 407, NR_FUTEX_TIME64 = 422 };

struct time32 { int32_t sec, nsec; };
struct time64 { int64_t sec, nsec; };

#define SLEEP_MS 20000

struct sleeper { const char *what; caller *call; int kind; pthread_t thread; int64_t begin; };

static int word; /* that nobody changes */

static void *sleeps(void *arg)
{
	struct sleeper *s = arg;
	struct time32 t32 = { SLEEP_MS / 1000, 0 }, rem32 = { -1, -1 };
	struct time64 t64 = { SLEEP_MS / 1000, 0 }, rem64 = { -1, -1 };
	struct time32 was32 = t32;
	struct pollfd none = { -1, POLLIN, 0 };
	long r = -1, want = 0;
	s->begin = fx_now(CLOCK_MONOTONIC);
	fx_up();
	switch (s->kind) {
	case 0:
		r = s->call(NR_NANOSLEEP, (long)&t32, (long)&rem32, 0, 0, 0);
		break;
	case 1:
		r = s->call(NR_NANOSLEEP, (long)&t32, 0, 0, 0, 0);
		break;
	case 2:
		r = s->call(NR_CLOCK_NANOSLEEP_TIME64, CLOCK_MONOTONIC, 0, (long)&t64, (long)&rem64, 0);
		break;
	case 3:
		r = s->call(NR_POLL, (long)&none, 1, SLEEP_MS, 0, 0);
		break;
	case 4:
		r = s->call(NR_FUTEX, (long)&word, FUTEX_WAIT_PRIVATE, 0, (long)&t32, 0), want = -ETIMEDOUT;
		break;
	case 5:
		r = s->call(NR_FUTEX_TIME64, (long)&word, FUTEX_WAIT, 0, (long)&t64, 0), want = -ETIMEDOUT;
		break;
	}
	int64_t took = (fx_now(CLOCK_MONOTONIC) - s->begin) / 1000000;
	if (r != want)
		FAIL("%s, kind %d: returned %ld, want %ld", s->what, s->kind, r, want);
	if (took < SLEEP_MS)
		FAIL("%s, kind %d: took %d ms of %d", s->what, s->kind, (int)took, SLEEP_MS);
	if (memcmp(&t32, &was32, sizeof t32))
		FAIL("%s, kind %d: its own time was changed", s->what, s->kind);
	return NULL;
}

/* a handler that is running at the dump and returns after the restore, with SA_SIGINFO and without */
static volatile int inside[2], stay = 1;
static volatile unsigned long frame_ip[2];

static void handler(int sig)
{
	(void)sig;
	inside[0] = 1;
	fx_up();
	while (stay)
		int80(NR_NANOSLEEP, (long)&(struct time32){ 0, 5000000 }, 0, 0, 0, 0);
}

static void handler_info(int sig, siginfo_t *info, void *uc)
{
	frame_ip[1] = ((ucontext_t *)uc)->uc_mcontext.gregs[REG_EIP];
	inside[1] = info->si_signo == sig && info->si_code == SI_TKILL && info->si_pid == getpid();
	fx_up();
	while (stay)
		int80(NR_NANOSLEEP, (long)&(struct time32){ 0, 5000000 }, 0, 0, 0, 0);
	CHECK_EQ(info->si_signo, sig, "the siginfo in the frame");
}

static void *handled(void *arg)
{
	int sig = (long)arg;
	volatile uint32_t before = 0x12345678;
	double x = 1.5;
	__asm__ volatile("" : "+t"(x));
	pthread_kill(pthread_self(), sig);
	__asm__ volatile("" : "+t"(x));
	CHECK(before == 0x12345678 && x == 1.5);
	return NULL;
}

static volatile int late_signals;
static void late(int sig, siginfo_t *info, void *uc)
{
	(void)uc;
	CHECK_EQ(info->si_signo, sig, "the siginfo of a signal after the restore");
	late_signals++;
}

/* a segment beside libc's own, read through fs; and libc's robust list, and what is on the x87 stack and in xmm registers */
static volatile int over;

static void *segment(void *arg)
{
	uint32_t mark[4] = { 0xfeed0000 + (long)arg, 1, 2, 3 };
	struct user_desc d = { .entry_number = -1, .base_addr = (unsigned long)mark, .limit = sizeof mark - 1, .seg_32bit = 1, .useable = 1 }, got;
	uint32_t head, len, head2 = 0, v;
	CHECK_EQ(int80(SYS_set_thread_area, (long)&d, 0, 0, 0, 0), 0, "set_thread_area");
	CHECK_EQ(int80(SYS_get_robust_list, 0, (long)&head, (long)&len, 0, 0), 0, "get_robust_list");
	CHECK(head != 0 && len == 12);
	unsigned short fs = d.entry_number << 3 | 3, was;
	__asm__ volatile("mov %%fs, %0" : "=r"(was));
	__asm__ volatile("mov %0, %%fs" : : "r"(fs));
	double deep[3] = { 1.25 + (long)arg, 2.5, 1e300 }, out[3];
	uint32_t xmm[4] = { 1, 2, 3, 4 + (long)arg }, xout[4];
	fx_up();
	__asm__ volatile(
		"fldl (%1)\n fldl 8(%1)\n fldl 16(%1)\n movups (%3), %%xmm5\n"
		"1: pause\n cmpl $0, (%0)\n je 1b\n"
		"movups %%xmm5, (%4)\n fstpl 16(%2)\n fstpl 8(%2)\n fstpl (%2)\n"
		: : "r"(&over), "r"(deep), "r"(out), "r"(xmm), "r"(xout) : "memory", "cc");
	CHECK(!memcmp(deep, out, sizeof deep), "the x87 stack");
	CHECK(!memcmp(xmm, xout, sizeof xmm), "xmm5");
	__asm__ volatile("mov %%fs:0, %0" : "=r"(v));
	CHECK_EQ(v, mark[0], "what fs leads to");
	unsigned short is;
	__asm__ volatile("mov %%fs, %0" : "=r"(is));
	CHECK_EQ(is, fs, "the selector in fs");
	__asm__ volatile("mov %0, %%fs" : : "r"(was));
	memset(&got, 0, sizeof got);
	got.entry_number = d.entry_number;
	CHECK_EQ(int80(SYS_get_thread_area, (long)&got, 0, 0, 0, 0), 0, "get_thread_area");
	CHECK(!memcmp(&got, &d, sizeof d), "the segment's description");
	CHECK_EQ(int80(SYS_get_robust_list, 0, (long)&head2, (long)&len, 0, 0), 0, "get_robust_list");
	CHECK_EQ(head2, head, "the robust list");
	return NULL;
}

static size_t slurp(const char *path, char *buf, size_t size)
{
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	size_t n = 0;
	for (ssize_t r; n < size && (r = read(fd, buf + n, size - n)) > 0;)
		n += r;
	close(fd);
	return n;
}

static char maps[1 << 20], auxv[2][4096];

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int child = fx_argc > 0 && !strcmp(fx_argv[0], "child");
	pid_t shell = 0;
	if (!child) {
		char self[PATH_MAX], command[3 * PATH_MAX];
		self[MUST(readlink("/proc/self/exe", self, sizeof self - 1))] = 0;
		snprintf(command, sizeof command, "%s %s child; exit $?", self, fx_dir);
		shell = MUST(fork());
		if (!shell) {
			execl("/bin/sh", "sh", "-c", command, NULL);
			_exit(104);
		}
	}
	static struct sleeper sleepers[12];
	int up = 0;
	pthread_t in_handler[2], with_segment[2];
	struct sigaction sa = { .sa_handler = handler, .sa_flags = SA_RESTART };
	sigaddset(&sa.sa_mask, SIGUSR2);
	sigaction(SIGUSR1, &sa, NULL);
	struct sigaction si = { .sa_sigaction = handler_info, .sa_flags = SA_SIGINFO };
	sigaction(SIGRTMIN + 3, &si, NULL);
	struct sigaction lt = { .sa_sigaction = late, .sa_flags = SA_SIGINFO };
	sigaction(SIGTRAP, &lt, NULL);
	sigaction(SIGRTMAX, &lt, NULL);
	if (!child) {
		for (int i = 0; i < 12; i++) {
			struct sleeper *s = &sleepers[i];
			s->kind = i % 6;
			s->what = i < 6 ? "int 0x80" : "the vdso";
			s->call = i < 6 ? int80 : vsyscall;
			pthread_create(&s->thread, NULL, sleeps, s);
			up++;
		}
		pthread_create(&in_handler[0], NULL, handled, (void *)(long)SIGUSR1);
		pthread_create(&in_handler[1], NULL, handled, (void *)(long)(SIGRTMIN + 3));
		up += 2;
	}
	for (long i = 0; i < 2; i++, up++)
		pthread_create(&with_segment[i], NULL, segment, (void *)i);
	size_t aux = slurp("/proc/self/auxv", auxv[0], sizeof auxv[0]);
	struct utsname before, after;
	uname(&before);
	if (child) {
		/* the root counts what it has made, and the two of its grandchild */
		fx_wait_check();
	} else {
		fx_await_up(up + 2);
		fx_pause_ms(300);
		fx_ready();
		fx_wait_check();
		CHECK(inside[0] && inside[1], "the handlers run");
	}
	stay = 0;
	over = 1;
	if (!child) {
		pthread_join(in_handler[0], NULL);
		pthread_join(in_handler[1], NULL);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(with_segment[i], NULL);
	raise(SIGTRAP);
	sigqueue(getpid(), SIGRTMAX, (union sigval){ .sival_int = 7 });
	CHECK_EQ(late_signals, 2, "signals after the restore");
	void *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap: %s", strerror(errno));
	void *top = sbrk(0);
	CHECK(sbrk(65536) == top && sbrk(0) == (char *)top + 65536, "brk");
	/* the end of the address space is that of a 32-bit program */
	CHECK(mmap((void *)0xffffe000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED, "a mapping behind the end");
	CHECK_EQ(slurp("/proc/self/auxv", auxv[1], sizeof auxv[1]), aux, "length of auxv");
	CHECK(!memcmp(auxv[0], auxv[1], aux), "auxv");
	uname(&after);
	CHECK(!strcmp(before.machine, after.machine), "%s, %s", before.machine, after.machine);
	maps[slurp("/proc/self/maps", maps, sizeof maps - 1)] = 0;
	CHECK(strstr(maps, "[vdso]") && !strstr(maps, "[vsyscall]"), "the mappings");
	if (child) {
		struct stat st;
		_exit(stat(fx_path("report"), &st) == 0 && st.st_size > 0);
	}
	for (int i = 0; i < 12; i++)
		pthread_join(sleepers[i].thread, NULL);
	fx_reap_ok(shell);
	fx_finish();
}
