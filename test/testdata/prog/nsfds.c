/*
 * Descriptors of the namespaces that the program itself and its child are in, with and without close-on-exec. They still are of these namespaces.
 */
#include "fixture.h"
#include <sys/ioctl.h>
#ifndef NS_GET_NSTYPE
#define NS_GET_NSTYPE _IO(0xb7, 0x3)
#endif

static const struct { const char *name; int type; } kinds[] = {
	{ "uts", 0x04000000 }, { "net", 0x40000000 }, { "ipc", 0x08000000 }, { "user", 0x10000000 }, { "pid", 0x20000000 }, { "mnt", 0x00020000 }, { "cgroup", 0x02000000 }, { "time", 0x00000080 },
};
enum { N = sizeof kinds / sizeof *kinds };

static void same(int fd, const char *path, int i)
{
	struct stat a, b;
	MUST(fstat(fd, &a));
	MUST(stat(path, &b));
	CHECK(a.st_dev == b.st_dev && a.st_ino == b.st_ino, "fd %d is inode %llu, %s is %llu", fd, (long long)a.st_ino, path, (long long)b.st_ino);
	CHECK_EQ(ioctl(fd, NS_GET_NSTYPE), kinds[i].type, kinds[i].name);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	pid_t child = MUST(fork());
	if (!child) {
		fx_up();
		fx_wait_check();
		while (!fx_exists("go")) /* the links of a zombie lead nowhere */
			fx_pause_ms(5);
		_exit(0);
	}
	fx_await_up(1);
	char path[64];
	int own[N], its[N], flags[N];
	for (int i = 0; i < N; i++) {
		snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i].name);
		own[i] = open(path, O_RDONLY | (i % 2 ? O_CLOEXEC : 0));
		if (own[i] < 0 && errno == ENOENT)
			continue; /* a kernel without */
		MUST(own[i]);
		flags[i] = fcntl(own[i], F_GETFL);
		snprintf(path, sizeof path, "/proc/%d/ns/%s", child, kinds[i].name);
		its[i] = MUST(open(path, O_RDONLY | O_CLOEXEC));
	}
	int dupd = MUST(dup2(own[0], 100));
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < N; i++) {
		if (own[i] < 0)
			continue;
		snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i].name);
		same(own[i], path, i);
		CHECK_EQ(fcntl(own[i], F_GETFD), i % 2 ? FD_CLOEXEC : 0, "close-on-exec");
		CHECK_EQ(fcntl(own[i], F_GETFL) & FX_KEPT_FLAGS, flags[i] & FX_KEPT_FLAGS, "flags");
		snprintf(path, sizeof path, "/proc/%d/ns/%s", child, kinds[i].name);
		same(its[i], path, i);
	}
	same(dupd, "/proc/self/ns/uts", 0);
	fx_touch("go", "");
	fx_reap_ok(child);
	fx_finish();
}
