/*
 * What every fixture program shares.
 *
 *   prog DIR [ARG...]
 *
 * A fixture sets its state up, calls ready() (DIR/ready appears), stays in that state until DIR/check appears,
 * looks at itself, and calls finish(). Every difference is a line in DIR/report; DIR/done appears last and says
 * "ok" or "bad". Everything goes through files, because standard output may be another thing after a restore,
 * and because a signal as a trigger would disturb what many fixtures are about.
 */
#ifndef FIXTURE_H
#define FIXTURE_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "getters.h"

static char fx_dir[PATH_MAX / 2];
static int fx_argc;
static char **fx_argv;

/* a program of very many threads, only one of which uses files, defines it away: 32 KiB in each */
#ifndef FX_THREAD
#define FX_THREAD __thread
#endif

/* path of a file in the fixture's directory; one of eight buffers of the calling thread */
static const char *fx_path(const char *name)
{
	static FX_THREAD char buf[8][PATH_MAX];
	static FX_THREAD int next;
	char *p = buf[next++ & 7];
	snprintf(p, PATH_MAX, "%s/%s", fx_dir, name);
	return p;
}

static void fx_append(const char *name, const char *text, size_t len)
{
	int fd = open(fx_path(name), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, text, len) != (ssize_t)len)
		_exit(101);
	close(fd);
}

/* one line of DIR/report: something is not as it should be */
static void __attribute__((format(printf, 3, 4))) fx_report(const char *file, int line, const char *fmt, ...)
{
	static int lines;
	char text[1024];
	int saved = errno;
	if (__atomic_fetch_add(&lines, 1, __ATOMIC_RELAXED) >= 20)
		return; /* one wrong thing said over and over helps nobody */
	int n = snprintf(text, sizeof text, "%s:%d: pid %d tid %d: ", file, line, (int)getpid(), (int)syscall(SYS_gettid));
	va_list ap;
	va_start(ap, fmt);
	n += vsnprintf(text + n, sizeof text - 1 - n, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof text - 2)
		n = sizeof text - 2;
	text[n++] = '\n';
	fx_append("report", text, n);
	errno = saved;
}

#define FAIL(...) fx_report(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(cond, ...) do { if (!(cond)) FAIL(#cond ": " __VA_ARGS__); } while (0)
/* of what F_GETFL says: a 32-bit program gets O_LARGEFILE, crpipe(7) */
#define FX_KEPT_FLAGS (sizeof(long) == 8 ? -1 : ~0100000)

#define CHECK_EQ(got, want, what) do { \
	long long g_ = (long long)(got), w_ = (long long)(want); \
	if (g_ != w_) FAIL("%s: got %lld (0x%llx), want %lld (0x%llx)", (what), g_, g_, w_, w_); } while (0)

static void fx_finish(void);

