/*
 * Private memory of hugetlbfs pages: written in part, with holes, read-only, without access, shared with a child since a fork. Where the pool is empty the harness
 * lets the kernel make pages as they are needed (vm.nr_overcommit_hugepages).
 */
#include "fixture.h"

#define MB (1ul << 20)

static char *huge(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26, -1, 0);
}

static int is_huge(const char *at)
{
	char line[512];
	int in = 0, yes = 0;
	FILE *f = fopen("/proc/self/smaps", "re");
	while (fgets(line, sizeof line, f)) {
		unsigned long a, b, n;
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
			in = (unsigned long)at >= a && (unsigned long)at < b;
		if (in && sscanf(line, "KernelPageSize: %lu", &n) == 1)
			yes = n == 2048;
	}
	fclose(f);
	return yes;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	char *full = MUST(huge(4 * MB)), *part = MUST(huge(8 * MB)), *readonly = MUST(huge(2 * MB)), *hidden = MUST(huge(2 * MB));
	fx_fill(full, 4 * MB, 1);
	fx_fill(part + 2 * MB + 12345 * 8, 4096 * 3, 2);
	fx_fill(readonly, 2 * MB, 3);
	MUST(mprotect(readonly, 2 * MB, PROT_READ));
	fx_fill(hidden, 2 * MB, 4);
	MUST(mprotect(hidden, 2 * MB, PROT_NONE));
	pid_t kid = MUST(fork());
	if (!kid) {
		fx_fill(full + 2 * MB, 2 * MB, 5);
		fx_up();
		fx_wait_check();
		fx_verify("huge pages in the child", full, 2 * MB, 1);
		fx_verify("the child's own huge page", full + 2 * MB, 2 * MB, 5);
		_exit(0);
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	CHECK(is_huge(full) && is_huge(part) && is_huge(readonly) && is_huge(hidden), "the pages are small");
	fx_verify("huge pages", full, 4 * MB, 1);
	fx_verify_zero("huge memory, never touched", part, 2 * MB);
	fx_verify("a part of a huge page", part + 2 * MB + 12345 * 8, 4096 * 3, 2);
	fx_verify_zero("the rest of it", part + 2 * MB, 12345 * 8);
	fx_verify("huge memory for reading", readonly, 2 * MB, 3);
	MUST(mprotect(hidden, 2 * MB, PROT_READ));
	fx_verify("huge memory without access", hidden, 2 * MB, 4);
	part[6 * MB] = 1;
	fx_reap_ok(kid);
	fx_finish();
}
