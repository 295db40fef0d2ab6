/*
 * unheard: a program that watches all that it uses, its executable, directories and files, open, mapped, locked and removed ones, with all events of inotify, and decides by fanotify who may open and
 * read them. A dump and a restore are no event, ask for no leave, and leave the times of access.
 */
#include "fixture.h"
#include <sys/fanotify.h>
#include <sys/inotify.h>

static const char *const names[] = { ".", "w", "w/sub", "w/f", "w/mapped", "w/locked", "w/fifo", "w/unheard" };
#define NAMES ((int)(sizeof names / sizeof *names))

static void times(struct timespec *to)
{
	for (int i = 1; i < NAMES; i++) { /* others look at the first */
		struct stat st;
		MUST(stat(fx_path(names[i]), &st));
		to[i] = st.st_atim;
	}
}

/* a copy of the program that nobody else executes */
static void copy(const char *to)
{
	char buf[65536];
	ssize_t n;
	int from = MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), fd = MUST(open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0777));
	while ((n = MUST(read(from, buf, sizeof buf))) > 0)
		MUST(write(fd, buf, n));
	close(fd), close(from);
}

int main(int argc, char **argv)
{
	struct timespec before[NAMES], after[NAMES];
	fx_init(argc, argv);
	if (!fx_exists("w/unheard")) {
		MUST(mkdir(fx_path("w"), 0777));
		copy(fx_path("w/unheard"));
		MUST(execv(fx_path("w/unheard"), argv));
	}
	close_range(3, ~0u, 0);
	MUST(mkdir(fx_path("w/sub"), 0777));
	int f = MUST(open(fx_path("w/f"), O_RDWR | O_CREAT, 0666));
	MUST(write(f, "text", 4));
	int mapped = MUST(open(fx_path("w/mapped"), O_RDWR | O_CREAT, 0666));
	MUST(ftruncate(mapped, 16384));
	char *shared = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
	char *private = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, mapped, 0);
	CHECK(shared != MAP_FAILED && private != MAP_FAILED, "set-up: mmap");
	shared[0] = 's', private[8192] = 'p';
	/* a restore maps it, and the executable, again, which the kernel takes for a read unless that was later than all else (relatime) */
	struct timespec later[2] = { { time(NULL) + 3600, 0 }, { 0, UTIME_OMIT } };
	MUST(futimens(mapped, later));
	MUST(utimensat(AT_FDCWD, fx_path("w/unheard"), later, 0));
	close(mapped);
	int locked = MUST(open(fx_path("w/locked"), O_RDWR | O_CREAT, 0666));
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	MUST(fcntl(locked, F_SETLK, &lock));
	MUST(mkfifo(fx_path("w/fifo"), 0666));
	MUST(open(fx_path("w/fifo"), O_RDWR));
	MUST(open(fx_path("w/sub"), O_RDONLY | O_DIRECTORY));
	int gone = MUST(open(fx_path("w/gone"), O_RDWR | O_CREAT, 0666));
	MUST(write(gone, "gone", 4));
	MUST(unlink(fx_path("w/gone")));
	MUST(chdir(fx_path("w/sub")));

	int in = MUST(inotify_init1(IN_NONBLOCK));
	int fan = MUST(fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC));
	for (int i = 1; i < NAMES; i++) {
		MUST(inotify_add_watch(in, fx_path(names[i]), IN_ALL_EVENTS | IN_EXCL_UNLINK));
		MUST(fanotify_mark(fan, FAN_MARK_ADD, FAN_OPEN_PERM | FAN_ACCESS_PERM | FAN_OPEN | FAN_ACCESS | FAN_CLOSE | FAN_MODIFY | FAN_ONDIR, AT_FDCWD, fx_path(names[i])));
	}
	times(before);
	fx_ready();
	fx_wait_check();

	union { struct inotify_event e; char room[4096]; } u;
	while (read(in, &u, sizeof u) > 0)
		FAIL("an event: wd %d mask %#x %s", u.e.wd, u.e.mask, u.e.len ? u.e.name : "");
	struct fanotify_event_metadata m;
	while (read(fan, &m, sizeof m) > 0)
		FAIL("an event of fanotify: mask %#llx by %d", (unsigned long long)m.mask, m.pid);
	times(after);
	for (int i = 1; i < NAMES; i++)
		CHECK(before[i].tv_sec == after[i].tv_sec && before[i].tv_nsec == after[i].tv_nsec, "%s was read at %lld.%09ld, before it was %lld.%09ld", names[i],
		      (long long)after[i].tv_sec, after[i].tv_nsec, (long long)before[i].tv_sec, before[i].tv_nsec);
	/* and the watches are alive */
	MUST(fchmod(f, 0600));
	CHECK(read(in, &u, sizeof u) > 0 && u.e.mask == IN_ATTRIB, "no event of fchmod");
	char c[5] = "";
	CHECK(shared[0] == 's' && private[8192] == 'p' && pread(gone, c, 4, 0) == 4 && !strcmp(c, "gone"), "contents");
	close(fan);
	fx_finish();
}
