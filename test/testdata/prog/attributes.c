/* What else a task is: limits, working directory, root, umask, name, executable, arguments and environment, auxiliary vector, nice, policy, CPUs, personality; and per thread where it is the thread's. */
#include "fixture.h"
#include <sys/auxv.h>
#include <sys/personality.h>

static char text[2][16][8192];

static void slurp(char *to, const char *fmt, ...)
{
	char path[256];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(path, sizeof path, fmt, ap);
	va_end(ap);
	memset(to, 0, 8192);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		ssize_t n = readlink(path, to, 8000);
		if (n < 0)
			snprintf(to, 8192, "%s: %s", path, strerror(errno));
		return;
	}
	if (read(fd, to, 8000) < 0)
		snprintf(to, 8192, "%s: %s", path, strerror(errno));
	close(fd);
}

static const char *names[] = { "limits", "comm", "cmdline", "environ", "auxv", "personality", "exe", "cwd", "root" };
enum { F = sizeof names / sizeof *names };

static void look(char (*to)[8192])
{
	char path[64];
	for (int i = 0; i < F; i++)
		if (i < 6)
			slurp(to[i], "/proc/self/%s", names[i]);
		else {
			memset(to[i], 0, 8192);
			snprintf(path, sizeof path, "/proc/self/%s", names[i]);
			if (readlink(path, to[i], 8000) < 0)
				snprintf(to[i], 8192, "readlink: %s", strerror(errno));
		}
}

static void compare(const char *who)
{
	for (int i = 0; i < F; i++)
		if (memcmp(text[0][i], text[1][i], 8192))
			FAIL("%s: /proc/self/%s was '%.200s', is '%.200s'", who, names[i], text[0][i], text[1][i]);
}

static void *fifo_thread(void *arg)
{
	(void)arg;
	struct sched_param sp = { .sched_priority = 17 }, now;
	cpu_set_t one, got;
	CPU_ZERO(&one);
	CPU_SET(1, &one);
	int rt = pthread_setschedparam(pthread_self(), SCHED_RR, &sp) == 0, pol;
	int pinned = sched_setaffinity(0, sizeof one, &one) == 0;
	MUST(setpriority(PRIO_PROCESS, syscall(SYS_gettid), 11));
	fx_up();
	fx_wait_check();
	pthread_getschedparam(pthread_self(), &pol, &now);
	if (rt)
		CHECK(pol == SCHED_RR && now.sched_priority == 17, "policy of the thread %d, priority %d", pol, now.sched_priority);
	sched_getaffinity(0, sizeof got, &got);
	if (pinned)
		CHECK(CPU_EQUAL(&one, &got), "CPUs of the thread: %d of them", CPU_COUNT(&got));
	errno = 0;
	CHECK_EQ(getpriority(PRIO_PROCESS, syscall(SYS_gettid)), 11, "nice value of the thread");
	return NULL;
}