/* a call that must work for the fixture to make sense */
#define MUST(expr) ({ __typeof__(expr) r_ = (expr); \
	if (r_ == (__typeof__(expr))-1) { FAIL("set-up: %s: %s", #expr, strerror(errno)); fx_finish(); } r_; })

static void fx_init(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: %s DIR [ARG...]\n", argv[0]);
		_exit(100);
	}
	snprintf(fx_dir, sizeof fx_dir, "%s", argv[1]);
	fx_argc = argc - 2;
	fx_argv = argv + 2;
}

static void fx_touch(const char *name, const char *text)
{
	char tmp[PATH_MAX], pid[32];
	snprintf(pid, sizeof pid, ".%s.%d", name, (int)syscall(SYS_gettid));
	snprintf(tmp, sizeof tmp, "%s", fx_path(pid));
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		_exit(102);
	close(fd);
	if (rename(tmp, fx_path(name)))
		_exit(103);
}

static int fx_exists(const char *name)
{
	return access(fx_path(name), F_OK) == 0;
}

static void fx_pause_ms(long ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000 };
	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

/* ends the process: 0 and DIR/done "ok" when nothing was reported, else 1 and "bad" */
static void fx_finish(void)
{
	struct stat st;
	int bad = stat(fx_path("report"), &st) == 0 && st.st_size > 0;
	fx_touch("done", bad ? "bad\n" : "ok\n");
	_exit(bad);
}

static void fx_ready(void)
{
	fx_look();
	fx_touch("ready", "ready\n");
}

/* what the task sees of itself is what it saw when it said that it is ready */
static void fx_compare(void)
{
	uint64_t now[FX_GETTERS];
	struct fx_seen *s = fx_slot(0);
	if (!s)
		return; /* it never said so */
	fx_get_all(now);
	for (int i = 0; i < FX_GETTERS; i++)
		if (now[i] != s->v[i])
			FAIL("%s says %" PRIx64 ", it was %" PRIx64, fx_getter_names[i], now[i], s->v[i]);
}

/* stays here until the harness says that the dump and the restore have happened */
static void fx_wait_check(void)
{
	while (!fx_exists("check"))
		fx_pause_ms(10);
	fx_compare();
}

/* a child or thread says that it is where it wants to be; the root waits for n of them */
static void fx_up(void)
{
	fx_look();
	fx_append("up", "+", 1);
}

static void fx_await_up(int n)
{
	struct stat st;
	for (int i = 0; i < 3000; i++) {
		if (stat(fx_path("up"), &st) == 0 && st.st_size >= n)
			return;
		fx_pause_ms(5);
	}
	FAIL("set-up: only %d of %d children came up", (int)st.st_size, n);
	fx_finish();
}

/* field 3 (state) of /proc/TID/stat, or 0 */
static char fx_state(int tid)
{
	char path[64], buf[1024];
	snprintf(path, sizeof path, "/proc/%d/stat", tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t n = read(fd, buf, sizeof buf - 1);
	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = 0;
	char *p = strrchr(buf, ')');
	return p && p[1] ? p[2] : 0;
}

static void fx_await_state(int tid, char want)
{
	for (int i = 0; i < 2000 && fx_state(tid) != want; i++)
		fx_pause_ms(5);
	if (fx_state(tid) != want) {
		FAIL("set-up: task %d is in state %c, not %c", tid, fx_state(tid), want);
		fx_finish();
	}
}

/* the child must have ended with exit status 0 */
static void fx_reap_ok(pid_t pid)
{
	int st;
	pid_t r;
	while ((r = waitpid(pid, &st, 0)) < 0 && errno == EINTR)
		FAIL("waitpid(%d): EINTR that no signal caused", (int)pid);
	if (r != pid)
		FAIL("waitpid(%d): %d, %s", (int)pid, (int)r, strerror(errno));
	else if (!WIFEXITED(st) || WEXITSTATUS(st))
		FAIL("child %d ended with status 0x%x", (int)pid, st);
}

/* the value of a "Name:" line of /proc/TID/status, or the empty string */
static const char *fx_status(int tid, const char *name)
{
	static __thread char line[4096];
	char path[64];
	size_t len = strlen(name);
	snprintf(path, sizeof path, "/proc/%d/status", tid);
	FILE *f = fopen(path, "re");
	if (!f)
		return "";
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, name, len) && line[len] == ':') {
			fclose(f);
			line[strcspn(line, "\n")] = 0;
			return line + len + 1 + strspn(line + len + 1, " \t");
		}
	fclose(f);
	return "";
}

/* a value that depends on where it is: memory that moved, repeated or vanished is seen */
static uint64_t fx_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void fx_fill(void *p, size_t len, uint64_t seed)
{
	uint64_t *w = p;
	for (size_t i = 0; i < len / 8; i++)
		w[i] = fx_mix(seed + i);
}

static void fx_verify(const char *what, const void *p, size_t len, uint64_t seed)
{
	const uint64_t *w = p;
	for (size_t i = 0; i < len / 8; i++)
		if (w[i] != fx_mix(seed + i)) {
			FAIL("%s: word %zu of %zu at %p: got %016" PRIx64 ", want %016" PRIx64, what, i, len / 8, (const void *)(w + i), w[i], fx_mix(seed + i));
			return;
		}
}

static void fx_verify_zero(const char *what, const void *p, size_t len)
{
	const unsigned char *c = p;
	for (size_t i = 0; i < len; i++)
		if (c[i]) {
			FAIL("%s: byte %zu of %zu is 0x%02x, not zero", what, i, len, c[i]);
			return;
		}
}

static int64_t fx_now(clockid_t clock)
{
	struct timespec ts;
	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

#endif
