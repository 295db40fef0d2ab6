/* NUMA policies, of mappings with their flags and home nodes, and of threads. One node is enough for all of it. */
#include "fixture.h"

#define P 4096ul
enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY, WEIGHTED };
#define STATIC (1 << 15)
#define RELATIVE (1 << 14)
#define F_ADDR 2

static const struct { int mode; unsigned long nodes; } kinds[] = {
	{ PREFERRED, 1 }, { BIND, 1 }, { INTERLEAVE, 1 }, { LOCAL, 0 }, { PREFERRED_MANY, 1 }, { WEIGHTED, 1 },
	{ BIND | STATIC, 1 }, { PREFERRED | RELATIVE, 1 }, { INTERLEAVE | RELATIVE, 1 }, { BIND | STATIC, 3 },
};
#define KINDS (sizeof kinds / sizeof *kinds)

struct policy { int mode; unsigned long nodes[16]; };

static struct policy policy_of(void *at)
{
	struct policy p = { -1, { 0 } };
	if (syscall(SYS_get_mempolicy, &p.mode, p.nodes, 1024, at, at ? F_ADDR : 0) < 0)
		p.mode = -errno;
	return p;
}

/* the line of numa_maps up to the counters, which differ */
static void numa_line(void *at, char *to, size_t size)
{
	char line[512], want[32];
	FILE *f = fopen("/proc/self/numa_maps", "re");
	snprintf(want, sizeof want, "%lx ", (unsigned long)at);
	to[0] = 0;
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, want, strlen(want))) {
			char *end = strchr(line + strlen(want), ' ');
			if (end)
				*end = 0;
			snprintf(to, size, "%s", line);
		}
	if (f)
		fclose(f);
}

static volatile int checked;

static void *thread(void *arg)
{
	unsigned long node = 1;
	MUST(syscall(SYS_set_mempolicy, BIND | STATIC, &node, 64));
	struct policy before = policy_of(NULL);
	*(volatile int *)arg = 1;
	while (!checked)
		fx_pause_ms(5);
	struct policy after = policy_of(NULL);
	CHECK(!memcmp(&before, &after, sizeof before), "policy of the thread: mode %#x nodes %lx, was %#x %lx", after.mode, after.nodes[0], before.mode, before.nodes[0]);
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	char *at[KINDS], line[KINDS][128];
	struct policy before[KINDS];
	int set[KINDS];
	for (unsigned i = 0; i < KINDS; i++) {
		at[i] = MUST(mmap(NULL, 8 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		fx_fill(at[i], 8 * P, i);
		set[i] = syscall(SYS_mbind, at[i] + 2 * P, 4 * P, kinds[i].mode, kinds[i].nodes ? &kinds[i].nodes : NULL, kinds[i].nodes ? 64 : 0, 0) == 0;
		if (kinds[i].mode == BIND)
			syscall(450, at[i] + 2 * P, 4 * P, 0, 0); /* set_mempolicy_home_node, since Linux 5.17 */
		before[i] = policy_of(at[i] + 2 * P);
		numa_line(at[i] + 2 * P, line[i], sizeof line[i]);
	}
	if (!set[1]) /* a kernel without NUMA */
		FAIL("set-up: mbind: %s", strerror(errno));
	volatile int up = 0;
	pthread_t t;
	pthread_create(&t, NULL, thread, (void *)&up);
	while (!up)
		fx_pause_ms(5);
	unsigned long node = 1;
	MUST(syscall(SYS_set_mempolicy, INTERLEAVE, &node, 64));
	struct policy own = policy_of(NULL);
	fx_ready();
	fx_wait_check();
	for (unsigned i = 0; i < KINDS; i++) {
		char now[128];
		if (!set[i])
			continue;
		struct policy p = policy_of(at[i] + 2 * P);
		CHECK(!memcmp(&p, &before[i], sizeof p), "policy %u: mode %#x nodes %lx, was %#x %lx", i, p.mode, p.nodes[0], before[i].mode, before[i].nodes[0]);
		numa_line(at[i] + 2 * P, now, sizeof now);
		CHECK(!strcmp(now, line[i]), "numa_maps: %s, was %s", now, line[i]);
		fx_verify("memory with a policy", at[i], 8 * P, i);
	}
	struct policy p = policy_of(NULL);
	CHECK(!memcmp(&p, &own, sizeof p), "policy of the leader: mode %#x nodes %lx, was %#x %lx", p.mode, p.nodes[0], own.mode, own.nodes[0]);
	checked = 1;
	pthread_join(t, NULL);
	fx_finish();
}
