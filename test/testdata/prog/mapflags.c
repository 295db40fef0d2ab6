/*
 * Everything that madvise(2), mlock(2), mmap(2) flags, mseal(2) and guard regions leave on a mapping: its VmFlags, huge pages and locked pages are as they were,
 * and do what they are for: a child does not get what is not for children, a guard page kills, a sealed mapping cannot be changed, new memory is locked.
 */
#include "fixture.h"

#define P 4096ul
#define MB (1ul << 20)
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define DROPPABLE 0x08
#define MSEAL 462

static struct { const char *what; char *at; size_t size; char flags[128]; long huge, locked; } all[40];
static int count;

/* VmFlags and two counters of the mapping that holds the address */
static void look(const char *at, char *flags, long *huge, long *locked)
{
	char line[512];
	int in = 0;
	FILE *f = fopen("/proc/self/smaps", "re");
	flags[0] = 0;
	while (fgets(line, sizeof line, f)) {
		unsigned long a, b;
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
			in = (unsigned long)at >= a && (unsigned long)at < b;
		if (!in)
			continue;
		sscanf(line, "AnonHugePages: %ld", huge);
		sscanf(line, "Locked: %ld", locked);
		if (!strncmp(line, "VmFlags:", 8))
			snprintf(flags, 128, "%.100s", line + 9);
	}
	fclose(f);
	char *sd = strstr(flags, " sd"); /* soft-dirty: anybody may set and clear it */
	if (sd)
		memmove(sd, sd + 3, strlen(sd + 3) + 1);
}

