/*
 * Credentials: a child that dropped root wholly, one with odd real, effective, saved ids and groups and a few capabilities in each set, one with securebits and ambient
 * capabilities, one with no_new_privs and a lowered bounding set, a thread that differs from its process. /proc/PID/status is read before and after, and what should be forbidden is.
 */
#include "fixture.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>

static const char *lines[] = { "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Umask" };
enum { L = sizeof lines / sizeof *lines };

struct look { char line[L][1024]; int securebits, keepcaps, dumpable; };

static void look(struct look *k)
{
	for (int i = 0; i < L; i++)
		snprintf(k->line[i], sizeof k->line[i], "%s", fx_status(syscall(SYS_gettid), lines[i]));
	k->securebits = prctl(PR_GET_SECUREBITS);
	k->keepcaps = prctl(PR_GET_KEEPCAPS);
	k->dumpable = prctl(PR_GET_DUMPABLE);
}

static void same(const char *who)
{
	struct look *a = calloc(2, sizeof *a), *b = a + 1;
	look(a);
	fx_up();
	fx_wait_check();
	look(b);
	for (int i = 0; i < L; i++)
		CHECK(!strcmp(a->line[i], b->line[i]), "%s: %s is '%s', was '%s'", who, lines[i], b->line[i], a->line[i]);
	CHECK_EQ(b->securebits, a->securebits, "securebits");
	CHECK_EQ(b->keepcaps, a->keepcaps, "keepcaps");
	CHECK_EQ(b->dumpable, a->dumpable, "dumpable");
}

static void caps(uint64_t eff, uint64_t perm, uint64_t inh)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2] = {
		{ (uint32_t)eff, (uint32_t)perm, (uint32_t)inh }, { (uint32_t)(eff >> 32), (uint32_t)(perm >> 32), (uint32_t)(inh >> 32) } };
	MUST(syscall(SYS_capset, &h, d));
}

#define BIT(c) (1ull << (c))

static void dropped(void)
{
	gid_t g[] = { 7001, 7002 };
	MUST(setgroups(2, g));
	MUST(setresgid(7000, 7000, 7000));
	MUST(setresuid(7000, 7000, 7000));
	same("dropped");
	CHECK(open("/etc/shadow", O_RDONLY) < 0 && errno == EACCES, "the dropped child can read /etc/shadow: %s", strerror(errno));
	CHECK(setuid(0) < 0 && errno == EPERM, "the dropped child can become root");
}

static void odd(void)
{
	gid_t g[] = { 8103, 8101, 8102, 65533 };
	MUST(prctl(PR_SET_KEEPCAPS, 1));
	MUST(setgroups(4, g));
	MUST(setresgid(8001, 8002, 8003));
	MUST(setresuid(8001, 8002, 8003));
	caps(BIT(CAP_KILL) | BIT(CAP_CHOWN), BIT(CAP_KILL) | BIT(CAP_CHOWN) | BIT(CAP_NET_RAW), BIT(CAP_NET_RAW));
	setfsgid(8004 - 1);
	setfsuid(8001);
	MUST(prctl(PR_SET_KEEPCAPS, 1));
	MUST(prctl(PR_SET_DUMPABLE, 1));
	same("odd");
	CHECK(setresuid(8003, -1, -1) == 0, "the saved uid cannot become the real one: %s", strerror(errno));
}

static void bits(void)
{
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS));
	caps(BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_SYS_NICE), BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_SYS_NICE), BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_SYS_NICE));
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
	same("securebits");
}

static void nnp(void)
{
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE, 0, 0, 0));
	MUST(prctl(PR_CAPBSET_DROP, CAP_MKNOD, 0, 0, 0));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	umask(0137);
	same("no_new_privs");
	CHECK_EQ(umask(0), 0137, "umask");
}

static void *thread(void *arg)
{
	(void)arg;
	/* raw calls change only this thread */
	MUST(syscall(SYS_setresgid, 9001, 9001, 9001));
	MUST(syscall(SYS_setresuid, 9002, 9002, 9002));
	same("thread");
	return NULL;
}

static void threaded(void)
{
	pthread_t t;
	pthread_create(&t, NULL, thread, NULL);
	fx_await_up(5);
	same("leader with another thread");
	pthread_join(t, NULL);
	CHECK_EQ(getuid(), 0, "uid of the leader");
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	umask(0);
	chmod(fx_dir, 0777);
	fx_append("report", "", 0);
	chmod(fx_path("report"), 0666);
	fx_append("up", "", 0);
	chmod(fx_path("up"), 0666);
	void (*how[])(void) = { dropped, odd, bits, nnp, threaded };
	pid_t pid[5];
	for (int i = 0; i < 5; i++) {
		pid[i] = MUST(fork());
		if (!pid[i]) {
			how[i]();
			_exit(0);
		}
		if (i == 3)
			fx_await_up(4);
	}
	fx_await_up(6);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < 5; i++)
		fx_reap_ok(pid[i]);
	fx_finish();
}
