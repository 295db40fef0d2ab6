/*
 * System V shared memory in an IPC namespace of its own: attached by several processes, read-only, twice in one process, with pieces
 * unmapped, protected or replaced by another segment (SHM_REMAP), of an odd size with bytes behind its end, with holes, destroyed but attached,
 * locked, and attached by nobody; ids, keys, owners, modes, creator's pid, number of attaches; the limits of the namespace.
 */
#include "fixture.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define P 4096ul
#define NO ((char *)-1)

static int make(key_t key, size_t size, int mode)
{
	return MUST(shmget(key, size, IPC_CREAT | IPC_EXCL | mode));
}

static char *attach(int id, const void *at, int flags)
{
	char *p = shmat(id, at, flags);
	if (p == NO) {
		FAIL("set-up: shmat(%d): %s", id, strerror(errno));
		fx_finish();
	}
	return p;
}

static void sysctl_set(const char *name, const char *value)
{
	char path[128];
	snprintf(path, sizeof path, "/proc/sys/%s", name);
	int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
	MUST(write(fd, value, strlen(value)));
	close(fd);
}

static void sysctl_is(const char *name, const char *value)
{
	char path[128], buf[128];
	snprintf(path, sizeof path, "/proc/sys/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, sizeof buf - 1);
	close(fd);
	buf[n > 0 ? n - 1 : 0] = 0;
	CHECK(!strcmp(buf, value), "%s is %s, not %s", name, buf, value);
}

struct is { const char *what; int id; key_t key; size_t size; unsigned mode, uid, gid, cuid, cgid; int nattch; pid_t cpid; };

static void check_segment(const struct is *s)
{
	struct shmid_ds ds;
	if (shmctl(s->id, IPC_STAT, &ds)) {
		FAIL("%s: %s", s->what, strerror(errno));
		return;
	}
	CHECK_EQ(ds.shm_perm.__key, s->key, s->what);
	CHECK_EQ(ds.shm_segsz, s->size, s->what);
	CHECK_EQ(ds.shm_perm.mode, s->mode, s->what);
	CHECK_EQ(ds.shm_perm.uid, s->uid, s->what);
	CHECK_EQ(ds.shm_perm.gid, s->gid, s->what);
	CHECK_EQ(ds.shm_perm.cuid, s->cuid, s->what);
	CHECK_EQ(ds.shm_perm.cgid, s->cgid, s->what);
	CHECK_EQ(ds.shm_nattch, s->nattch, s->what);
	CHECK_EQ(ds.shm_cpid, s->cpid, s->what);
}

/* what /proc/self/maps has from an address on: permissions and name */
static void check_map(const void *at, const char *perms, const char *name)
{
	char line[512], want[64];
	FILE *f = fopen("/proc/self/maps", "re");
	snprintf(want, sizeof want, "%lx-", (unsigned long)at);
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, want, strlen(want))) {
			fclose(f);
			CHECK(strstr(line, perms) && strstr(line, name), "%s is not %s %s", line, perms, name);
			return;
		}
	fclose(f);
	FAIL("nothing is mapped at %p", at);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(unshare(CLONE_NEWIPC));
	sysctl_set("kernel/shmmni", "77");
	sysctl_set("kernel/shmmax", "1099511627776");
	sysctl_set("kernel/msgmnb", "20000");
	sysctl_set("kernel/msgmax", "9000");
	sysctl_set("kernel/sem", "300\t3000\t40\t64");
	for (int i = 0; i < 3; i++) /* so that ids are not those that a fresh namespace gives */
		MUST(shmctl(make(IPC_PRIVATE, P, 0600), IPC_RMID, NULL));

	int plain = make(0x1234abcd, 64 * P, 0640), odd = make(IPC_PRIVATE, 5000, 0600), holes = make(0xfeedf00d, (size_t)1 << 32, 0666),
	    dest = make(0x77777777, 2 * P, 0600), twice = make(IPC_PRIVATE, 8 * P, 0600), bare = make(0x55, 3 * P, 0444), never = make(IPC_PRIVATE, P, 0600);
	struct shmid_ds ds;
	MUST(shmctl(plain, IPC_STAT, &ds));
	ds.shm_perm.uid = 1234, ds.shm_perm.gid = 4321, ds.shm_perm.mode = 0604;
	MUST(shmctl(plain, IPC_SET, &ds));
	MUST(syscall(SYS_setresgid, -1, 55, -1));
	MUST(syscall(SYS_setresuid, -1, 66, -1));
	int theirs = make(0x66, P, 0660);
	MUST(syscall(SYS_setresuid, -1, 0, -1));
	MUST(syscall(SYS_setresgid, -1, 0, -1));

	char *p = attach(plain, NULL, 0);
	fx_fill(p, 64 * P, 1);
	char *o = attach(odd, NULL, 0);
	fx_fill(o, 8192, 2); /* two whole pages, although it has 5,000 bytes */
	char *h = attach(holes, NULL, 0);
	for (int i = 0; i < 4; i++)
		fx_fill(h + ((size_t)i << 30) + i * P, P, 30 + i);
	char *d = attach(dest, NULL, 0);
	fx_fill(d, 2 * P, 3);
	MUST(shmctl(dest, IPC_RMID, NULL));
	MUST(shmctl(odd, SHM_LOCK, NULL));
	char *t1 = attach(twice, NULL, 0), *t2 = attach(twice, NULL, SHM_RDONLY);
	fx_fill(t1, 8 * P, 4);
	char *b = attach(bare, NULL, 0);
	fx_fill(b, 3 * P, 5);
	MUST(shmdt(b));
	char *u = attach(theirs, NULL, 0);
	fx_fill(u, P, 6);
	pid_t me = getpid(), kid = MUST(fork());
	if (!kid) {
		/* pieces: the middle is gone, something else lies there, one page is protected, and another segment replaces a part */
		MUST(munmap(p + 8 * P, 4 * P));
		char *mine = mmap(p + 9 * P, P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		fx_fill(mine, P, 9);
		MUST(mprotect(p + 20 * P, P, PROT_READ));
		MUST(mprotect(p + 21 * P, P, PROT_READ | PROT_EXEC));
		CHECK(attach(theirs, p + 30 * P, SHM_REMAP) == p + 30 * P, "SHM_REMAP");
		MUST(munmap(p, P)); /* its beginning, so that shmdt cannot find the rest */
		MUST(shmdt(h));
		MUST(shmdt(t1));
		int own = make(0x99, P, 0600);
		strcpy(attach(own, NULL, 0), "made by the child");
		fx_up();
		fx_wait_check();
		fx_verify("first piece", p + P, 7 * P, 1 + P / 8);
		fx_verify("second piece", p + 12 * P, 18 * P, 1 + 12 * P / 8);
		fx_verify("what replaced a piece", p + 30 * P, P, 6);
		fx_verify("last piece", p + 31 * P, 33 * P, 1 + 31 * P / 8);
		fx_verify("what lies between", mine, P, 9);
		check_map(p + P, "rw-s", "/SYSV1234abcd");
		check_map(p + 20 * P, "r--s", "/SYSV1234abcd");
		check_map(p + 21 * P, "r-xs", "/SYSV1234abcd");
		check_map(p + 30 * P, "rw-s", "/SYSV00000066");
		check_map(p + 31 * P, "rw-s", "/SYSV1234abcd");
		check_map(mine, "rw-p", "\n");
		fx_verify("the read-only one", t2, 8 * P, 4);
		CHECK(mprotect(t2, P, PROT_READ | PROT_WRITE) && errno == EACCES, "a read-only attach became writable");
		CHECK(!shmdt(p + 30 * P), "detaching what SHM_REMAP attached");
		struct is s = { "made by the child", own, 0x99, P, 0600, 0, 0, 0, 0, 1, getpid() };
		check_segment(&s);
		p[40 * P] ^= 1; /* the parent waits for it */
		_exit(0);
	}
	fx_await_up(1);
	char before = p[40 * P];
	fx_ready();
	fx_wait_check();
	while (*(volatile char *)(p + 40 * P) == before)
		fx_pause_ms(1);
	p[40 * P] ^= 1;
	fx_reap_ok(kid);
	fx_verify("plain", p, 64 * P, 1);
	fx_verify("of an odd size", o, 8192, 2);
	for (int i = 0; i < 4; i++)
		fx_verify("with holes", h + ((size_t)i << 30) + i * P, P, 30 + i);
	fx_verify_zero("a hole", h + P, 16 * P);
	fx_verify("destroyed", d, 2 * P, 3);
	fx_verify("attached twice", t1, 8 * P, 4);
	fx_verify("attached twice, read-only", t2, 8 * P, 4);
	t1[5] ^= 1;
	CHECK_EQ(t2[5], t1[5], "a write through one attach seen through the other");
	check_map(p, "rw-s", "/SYSV1234abcd (deleted)");
	check_map(d, "rw-s", "/SYSV77777777 (deleted)");
	check_map(t2, "r--s", "/SYSV00000000 (deleted)");
	struct is all[] = {
		{ "plain", plain, 0x1234abcd, 64 * P, 0604, 1234, 4321, 0, 0, 1, me },
		{ "odd", odd, 0, 5000, 0600 | SHM_LOCKED, 0, 0, 0, 0, 1, me },
		{ "holes", holes, 0xfeedf00d, (size_t)1 << 32, 0666, 0, 0, 0, 0, 1, me },
		{ "dest", dest, 0, 2 * P, 0600 | SHM_DEST, 0, 0, 0, 0, 1, me },
		{ "twice", twice, 0, 8 * P, 0600, 0, 0, 0, 0, 2, me },
		{ "bare", bare, 0x55, 3 * P, 0444, 0, 0, 0, 0, 0, me },
		{ "never attached", never, 0, P, 0600, 0, 0, 0, 0, 0, me },
		{ "of another user", theirs, 0x66, P, 0660, 66, 55, 66, 55, 1, me },
	};
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
		check_segment(&all[i]);
	fx_verify("nobody had attached it", b = attach(bare, NULL, 0), 3 * P, 5);
	CHECK(!shmdt(b) && !shmdt(p) && !shmdt(o) && !shmdt(t2), "shmdt");
	CHECK(!shmdt(d), "shmdt of the destroyed one");
	CHECK(shmctl(dest, IPC_STAT, &ds) && errno == EINVAL, "the destroyed one goes with its last attach");
	CHECK(shmget(0x1234abcd, 0, 0) == plain && shmget(0x77777777, 0, 0) < 0, "keys");
	sysctl_is("kernel/shmmni", "77");
	sysctl_is("kernel/shmmax", "1099511627776");
	sysctl_is("kernel/msgmnb", "20000");
	sysctl_is("kernel/msgmax", "9000");
	sysctl_is("kernel/sem", "300\t3000\t40\t64");
	fx_finish();
}
