/*
 * Has one of the things of a task that no call gives back, named by its argument; the dump says which. It goes on unharmed.
 */
#include "fixture.h"
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>

static long keyctl(int op, long a, long b, long c) { return syscall(SYS_keyctl, op, a, b, c, 0); }

static void *alone(void *arg)
{
	(void)arg;
	MUST(keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0));
	fx_up();
	fx_wait_check();
	return NULL;
}

static const struct { const char *name; int flag, thread; } spaces[] = {
	{ "net", CLONE_NEWNET, 1 }, { "uts", CLONE_NEWUTS, 1 }, { "ipc", CLONE_NEWIPC, 1 }, { "mnt", CLONE_NEWNS, 1 }, { "cgroup", CLONE_NEWCGROUP, 1 },
	{ "pid_for_children", CLONE_NEWPID, 0 }, { "time_for_children", 0x80, 0 }, { "user", CLONE_NEWUSER, 0 } };

static void *elsewhere(void *flag)
{
	MUST(unshare((int)(long)flag));
	fx_up();
	fx_wait_check();
	return NULL;
}

/* goes where another thread has gone, and stays there when that one is back: setns(2) */
static void *joined(void *arg)
{
	int home = MUST(open("/proc/thread-self/ns/uts", O_RDONLY | O_CLOEXEC)), away;
	MUST(unshare(CLONE_NEWUTS));
	away = MUST(open("/proc/thread-self/ns/uts", O_RDONLY | O_CLOEXEC));
	MUST(setns(home, CLONE_NEWUTS));
	MUST(setns(away, CLONE_NEWUTS));
	close(home);
	close(away);
	fx_up();
	fx_wait_check();
	return arg;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	const char *what = fx_argc ? fx_argv[0] : "";
	pthread_t t = 0;
	pid_t kid = 0;
	for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
		if (strcmp(what, spaces[i].name))
			continue;
		if (spaces[i].thread) { /* one thread alone */
			pthread_create(&t, NULL, elsewhere, (void *)(long)spaces[i].flag);
		} else if (!(kid = MUST(fork()))) { /* a process that will have its children there, or is there itself */
			elsewhere((void *)(long)spaces[i].flag);
			_exit(0);
		}
		fx_await_up(1);
	}
	if (!strcmp(what, "landlock")) {
		struct landlock_ruleset_attr attr = { .handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_SOCK };
		int fd = syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
		if (fd < 0)
			fx_touch("absent", "");
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		if (fd >= 0)
			MUST(syscall(SYS_landlock_restrict_self, fd, 0));
		close(fd);
	} else if (!strcmp(what, "session")) {
		MUST(keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0));
		MUST(syscall(SYS_add_key, "user", "fixture", "x", 1, KEY_SPEC_SESSION_KEYRING));
	} else if (!strcmp(what, "thread")) {
		MUST(syscall(SYS_add_key, "user", "fixture", "x", 1, KEY_SPEC_THREAD_KEYRING));
	} else if (!strcmp(what, "process")) {
		MUST(syscall(SYS_add_key, "user", "fixture", "x", 1, KEY_SPEC_PROCESS_KEYRING));
	} else if (!strcmp(what, "threads")) {
		pthread_create(&t, NULL, alone, NULL);
		fx_await_up(1);
	} else if (!strcmp(what, "setns")) {
		pthread_create(&t, NULL, joined, NULL);
		fx_await_up(1);
	} else if (!strcmp(what, "listener")) {
		struct sock_filter f[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
		struct sock_fprog p = { 1, f };
		MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &p)); /* stays open */
	}
	fx_ready();
	fx_wait_check();
	if (t)
		pthread_join(t, NULL);
	if (kid)
		fx_reap_ok(kid);
	fx_finish();
}