static void chrooted(void)
{
	mkdir(fx_path("jail"), 0755);
	mkdir(fx_path("jail/inside"), 0755);
	char cwd[PATH_MAX], marker[PATH_MAX];
	snprintf(marker, sizeof marker, "%s", fx_path("jail/inside/marker"));
	close(MUST(open(marker, O_CREAT | O_WRONLY, 0600)));
	int outside = MUST(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	MUST(chroot(fx_path("jail")));
	MUST(chdir("/inside"));
	/* the directory with check and report is reached through a descriptor from here on */
	char rel[PATH_MAX];
	snprintf(rel, sizeof rel, "%s", fx_dir + 1);
	int dir = MUST(openat(outside, rel, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	close(outside);
	int up = MUST(openat(dir, "up", O_WRONLY | O_APPEND | O_CLOEXEC));
	CHECK(write(up, "+", 1) == 1, "write");
	while (faccessat(dir, "check", F_OK, 0))
		fx_pause_ms(10);
	int bad = 0;
	if (access("marker", F_OK) || access("/inside/marker", F_OK))
		bad = 1;
	else if (access("/proc/self", F_OK) == 0 || access("/etc/passwd", F_OK) == 0)
		bad = 2;
	else if (!getcwd(cwd, sizeof cwd) || strcmp(cwd, "/inside"))
		bad = 3;
	_exit(bad);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	struct { int res; rlim_t soft, hard; } lim[] = {
		{ RLIMIT_NOFILE, 321, 654 }, { RLIMIT_STACK, 4 << 20, 16 << 20 }, { RLIMIT_CORE, 0, 12345678 }, { RLIMIT_CPU, 3600, 7200 }, { RLIMIT_AS, 1ul << 40, RLIM_INFINITY },
		{ RLIMIT_FSIZE, 1ul << 35, 1ul << 36 }, { RLIMIT_NPROC, 5000, 6000 }, { RLIMIT_MEMLOCK, 65536, 131072 }, { RLIMIT_SIGPENDING, 100, 200 }, { RLIMIT_MSGQUEUE, 1000, 2000 },
		{ RLIMIT_NICE, 0, 0 }, { RLIMIT_RTPRIO, 0, 0 }, { RLIMIT_DATA, 1ul << 39, 1ul << 40 } };
	pid_t jailed = 0, loose;
	fx_append("up", "", 0);
	jailed = MUST(fork());
	if (!jailed)
		chrooted();
	fx_await_up(1);
	pthread_t t;
	pthread_create(&t, NULL, fifo_thread, NULL);
	fx_await_up(2);
	loose = MUST(fork()); /* another working directory, umask, name and personality; real limits lowered */
	if (!loose) {
		for (size_t i = 0; i < sizeof lim / sizeof *lim; i++) {
			struct rlimit r = { lim[i].soft, lim[i].hard };
			MUST(setrlimit(lim[i].res, &r));
		}
		mkdir(fx_path("gone"), 0700);
		mkdir(fx_path("with space\n"), 0700);
		MUST(chdir(fx_path("with space\n")));
		umask(027);
		MUST(personality(ADDR_NO_RANDOMIZE | SHORT_INODE));
		MUST(setpriority(PRIO_PROCESS, 0, 5));
		struct sched_param sp = { 0 };
		MUST(sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &sp));
		prctl(PR_SET_NAME, "a b) R (c");
		look(text[0]);
		fx_up();
		fx_wait_check();
		look(text[1]);
		compare("child");
		CHECK_EQ(umask(0), 027, "umask");
		CHECK_EQ(personality(0xffffffff), ADDR_NO_RANDOMIZE | SHORT_INODE, "personality");
		CHECK_EQ(getpriority(PRIO_PROCESS, 0), 5, "nice value");
		CHECK_EQ(sched_getscheduler(0), SCHED_BATCH | SCHED_RESET_ON_FORK, "policy");
		for (size_t i = 0; i < sizeof lim / sizeof *lim; i++) {
			struct rlimit r;
			getrlimit(lim[i].res, &r);
			CHECK(r.rlim_cur == lim[i].soft && r.rlim_max == lim[i].hard, "limit %d: %lu %lu, want %lu %lu", lim[i].res, r.rlim_cur, r.rlim_max, lim[i].soft, lim[i].hard);
		}
		_exit(0);
	}
	fx_await_up(3);
	MUST(chdir(fx_dir));
	umask(0022);
	prctl(PR_SET_NAME, "root\ttask");
	unsigned long sysinfo = getauxval(AT_SYSINFO_EHDR), random = getauxval(AT_RANDOM);
	uint8_t rnd[16];
	memcpy(rnd, (void *)random, 16);
	look(text[0]);
	fx_ready();
	fx_wait_check();
	look(text[1]);
	compare("root");
	CHECK_EQ(umask(0), 0022, "umask of the root");
	CHECK_EQ(getauxval(AT_SYSINFO_EHDR), sysinfo, "AT_SYSINFO_EHDR");
	CHECK(!memcmp(rnd, (void *)random, 16), "the bytes at AT_RANDOM");
	pthread_join(t, NULL);
	fx_reap_ok(jailed);
	fx_reap_ok(loose);
	fx_finish();
}
