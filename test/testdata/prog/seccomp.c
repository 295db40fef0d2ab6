/*
 * seccomp(2): a process in strict mode, one without privileges whose filters forbid nearly all that a restore does, and one whose threads share filters as a tree, which
 * SECCOMP_FILTER_FLAG_TSYNC looks at. What a filter does is tried, its program and flags are read back through ptrace.
 */
#include "fixture.h"
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ptrace.h>

/* <linux/ptrace.h> cannot be included beside <sys/ptrace.h> */
struct metadata { uint64_t filter_off, flags; };
#define GET_METADATA 0x420d

#define NR (offsetof(struct seccomp_data, nr))
#define MAXF 256

/* system call nr fails with err */
static int deny(int nr, int err, unsigned flags)
{
	struct sock_filter f[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NR), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog p = { sizeof f / sizeof *f, f };
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &p);
}

static void denied(int nr, int err, const char *what)
{
	errno = 0;
	long r = syscall(nr, -1, -1, -1, -1, -1, -1);
	CHECK(r == -1 && errno == err, "%s: %ld, %s, want %s", what, r, strerror(errno), strerror(err));
}

static int go[2], say[2], said[2];

/* may only read, write and exit with the old call */
static void strict(void)
{
	char c;
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
	if (write(said[1], "s", 1) == 1 && read(go[0], &c, 1) == 1 && write(said[1], "t", 1) == 1)
		syscall(SYS_getppid); /* the end */
	syscall(SYS_exit, 3);
}

/* the calls that this one makes, and no others: all that a restore needs ends it */
static const int wanted[] = { SYS_openat, SYS_open, SYS_write, SYS_read, SYS_close, SYS_nanosleep, SYS_clock_nanosleep, SYS_access, SYS_faccessat, SYS_restart_syscall,
	SYS_gettid, SYS_getpid, SYS_exit_group, SYS_futex, SYS_newfstatat, SYS_fstat, SYS_lseek };

static void unprivileged(void)
{
	struct sock_filter f[2 * MAXF];
	int n = 0;
	MUST(setgroups(0, NULL));
	MUST(setresgid(7000, 7000, 7000));
	MUST(setresuid(7000, 7000, 7000));
	MUST(prctl(PR_SET_DUMPABLE, 1));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(deny(SYS_getppid, 77, SECCOMP_FILTER_FLAG_LOG));
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NR);
	for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, wanted[i], 0, 1);
		f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW); /* the other one says no */
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_uname, 0, 1);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 78);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	struct sock_fprog p = { n, f };
	MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p));
	denied(SYS_getppid, 77, "getppid before");
	CHECK(write(said[1], "u", 1) == 1, "write");
	char c;
	CHECK(read(say[0], &c, 1) == 1, "read");
	denied(SYS_getppid, 77, "getppid");
	denied(SYS_uname, 78, "uname");
	_exit(0);
}

static int up, done;

static void *grandchild(void *arg)
{
	(void)arg;
	__atomic_fetch_add(&up, 1, __ATOMIC_SEQ_CST);
	fx_wait_check();
	denied(SYS_getpgrp, 41, "main's in the grandchild");
	denied(SYS_getuid, 42, "the child's in the grandchild");
	CHECK(syscall(SYS_getegid) != -1, "what came later is denied in the grandchild");
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < 10)
		fx_pause_ms(5);
	denied(SYS_getegid, 45, "what was synchronised, in the grandchild");
	return NULL;
}

static void *child(void *arg)
{
	pthread_t t;
	(void)arg;
	MUST(deny(SYS_getuid, 42, 0));
	pthread_create(&t, NULL, grandchild, NULL);
	__atomic_fetch_add(&up, 1, __ATOMIC_SEQ_CST);
	fx_wait_check();
	denied(SYS_getpgrp, 41, "main's in the child");
	denied(SYS_getuid, 42, "the child's own");
	while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < 3)
		fx_pause_ms(5);
	/* All others have filters of this thread's past, or none: the very same ones. */
	long r = deny(SYS_getegid, 45, SECCOMP_FILTER_FLAG_TSYNC);
	CHECK(r == 0, "synchronising filters: %ld, %s", r, r < 0 ? strerror(errno) : "a thread has others");
	__atomic_store_n(&done, 10, __ATOMIC_SEQ_CST);
	pthread_join(t, NULL);
	return NULL;
}