static char *add(const char *what, size_t size, int prot, int flags)
{
	char *at = mmap(NULL, size + 2 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* neighbours do not merge with it */
	if (at == MAP_FAILED)
		return NULL;
	at = mmap(at + P, size, prot, flags | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (at == MAP_FAILED)
		return NULL;
	all[count].what = what;
	all[count].at = at;
	all[count++].size = size;
	return at;
}

static char *advised(const char *what, size_t pages, int advice)
{
	char *at = add(what, pages * P, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	if (advice >= 0)
		MUST(madvise(at, pages * P, advice));
	fx_fill(at, pages * P, count);
	return at;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	setbuf(stdout, NULL);
	char *dontfork = advised("DONTFORK", 4, MADV_DONTFORK);
	advised("DONTDUMP", 4, MADV_DONTDUMP);
	char *wipe = advised("WIPEONFORK", 4, MADV_WIPEONFORK);
	advised("SEQUENTIAL", 4, MADV_SEQUENTIAL);
	advised("RANDOM", 4, MADV_RANDOM);
	advised("NOHUGEPAGE", 4, MADV_NOHUGEPAGE);
	advised("MERGEABLE", 4, MADV_MERGEABLE);
	char *several = advised("several", 4, MADV_DONTDUMP);
	MUST(madvise(several, 4 * P, MADV_RANDOM));
	MUST(madvise(several, 4 * P, MADV_DONTFORK));
	advised("HUGEPAGE", 8 * MB / P, MADV_HUGEPAGE);
	char *half = add("HUGEPAGE, partly used", 8 * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	MUST(madvise(half, 8 * MB, MADV_HUGEPAGE));
	memset(half + 3 * MB, 7, P);
	char *later = add("HUGEPAGE after it was used", 4 * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	fx_fill(later, 4 * MB, 99);
	MUST(madvise(later, 4 * MB, MADV_HUGEPAGE));
	char *collapsed = add("COLLAPSE", 4 * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	char *aligned = (char *)(((uintptr_t)collapsed + 2 * MB - 1) & -(2 * MB));
	fx_fill(collapsed, 4 * MB, 98);
	madvise(aligned, 2 * MB, 25);
	add("NORESERVE", 64 * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
	add("shared NORESERVE", 8 * MB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE);
	add("GROWSDOWN", 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_GROWSDOWN);
	add("once writable", 4 * P, PROT_READ, MAP_PRIVATE);
	char *was = add("writable once", 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	MUST(mprotect(was, 4 * P, PROT_READ));
	char *droppable = add("DROPPABLE", 4 * P, PROT_READ | PROT_WRITE, DROPPABLE);
	if (droppable)
		droppable[0] = 1;
	char *guard = advised("guard", 8, -1);
	int guarded = !madvise(guard + 3 * P, 2 * P, MADV_GUARD_INSTALL);
	char *locked = advised("mlock", 16, -1);
	MUST(mlock(locked, 16 * P));
	char *onfault = add("mlock2 ONFAULT", 64 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	MUST(mlock2(onfault, 64 * P, MLOCK_ONFAULT));
	fx_fill(onfault + 5 * P, 2 * P, 97);
	char *slocked = add("mlock of shared memory", 16 * P, PROT_READ | PROT_WRITE, MAP_SHARED);
	MUST(mlock(slocked, 16 * P));
	char *sealed = advised("sealed", 4, -1);
	int seals = !syscall(MSEAL, sealed, 4 * P, 0);
	char *sealedro = advised("sealed for reading", 4, -1);
	MUST(mprotect(sealedro, 4 * P, PROT_READ));
	syscall(MSEAL, sealedro, 4 * P, 0);
	int fd = MUST(open(fx_path("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	MUST(ftruncate(fd, 64 * P));
	char *file = MUST(mmap(NULL, 64 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	MUST(madvise(file, 16 * P, MADV_RANDOM));
	MUST(mlock2(file + 32 * P, 16 * P, MLOCK_ONFAULT));
	MUST(madvise(file + 48 * P, 16 * P, MADV_DONTDUMP));
	for (int i = 0; i < 4; i++) {
		all[count].what = "shared file";
		all[count++].at = file + i * 16 * P;
	}
	close(fd);
	MUST(mlockall(MCL_FUTURE | MCL_ONFAULT));
	for (int i = 0; i < count; i++)
		if (all[i].at)
			look(all[i].at, all[i].flags, &all[i].huge, &all[i].locked);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < count; i++) {
		char flags[128];
		long huge = 0, lock = 0;
		if (!all[i].at)
			continue;
		look(all[i].at, flags, &huge, &lock);
		CHECK(!strcmp(flags, all[i].flags), "%s: VmFlags %s, want %s", all[i].what, flags, all[i].flags);
		/* khugepaged may make huge what MADV_HUGEPAGE says should be, at any time */
		CHECK(huge == all[i].huge || (strstr(flags, " hg") && huge > all[i].huge), "%s: %ld kB of huge pages, want %ld", all[i].what, huge, all[i].huge);
		CHECK(lock == all[i].locked, "%s: %ld kB locked, want %ld", all[i].what, lock, all[i].locked);
	}
	fx_verify("memory that is huge only by advice", later, 4 * MB, 99);
	fx_verify("collapsed memory", collapsed, 4 * MB, 98);
	fx_verify("locked on fault", onfault + 5 * P, 2 * P, 97);
	CHECK_EQ(half[3 * MB], 7, "a page among huge ones");
	char *fresh = MUST(mmap(NULL, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), flags[128];
	long huge, lock;
	look(fresh, flags, &huge, &lock);
	/* before Linux 6.18 the second has no code */
	CHECK(strstr(flags, "lo") && (strstr(flags, "lf") || strstr(flags, "??")), "new memory is not locked on fault: %s", flags);
	pid_t kid = MUST(fork());
	if (!kid) {
		int p[2];
		MUST(pipe(p));
		CHECK(write(p[1], dontfork, 1) < 0 && errno == EFAULT, "a child has memory that is not for children");
		fx_verify_zero("what is wiped in a child", wipe, 4 * P);
		if (guarded) {
			CHECK(write(p[1], guard + 2 * P, 1) == 1, "the page before a guard cannot be read");
			CHECK(write(p[1], guard + 3 * P, 1) < 0 && errno == EFAULT, "a guard page can be read");
			CHECK(write(p[1], guard + 4 * P, 1) < 0 && errno == EFAULT, "a guard page can be read");
			CHECK(write(p[1], guard + 5 * P, 1) == 1, "the page behind a guard cannot be read");
		}
		_exit(0);
	}
	fx_reap_ok(kid);
	if (seals) {
		CHECK(munmap(sealed, P) < 0 && errno == EPERM, "sealed memory can be unmapped");
		CHECK(mprotect(sealed, P, PROT_NONE) < 0 && errno == EPERM, "sealed memory can be protected");
		sealed[5] = 1;
		CHECK(mprotect(sealedro, P, PROT_READ | PROT_WRITE) < 0 && errno == EPERM, "sealed memory can be made writable");
	}
	fx_finish();
}
