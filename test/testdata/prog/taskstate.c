/*
 * What a task is besides, each set in a process of its own and read back: system call user dispatch, the login uid, the nice value of an autogroup, session, thread and process keyrings, the
 * hash of private futexes, huge pages only where advised, a local descriptor table, SUID_DUMP_ROOT, speculation controls.
 */
#include "fixture.h"
#include <linux/keyctl.h>
#include <sys/fsuid.h>
#include <sys/ptrace.h>
#include <asm/ldt.h>

#define FUTEX_HASH 78

static void slurp(char *to, size_t size, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, to, size - 1);
	to[n < 0 ? 0 : n] = 0;
	to[strcspn(to, "\n")] = 0;
	close(fd);
}

static int spill(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

static volatile char selector;
static volatile int caught;

static void sigsys(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	selector = 0; /* allow */
	caught = info->si_syscall;
}

static void dispatch(void)
{
	struct sigaction act = { .sa_sigaction = sigsys, .sa_flags = SA_SIGINFO };
	sigaction(SIGSYS, &act, NULL);
	static char out_of_the_way[64];
	MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, out_of_the_way, sizeof out_of_the_way, &selector));
	fx_up();
	fx_wait_check();
	selector = 1; /* block */
	syscall(SYS_getppid);
	char was = selector;
	selector = 0;
	CHECK(!was && caught == SYS_getppid, "a blocked call is not dispatched: selector %d, caught %d", was, caught);
}

static void inclusive(void)
{
	/* only calls from these bytes are dispatched: none */
	static char nothing[64];
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 2, nothing, sizeof nothing, &selector) == 0)
		selector = 1;
	fx_up();
	fx_wait_check();
}

static void login(void)
{
	char before[32], after[32];
	int set = spill("/proc/self/loginuid", "4242");
	slurp(before, sizeof before, "/proc/self/loginuid");
	CHECK(!set || !strcmp(before, "4242"), "set-up: login uid %s", before);
	pid_t child = MUST(fork());
	fx_up();
	fx_wait_check();
	slurp(after, sizeof after, "/proc/self/loginuid");
	CHECK(!strcmp(before, after), "login uid %s, was %s", after, before);
	if (!child)
		_exit(0);
	fx_reap_ok(child);
}

static void autogroup(void)
{
	char before[64], after[64];
	MUST(setsid());
	int set = spill("/proc/self/autogroup", "7");
	slurp(before, sizeof before, "/proc/self/autogroup");
	CHECK(!set || strstr(before, " nice 7"), "set-up: %s", before);
	fx_up();
	fx_wait_check();
	slurp(after, sizeof after, "/proc/self/autogroup");
	char *a = strchr(before, ' '), *b = strchr(after, ' ');
	CHECK(a && b ? !strcmp(a, b) : a == b, "autogroup is '%s', was '%s'", after, before);
}

static long keyctl(int op, long a, long b, long c) { return syscall(SYS_keyctl, op, a, b, c, 0); }

static long id(int ring) { return keyctl(KEYCTL_GET_KEYRING_ID, ring, 0, 0); }

/* parent and child share an anonymous keyring that nobody else has */
static void sharing(void)
{
	MUST(keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0));
	MUST(keyctl(KEYCTL_LINK, KEY_SPEC_USER_KEYRING, KEY_SPEC_SESSION_KEYRING, 0));
	long user = id(KEY_SPEC_USER_KEYRING);
	pid_t child = MUST(fork());
	fx_up();
	fx_wait_check();
	int32_t inside[4] = { 0 };
	CHECK_EQ(keyctl(KEYCTL_READ, KEY_SPEC_SESSION_KEYRING, (long)inside, sizeof inside), 4, "bytes in the session keyring");
	CHECK_EQ(inside[0], user, "the key in the session keyring");
	char text[128] = "";
	keyctl(KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, (long)text, sizeof text);
	if (strncmp(text, "keyring;0;0;3f030000;_ses", 25))
		FAIL("the session keyring is %s", text);
	if (!child)
		_exit((unsigned)id(KEY_SPEC_SESSION_KEYRING) % 200);
	int status;
	MUST(waitpid(child, &status, 0));
	if (!WIFEXITED(status) || WEXITSTATUS(status) != (int)((unsigned)id(KEY_SPEC_SESSION_KEYRING) % 200))
		FAIL("the child has another session keyring: status %#x", status);
}

