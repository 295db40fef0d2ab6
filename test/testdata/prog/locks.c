/*
 * Locks: POSIX ones of two processes and of one that shares its descriptor table, flock on a description that several processes hold, open file description
 * locks; and waiters, blocked in F_SETLKW and in flock, which must get their locks only when those who have them let go, and without EINTR.
 * The root holds nothing itself: it looks, as somebody else, at who has what.
 */
#include "fixture.h"
#include <sys/file.h>

static int ranges, whole, ofd;

static int set(int fd, int cmd, short type, off_t start, off_t len)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	return fcntl(fd, cmd, &l);
}

/* who prevents a write lock on one byte: a pid, -1 for an open file description, 0 for nobody; the type is added as 'r' or 'w' */
static char type_at;
static pid_t holder(int fd, off_t at)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };
	MUST(fcntl(fd, F_GETLK, &l));
	type_at = l.l_type == F_UNLCK ? '-' : l.l_type == F_RDLCK ? 'r' : 'w';
	return l.l_type == F_UNLCK ? 0 : l.l_pid;
}

#define HELD(at, who, type) do { \
	pid_t h_ = holder(ranges, (at)); \
	CHECK(h_ == (who) && type_at == (type), "byte %d: %d has it (%c), want %d (%c)", (int)(at), (int)h_, type_at, (int)(who), (type)); } while (0)

static void stay(const char *until)
{
	fx_up();
	while (!fx_exists(until))
		fx_pause_ms(5);
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	ranges = MUST(open(fx_path("ranges"), O_RDWR | O_CREAT, 0600));
	whole = MUST(open(fx_path("whole"), O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(ranges, 1000));

	pid_t a = MUST(fork());
	if (!a) {
		int same = MUST(open(fx_path("ranges"), O_RDWR)); /* the locks through it and through ranges are of one owner */
		MUST(set(ranges, F_SETLK, F_WRLCK, 10, 10));
		MUST(set(same, F_SETLK, F_WRLCK, 20, 10)); /* becomes one lock with the one before */
		MUST(set(same, F_SETLK, F_RDLCK, 500, 0));
		MUST(dup2(ranges, 70));
		MUST(flock(whole, LOCK_EX)); /* of the description, which all have */
		stay("go-a");
	}
	fx_await_up(1);
	pid_t b = MUST(fork());
	if (!b) {
		MUST(set(ranges, F_SETLK, F_RDLCK, 40, 5));
		MUST(set(ranges, F_SETLK, F_RDLCK, 600, 10)); /* shared with a's */
		/* a process that has b's table has b's locks: they do not disturb each other */
		pid_t c = MUST(syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
		if (!c) {
			CHECK_EQ(set(ranges, F_SETLK, F_WRLCK, 50, 5), 0, "a lock of the shared table");
			fx_up();
			while (!fx_exists("go-b"))
				fx_pause_ms(5);
			CHECK_EQ(set(ranges, F_SETLK, F_WRLCK, 40, 5), 0, "making the shared table's lock exclusive");
			_exit(0);
		}
		fx_up();
		fx_reap_ok(c);
		_exit(0);
	}
	fx_await_up(3);
	ofd = MUST(open(fx_path("ranges"), O_RDWR));
	MUST(set(ofd, F_OFD_SETLK, F_WRLCK, 100, 100));
	pid_t d = MUST(fork()); /* holds the open file too: the lock outlives the root's descriptor */
	if (!d)
		stay("go-d");
	fx_await_up(4);
	close(ofd);

	pid_t w1 = MUST(fork()), w2 = 0, w3 = 0;
	if (!w1) {
		fx_up();
		CHECK_EQ(set(ranges, F_SETLKW, F_WRLCK, 15, 1), 0, "waiting for a POSIX lock");
		CHECK(fx_exists("go-a"), "the lock came before the other process gave it up");
		_exit(0);
	}
	w2 = MUST(fork());
	if (!w2) {
		int own = MUST(open(fx_path("whole"), O_RDONLY));
		fx_up();
		CHECK_EQ(flock(own, LOCK_SH), 0, "waiting in flock");
		CHECK(fx_exists("unlock"), "the lock by flock came before the others gave it up");
		_exit(0);
	}
	w3 = MUST(fork());
	if (!w3) {
		int own = MUST(open(fx_path("ranges"), O_RDWR));
		fx_up();
		CHECK_EQ(set(own, F_OFD_SETLKW, F_RDLCK, 100, 1), 0, "waiting for an open file description lock");
		CHECK(fx_exists("go-d"), "the lock came before the other process closed its file");
		_exit(0);
	}
	fx_await_up(7);
	fx_await_state(w1, 'S');
	fx_await_state(w2, 'S');
	fx_await_state(w3, 'S');
	fx_ready();
	fx_wait_check();

	HELD(9, 0, '-');
	HELD(10, a, 'w');
	HELD(29, a, 'w');
	HELD(30, 0, '-');
	HELD(40, b, 'r');
	HELD(44, b, 'r');
	HELD(45, 0, '-');
	holder(ranges, 50);
	CHECK_EQ(type_at, 'w', "the lock that a sharer of b's table took");
	HELD(99, 0, '-');
	HELD(100, -1, 'w');
	HELD(199, -1, 'w');
	HELD(200, 0, '-');
	HELD(550, a, 'r');
	HELD(1 << 30, a, 'r');
	int own = MUST(open(fx_path("whole"), O_RDONLY));
	CHECK(flock(own, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the lock by flock is gone");
	CHECK_EQ(flock(whole, LOCK_EX | LOCK_NB), 0, "flock through the description that has the lock");

	fx_touch("go-a", ""); /* ends a: its POSIX locks go, the one by flock stays, as others have the file */
	fx_reap_ok(a);
	HELD(10, 0, '-');
	fx_reap_ok(w1);
	CHECK(flock(own, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the lock by flock went with the process that had taken it");
	fx_touch("go-b", "");
	fx_reap_ok(b);
	HELD(40, 0, '-');
	fx_touch("unlock", "");
	MUST(flock(whole, LOCK_UN));
	fx_reap_ok(w2);
	/* w3's waiting stands for itself: d's open file is w3's too, which opened another one */
	fx_touch("go-d", "");
	fx_reap_ok(d);
	fx_reap_ok(w3);
	fx_finish();
}
