/*
 * Private memory of one process: anonymous, file mappings with some pages dirtied, read-only, PROT_NONE with contents, executable,
 * mappings split by mprotect and by holes, a big sparse one, a reservation of a terabyte, one that grows down, one past the end of its file.
 */
#include "fixture.h"

#define P 4096ul
#define MB (1ul << 20)

static char *anon(size_t len, int prot, int flags)
{
	return MUST(mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0));
}

static int file(const char *name, size_t len, uint64_t seed)
{
	int fd = MUST(open(fx_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
	char *buf = malloc(len);
	fx_fill(buf, len, seed);
	MUST(pwrite(fd, buf, len, 0));
	free(buf);
	return fd;
}

/* "rwxp" of the mapping that holds the address, or "none" */
static const char *perms(const void *addr)
{
	static char p[8];
	char line[512];
	FILE *f = fopen("/proc/self/maps", "re");
	strcpy(p, "none");
	while (fgets(line, sizeof line, f)) {
		unsigned long a, b;
		char q[8];
		if (sscanf(line, "%lx-%lx %7s", &a, &b, q) == 3 && (unsigned long)addr >= a && (unsigned long)addr < b)
			strcpy(p, q);
	}
	fclose(f);
	return p;
}

#define CHECK_PERMS(addr, want) CHECK(!strcmp(perms(addr), want), "permissions of %s: %s, want %s", #addr, perms(addr), want)

/* whether reading the address gives EFAULT, asked of the kernel so that nothing crashes */
static int unreadable(const void *addr)
{
	int p[2];
	MUST(pipe2(p, O_CLOEXEC));
	int r = write(p[1], addr, 1) < 0 && errno == EFAULT;
	close(p[0]);
	close(p[1]);
	return r;
}

static char data_dirty[3 * P] = "initialised";
static char bss_sparse[64 * P];
static const char rodata[P] = "constant";

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	char *full = anon(3 * MB, PROT_READ | PROT_WRITE, 0);
	fx_fill(full, 3 * MB, 1);
	char *untouched = anon(MB, PROT_READ | PROT_WRITE, 0);
	char *readonly = anon(8 * P, PROT_READ | PROT_WRITE, 0);
	fx_fill(readonly, 8 * P, 2);
	MUST(mprotect(readonly, 8 * P, PROT_READ));
	char *hidden = anon(8 * P, PROT_READ | PROT_WRITE, 0);
	fx_fill(hidden, 8 * P, 3);
	MUST(mprotect(hidden, 8 * P, PROT_NONE));
	char *code = anon(2 * P, PROT_READ | PROT_WRITE, 0);
	memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */
	MUST(mprotect(code, 2 * P, PROT_READ | PROT_EXEC));
	char *reserve = anon(1ul << 40, PROT_NONE, MAP_NORESERVE);
	char *inside = MUST(mmap(reserve + (1ul << 39), 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	fx_fill(inside, 16 * P, 4);
	char *sparse = anon(4ul << 30, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	for (int i = 0; i < 64; i++)
		fx_fill(sparse + i * 64 * MB + (i % 7) * P, P, 100 + i);
	char *split = anon(12 * P, PROT_READ | PROT_WRITE, 0);
	fx_fill(split, 12 * P, 5);
	MUST(mprotect(split + 2 * P, P, PROT_READ));
	MUST(mprotect(split + 4 * P, P, PROT_NONE));
	MUST(mprotect(split + 6 * P, P, PROT_READ | PROT_EXEC));
	MUST(munmap(split + 8 * P, P));
	char *discarded = anon(8 * P, PROT_READ | PROT_WRITE, 0);
	fx_fill(discarded, 8 * P, 6);
	MUST(madvise(discarded + 2 * P, 3 * P, MADV_DONTNEED));
	char *zeros = anon(64 * P, PROT_READ | PROT_WRITE, 0);
	memset(zeros, 0, 64 * P);
	zeros[10 * P] = 1;
	/* files */
	int fd = file("private", 16 * P, 7);
	char *priv = MUST(mmap(NULL, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	fx_fill(priv + 3 * P, P, 8);
	priv[9 * P + 123] ^= 0x55;
	char *privoff = MUST(mmap(NULL, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 8 * P));
	fx_fill(privoff + 2 * P, P, 9);
	char *privro = MUST(mmap(NULL, 16 * P, PROT_READ, MAP_PRIVATE, fd, 0));
	close(fd);
	fd = file("short", 2 * P + 100, 10);
	char *past = MUST(mmap(NULL, 6 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)); /* bytes 100.. of page 2 are zero, pages 3.. are SIGBUS */
	past[2 * P + 200] = 'x';
	close(fd);
	fd = MUST(open(fx_path("zeroed"), O_RDWR | O_CREAT, 0666));
	fx_touch("zeroed-done", "");
	char *buf = malloc(4 * P);
	fx_fill(buf, 4 * P, 11);
	MUST(pwrite(fd, buf, 4 * P, 0));
	char *cleared = MUST(mmap(NULL, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	memset(cleared + P, 0, P); /* a zero page that differs from its file */
	close(fd);
	/* it grows only where the guard gap below it, 1 MiB, is free: make room, or chance decides */
	char *room = MUST(mmap(NULL, 64 * MB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	MUST(munmap(room, 64 * MB));
	char *down = MUST(mmap(room + 32 * MB, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0));
	fx_fill(down, 4 * P, 12);
	fx_fill(data_dirty + P, P, 13);
	fx_fill(bss_sparse + 32 * P, P, 14);
	char low[512];
	snprintf(low, sizeof low, "%p", (void *)full);

	fx_ready();
	fx_wait_check();

	fx_verify("anonymous", full, 3 * MB, 1);
	fx_verify_zero("anonymous, never touched", untouched, MB);
	CHECK_PERMS(readonly, "r--p");
	fx_verify("read-only", readonly, 8 * P, 2);
	CHECK_PERMS(hidden, "---p");
	CHECK(unreadable(hidden), "PROT_NONE memory can be read");
	MUST(mprotect(hidden, 8 * P, PROT_READ));
	fx_verify("PROT_NONE with contents", hidden, 8 * P, 3);
	CHECK_PERMS(code, "r-xp");
	CHECK_EQ(((int (*)(void))code)(), 42, "code in anonymous memory");
	CHECK_PERMS(reserve, "---p");
	CHECK_PERMS(reserve + (1ul << 40) - P, "---p");
	CHECK_PERMS(inside, "rw-p");
	fx_verify("inside the reservation", inside, 16 * P, 4);
	for (int i = 0; i < 64; i++)
		fx_verify("sparse", sparse + i * 64 * MB + (i % 7) * P, P, 100 + i);
	fx_verify_zero("sparse, between", sparse + 20 * P, 1000 * P);
	CHECK_PERMS(split + P, "rw-p");
	CHECK_PERMS(split + 2 * P, "r--p");
	CHECK_PERMS(split + 4 * P, "---p");
	CHECK_PERMS(split + 6 * P, "r-xp");
	CHECK_PERMS(split + 8 * P, "none");
	CHECK_PERMS(split + 9 * P, "rw-p");
	MUST(mprotect(split + 4 * P, P, PROT_READ));
	for (int i = 0; i < 12; i++)
		if (i != 8)
			fx_verify("split mapping", split + i * P, P, 5 + i * P / 8);
	fx_verify("before the discarded part", discarded, 2 * P, 6);
	fx_verify_zero("discarded part", discarded + 2 * P, 3 * P);
	fx_verify("behind the discarded part", discarded + 5 * P, 3 * P, 6 + 5 * P / 8);
	CHECK_EQ(zeros[10 * P], 1, "one byte among zeros");
	fx_verify_zero("zeros", zeros, 10 * P);
	fx_verify_zero("zeros", zeros + 11 * P, 53 * P);
	for (int i = 0; i < 16; i++) {
		if (i == 9) {
			CHECK_EQ(priv[9 * P + 123] ^ 0x55, privro[9 * P + 123], "one byte changed in a private file page");
			priv[9 * P + 123] ^= 0x55;
		}
		fx_verify("private file mapping", priv + i * P, P, i == 3 ? 8 : 7 + i * P / 8);
	}
	fx_verify("private file mapping at an offset", privoff, 2 * P, 7 + 8 * P / 8);
	fx_verify("private file mapping at an offset, dirtied", privoff + 2 * P, P, 9);
	fx_verify("clean private file mapping", privro, 16 * P, 7);
	fx_verify("short file", past, 2 * P, 10);
	fx_verify_zero("between the end of the file and the page's", past + 2 * P + 104, 96);
	CHECK_EQ(past[2 * P + 200], 'x', "byte past the end of the file");
	CHECK(unreadable(past + 4 * P), "a page past the end of the file can be read");
	fx_verify("before the cleared page", cleared, P, 11);
	fx_verify_zero("page of zeros over a file", cleared + P, P);
	fx_verify("behind the cleared page", cleared + 2 * P, 2 * P, 11 + 2 * P / 8);
	fx_verify("grows-down", down, 4 * P, 12);
	*(volatile char *)(down - P) = 'g'; /* faults, and grows */
	CHECK_PERMS(down - P, "rw-p");
	CHECK(!strcmp(data_dirty, "initialised"), "initialised data: %s", data_dirty);
	fx_verify("data", data_dirty + P, P, 13);
	fx_verify("bss", bss_sparse + 32 * P, P, 14);
	fx_verify_zero("bss", bss_sparse, 32 * P);
	CHECK(!strcmp(rodata, "constant"), "read-only data: %s", rodata);
	snprintf(low + 256, 256, "%p", (void *)full);
	CHECK(!strcmp(low, low + 256), "string on the stack: %s, want %s", low, low + 256);
	/* the file itself is as it was */
	fd = MUST(open(fx_path("private"), O_RDONLY));
	char *again = malloc(16 * P);
	MUST(pread(fd, again, 16 * P, 0));
	fx_verify("the file under the private mapping", again, 16 * P, 7);
	fx_finish();
}