/* a named one with a key, which lives on without its processes, and lets who may search it join */
static void named(void)
{
	char name[64], value[16] = "";
	snprintf(name, sizeof name, "crpipe-fixture-%d", (int)getpid());
	long ring = MUST(keyctl(KEYCTL_JOIN_SESSION_KEYRING, (long)name, 0, 0));
	MUST(syscall(SYS_add_key, "user", "fixture", "secret", 6, KEY_SPEC_SESSION_KEYRING));
	MUST(keyctl(KEYCTL_SETPERM, ring, 0x3f3f0000, 0));
	MUST(keyctl(KEYCTL_LINK, ring, KEY_SPEC_USER_KEYRING, 0));
	fx_up();
	fx_wait_check();
	CHECK_EQ(id(KEY_SPEC_SESSION_KEYRING), ring, "serial of the named session keyring");
	long key = keyctl(KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, (long)"user", (long)"fixture");
	CHECK(key > 0 && keyctl(KEYCTL_READ, key, (long)value, sizeof value) == 6 && !memcmp(value, "secret", 6), "the key in the named keyring: %ld '%s'", key, value);
	keyctl(KEYCTL_UNLINK, ring, KEY_SPEC_USER_KEYRING, 0);
}

/* named and empty */
static void emptied(void)
{
	char text[128] = "", *name;
	MUST(keyctl(KEYCTL_JOIN_SESSION_KEYRING, (long)"crpipe-fixture-empty", 0, 0));
	MUST(keyctl(KEYCTL_SETPERM, KEY_SPEC_SESSION_KEYRING, 0x3f030000, 0)); /* nobody else joins */
	MUST(keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_THREAD_KEYRING, 1, 0));
	MUST(keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1, 0));
	MUST(keyctl(KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_PROCESS_KEYRING, 0, 0));
	fx_up();
	fx_wait_check();
	keyctl(KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, (long)text, sizeof text);
	name = strrchr(text, ';');
	CHECK(name && !strcmp(name, ";crpipe-fixture-empty"), "the session keyring is %s", text);
	CHECK(id(KEY_SPEC_THREAD_KEYRING) > 0, "no thread keyring: %s", strerror(errno));
	CHECK(id(KEY_SPEC_PROCESS_KEYRING) > 0, "no process keyring: %s", strerror(errno));
	CHECK_EQ(keyctl(KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_NO_CHANGE, 0, 0), KEY_REQKEY_DEFL_PROCESS_KEYRING, "where new keys go");
}

static void space(void)
{
	int slots = prctl(FUTEX_HASH, 1, 64, 0, 0) == 0, thp = prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0) == 0;
	fx_up();
	fx_wait_check();
	if (slots)
		CHECK_EQ(prctl(FUTEX_HASH, 2, 0, 0, 0), 64, "slots for futexes");
	if (thp)
		CHECK_EQ(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 3, "PR_GET_THP_DISABLE");
}

static void table(void)
{
	static uint64_t word = 0xfeedfacecafe;
	uint64_t before[8] = { 0 }, after[8] = { 0 }, seen;
	char *low = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0));
	memcpy(low, &word, sizeof word);
	struct user_desc d = { .entry_number = 3, .base_addr = (uintptr_t)low, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1 };
	if (syscall(SYS_modify_ldt, 0x11, &d, sizeof d) == 0) {
		d = (struct user_desc){ .entry_number = 5, .base_addr = 0x11223344, .limit = 0x55, .contents = 2, .read_exec_only = 1, .seg_not_present = 1 };
		MUST(syscall(SYS_modify_ldt, 0x11, &d, sizeof d));
		CHECK_EQ(syscall(SYS_modify_ldt, 0, before, sizeof before), sizeof before, "modify_ldt");
		/* There are virtual machines whose processor takes no notice of the table. */
		unsigned rights = 0, gs, selector = (3 << 3) | 7;
		__asm__ volatile("lar %1, %0" : "+r"(rights) : "r"(selector) : "cc");
		if (rights)
			__asm__ volatile("mov %0, %%gs" : : "r"(selector));
		fx_up();
		fx_wait_check();
		if (rights) {
			__asm__ volatile("mov %%gs, %0" : "=r"(gs));
			CHECK_EQ(gs, selector, "the selector in gs");
			__asm__ volatile("mov %%gs:0, %0" : "=r"(seen));
			CHECK_EQ(seen, word, "the word at gs:0");
			__asm__ volatile("mov %1, %%gs; mov %%gs:0, %0" : "=r"(seen) : "r"(selector));
			CHECK_EQ(seen, word, "the word at gs:0, loaded anew");
		}
		syscall(SYS_modify_ldt, 0, after, sizeof after);
		for (int i = 0; i < 8; i++)
			CHECK_EQ(after[i], before[i], "an entry of the local descriptor table");
		return;
	}
	fx_up();
	fx_wait_check();
}