static void *older(void *arg)
{
	(void)arg;
	__atomic_fetch_add(&up, 1, __ATOMIC_SEQ_CST);
	fx_wait_check();
	CHECK(syscall(SYS_getpgrp) != -1, "the oldest thread has a filter");
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < 10)
		fx_pause_ms(5);
	denied(SYS_getegid, 45, "what was synchronised, in the oldest");
	denied(SYS_getuid, 42, "what was synchronised, in the oldest");
	return NULL;
}

static void threads(void)
{
	pthread_t a, b;
	pthread_create(&a, NULL, older, NULL);
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < 1)
		fx_pause_ms(1);
	MUST(deny(SYS_getpgrp, 41, 0));
	pthread_create(&b, NULL, child, NULL);
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < 3)
		fx_pause_ms(1);
	CHECK(write(said[1], "h", 1) == 1, "write");
	fx_wait_check();
	denied(SYS_getpgrp, 41, "main's own");
	CHECK(syscall(SYS_getuid) != -1, "the child's in main");
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	denied(SYS_getuid, 42, "what was synchronised, in main");
	_exit(0);
}

struct programs { long len[3]; struct sock_filter code[3][2 * MAXF]; uint64_t flags[3]; };

/* what ptrace says of the filters of a process */
static void look(pid_t pid, struct programs *p)
{
	int status;
	memset(p, 0, sizeof *p);
	MUST(ptrace(PTRACE_SEIZE, pid, 0, 0));
	MUST(ptrace(PTRACE_INTERRUPT, pid, 0, 0));
	MUST(waitpid(pid, &status, __WALL));
	for (long i = 0; i < 3; i++) {
		struct metadata m = { .filter_off = i };
		p->len[i] = ptrace(PTRACE_SECCOMP_GET_FILTER, pid, i, p->code[i]);
		if (ptrace(GET_METADATA, pid, sizeof m, &m) > 0)
			p->flags[i] = m.flags;
	}
	MUST(ptrace(PTRACE_DETACH, pid, 0, 0));
}

int main(int argc, char **argv)
{
	static struct programs before, after;
	fx_init(argc, argv);
	chmod(fx_dir, 0777);
	fx_append("report", "", 0);
	chmod(fx_path("report"), 0666);
	MUST(pipe(go));
	MUST(pipe(say));
	MUST(pipe(said));
	void (*how[])(void) = { strict, unprivileged, threads };
	pid_t pid[3];
	for (int i = 0; i < 3; i++) {
		pid[i] = MUST(fork());
		if (!pid[i])
			how[i]();
		char c;
		CHECK(read(said[0], &c, 1) == 1, "read");
	}
	look(pid[1], &before);
	CHECK(before.len[0] == 4 && before.len[1] > 20 && before.len[2] == -1 && before.flags[0] == SECCOMP_FILTER_FLAG_LOG && !before.flags[1],
		"filters of %ld, %ld and %ld", before.len[0], before.len[1], before.len[2]);
	char counts[64];
	snprintf(counts, sizeof counts, "%s", fx_status(pid[1], "Seccomp_filters"));
	fx_ready();
	fx_wait_check();
	CHECK(!strcmp(fx_status(pid[0], "Seccomp"), "1"), "mode of the strict one: %s", fx_status(pid[0], "Seccomp"));
	CHECK(!strcmp(fx_status(pid[1], "Seccomp_filters"), counts), "filters: %s", fx_status(pid[1], "Seccomp_filters"));
	look(pid[1], &after);
	CHECK(!memcmp(&before, &after, sizeof before), "programs of %ld, %ld and %ld, flags %d %d", after.len[0], after.len[1], after.len[2], (int)after.flags[0], (int)after.flags[1]);
	CHECK(write(say[1], "g", 1) == 1, "write");
	char c;
	CHECK(write(go[1], "g", 1) == 1, "write");
	CHECK(read(said[0], &c, 1) == 1 && c == 't', "the strict one does not say that it is there");
	int status;
	MUST(waitpid(pid[0], &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the strict one may do anything: status %#x", status);
	fx_reap_ok(pid[1]);
	fx_reap_ok(pid[2]);
	fx_finish();
}
