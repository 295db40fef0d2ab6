/*
 * Descriptor tables and what is shared: dup and fork share an open file description (offset, status flags), a second open does not; a table shared by two processes
 * (clone with CLONE_FILES, not threads) is one table; high numbers, gaps, close-on-exec flags. Who shares is asked of the kernel by kcmp and shown by moving offsets.
 */
#include "fixture.h"
#include <linux/kcmp.h>

static int same_file(pid_t a, int fa, pid_t b, int fb) { return syscall(SYS_kcmp, a, b, KCMP_FILE, fa, fb) == 0; }

static int data;

static int at(int fd) { return lseek(fd, 0, SEEK_CUR); }

static volatile int *step; /* shared memory */

static void sharer(void)
{
	while (*step < 1)
		fx_pause_ms(2);
	/* the root has opened 200 and closed 100 meanwhile: seen here, as the table is one */
	CHECK(fcntl(200, F_GETFD) >= 0, "descriptor 200, opened by the other process, is not here");
	CHECK(fcntl(100, F_GETFD) < 0, "descriptor 100, closed by the other process, is still here");
	CHECK_EQ(dup2(data, 201), 201, "dup2");
	*step = 2;
	while (*step < 3)
		fx_pause_ms(2);
	_exit(0);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	step = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	data = MUST(open(fx_path("data"), O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(data, 100000));
	MUST(lseek(data, 111, SEEK_SET));
	int dupd = MUST(dup2(data, 50));
	int cloexec = MUST(fcntl(data, F_DUPFD_CLOEXEC, 60));
	int again = MUST(open(fx_path("data"), O_RDWR));
	MUST(lseek(again, 222, SEEK_SET));
	int append = MUST(open(fx_path("data"), O_WRONLY | O_APPEND | O_NONBLOCK | O_CLOEXEC));
	MUST(dup2(data, 100));
	MUST(dup2(again, 1023));
	pid_t root = getpid();
	/* a process with its own memory and the root's table */
	pid_t sharer_pid = MUST(syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
	if (!sharer_pid)
		sharer();
	pid_t kid = MUST(fork());
	if (!kid) {
		close(100); /* its own table: nobody else minds */
		int own = MUST(open(fx_path("data"), O_RDONLY));
		MUST(lseek(own, 333, SEEK_SET));
		MUST(dup2(own, 70));
		fcntl(50, F_SETFD, FD_CLOEXEC); /* the flag is the table's, not the description's */
		fx_up();
		fx_wait_check();
		CHECK(fcntl(100, F_GETFD) < 0, "100 is closed in the child");
		CHECK_EQ(fcntl(50, F_GETFD), FD_CLOEXEC, "close-on-exec in the child");
		CHECK_EQ(at(70), 333, "offset of the child's own file");
		CHECK(same_file(getpid(), data, root, data), "parent and child do not share the file any more");
		CHECK(same_file(getpid(), own, getpid(), 70), "dup in the child");
		for (int i = 0; i < 2000 && !fx_exists("moved"); i++)
			fx_pause_ms(5);
		CHECK_EQ(at(data), 4444, "offset that the parent moved");
		MUST(lseek(data, 5555, SEEK_SET));
		fx_touch("moved-back", "");
		_exit(0);
	}
	fx_await_up(1);
	fx_ready();
	fx_wait_check();
	CHECK_EQ(at(data), 111, "offset");
	CHECK_EQ(at(again), 222, "offset of the second open");
	CHECK_EQ(at(1023), 222, "offset of its dup at 1023");
	CHECK(same_file(root, data, root, dupd) && same_file(root, data, root, cloexec) && same_file(root, data, root, 100), "dups do not share any more");
	CHECK(!same_file(root, data, root, again) && !same_file(root, data, root, append), "separate opens share now");
	CHECK(same_file(root, again, root, 1023), "the dup at 1023");
	CHECK_EQ(fcntl(data, F_GETFD), 0, "close-on-exec of data");
	CHECK_EQ(fcntl(cloexec, F_GETFD), FD_CLOEXEC, "close-on-exec of its dup");
	CHECK_EQ(fcntl(50, F_GETFD), 0, "close-on-exec of 50, which only the child set");
	CHECK_EQ(fcntl(append, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK), O_WRONLY | O_APPEND | O_NONBLOCK, "flags");
	CHECK_EQ(fcntl(data, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK), O_RDWR, "flags of data");
	CHECK_EQ(syscall(SYS_kcmp, root, sharer_pid, KCMP_FILES, 0, 0), 0, "kcmp of the shared table");
	CHECK(syscall(SYS_kcmp, root, kid, KCMP_FILES, 0, 0) > 0, "the child's own table is shared now");
	for (int fd = 0, n = 0; fd < 1024; fd++) {
		int want = fd <= 2 || fd == data || fd == dupd || fd == cloexec || fd == again || fd == append || fd == 100 || fd == 1023;
		n = fcntl(fd, F_GETFD) >= 0;
		CHECK(n == want, "descriptor %d is %s", fd, n ? "open" : "closed");
	}
	MUST(lseek(dupd, 4444, SEEK_SET));
	fx_touch("moved", "");
	for (int i = 0; i < 2000 && !fx_exists("moved-back"); i++)
		fx_pause_ms(5);
	CHECK_EQ(at(cloexec), 5555, "offset that the child moved");
	MUST(dup2(again, 200));
	close(100);
	*step = 1;
	for (int i = 0; i < 2000 && *step != 2; i++)
		fx_pause_ms(5);
	CHECK(same_file(root, 201, root, data), "what the sharer opened is not here");
	*step = 3;
	fx_reap_ok(sharer_pid);
	fx_reap_ok(kid);
	fx_finish();
}