static void undumpable(void)
{
	setfsuid(4711);
	setfsuid(0); /* a change of credentials makes it what fs.suid_dumpable says */
	char before[16];
	slurp(before, sizeof before, "/proc/sys/fs/suid_dumpable");
	CHECK_EQ(prctl(PR_GET_DUMPABLE), atoi(before), "set-up: PR_GET_DUMPABLE");
	fx_up();
	fx_wait_check();
	CHECK_EQ(prctl(PR_GET_DUMPABLE), atoi(before), "PR_GET_DUMPABLE");
}

struct attr { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; uint32_t min, max; };

static void policy_of(struct attr *a, char *priority)
{
	char text[1024], *p;
	memset(a, 0, sizeof *a);
	MUST(syscall(SYS_sched_getattr, 0, a, sizeof *a, 0));
	slurp(text, sizeof text, "/proc/self/stat");
	p = strrchr(text, ')');
	for (int i = 0; i < 16 && p; i++)
		p = strchr(p + 1, ' ');
	snprintf(priority, 32, "%.*s", p ? (int)strcspn(p + 1, " ") : 0, p ? p + 1 : "");
}

/* each policy, where the machine lets it have it */
static void policies(void)
{
	struct attr all[] = {
		{ .policy = SCHED_DEADLINE, .runtime = 5000000, .deadline = 50000000, .period = 100000000 }, { .policy = SCHED_FIFO, .priority = 7, .flags = 1 },
		{ .policy = SCHED_IDLE, .nice = 5 }, { .policy = SCHED_OTHER, .nice = 3, .runtime = 2000000 }, { .policy = SCHED_BATCH, .nice = 9, .flags = 1 } };
	enum { N = sizeof all / sizeof *all };
	pid_t pid[N];
	for (int i = 0; i < N; i++) {
		pid[i] = MUST(fork());
		if (pid[i])
			continue;
		struct attr before, after;
		char was[32], is[32];
		all[i].size = sizeof all[i];
		syscall(SYS_sched_setattr, 0, &all[i], 0);
		policy_of(&before, was);
		fx_up();
		fx_wait_check();
		policy_of(&after, is);
		CHECK(!memcmp(&before, &after, sizeof before), "policy %u is policy %u, nice %d, priority %u, %lu %lu %lu, flags %lx, was nice %d, priority %u, %lu %lu %lu, flags %lx", before.policy, after.policy, after.nice,
			after.priority, after.runtime, after.deadline, after.period, after.flags, before.nice, before.priority, before.runtime, before.deadline, before.period, before.flags);
		CHECK(!strcmp(is, was), "priority of policy %u in stat: %s, was %s", before.policy, is, was);
		_exit(0);
	}
	fx_up();
	fx_wait_check();
	for (int i = 0; i < N; i++)
		fx_reap_ok(pid[i]);
}

/* each control of speculation that this machine has: PR_SPEC_STORE_BYPASS 0, PR_SPEC_INDIRECT_BRANCH 1. fx_wait_check compares them. */
static void controlled(unsigned long store, unsigned long branch)
{
	const unsigned long want[] = { store, branch };
	for (int i = 0; i < 2; i++)
		if (prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0) & PR_SPEC_PRCTL) {
			MUST(prctl(PR_SET_SPECULATION_CTRL, i, want[i], 0, 0));
			CHECK_EQ(prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0), PR_SPEC_PRCTL | want[i], "set-up: PR_GET_SPECULATION_CTRL");
		}
	fx_up();
	fx_wait_check();
}

static void speculating(void) { controlled(PR_SPEC_DISABLE, PR_SPEC_DISABLE); }
static void until_exec(void) { controlled(PR_SPEC_DISABLE_NOEXEC, PR_SPEC_ENABLE); }
static void for_good(void) { controlled(PR_SPEC_FORCE_DISABLE, PR_SPEC_FORCE_DISABLE); }

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	fx_append("up", "", 0);
	void (*how[])(void) = { dispatch, inclusive, login, autogroup, sharing, named, emptied, space, table, undumpable, policies, speculating, until_exec, for_good };
	enum { N = sizeof how / sizeof *how };
	pid_t pid[N];
	for (int i = 0; i < N; i++) {
		pid[i] = MUST(fork());
		if (!pid[i]) {
			how[i]();
			_exit(0);
		}
	}
	fx_await_up(N + 2 + 5); /* two of them have a child, one has five */
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < N; i++)
		fx_reap_ok(pid[i]);
	fx_finish();
}
