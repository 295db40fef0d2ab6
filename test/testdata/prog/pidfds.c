/*
 * pidfds: of a child, of a zombie, of the process itself, of its parent, of a thread, of a process that is gone; with PIDFD_NONBLOCK and other flags; shared with a child; watched by
 * epoll. They still lead to the same processes: signals go through them, waitid waits through them, and they become readable at the end.
 */
#include "fixture.h"
#include <linux/kcmp.h>
#include <poll.h>
#include <sys/epoll.h>
#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static int open_pidfd(pid_t pid, unsigned flags) { return syscall(SYS_pidfd_open, pid, flags); }

static int send(int fd, int sig) { return syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0); }

/* the number that fdinfo shows */
static int number(int fd)
{
	char path[64], line[256];
	int pid = -100;
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		sscanf(line, "Pid: %d", &pid);
	if (f)
		fclose(f);
	return pid;
}

static int readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	return poll(&p, 1, 0) == 1 ? p.revents : 0;
}

static pid_t tid;
static int told;
static void *sleeper(void *arg)
{
	tid = gettid();
	__atomic_store_n(&told, 1, __ATOMIC_RELEASE);
	while (!fx_exists("check"))
		fx_pause_ms(5);
	return arg;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	close_range(3, ~0u, 0);
	pid_t root = getpid();
	pid_t child = MUST(fork());
	if (!child) {
		int parent = MUST(open_pidfd(getppid(), 0));
		MUST(dup2(parent, 200));
		close(parent);
		fx_up();
		fx_wait_check();
		CHECK_EQ(number(200), root, "the child's pidfd of its parent");
		CHECK_EQ(send(200, 0), 0, "signal 0 through it");
		fx_touch("child-looked", "");
		for (;;)
			pause(); /* a signal through a pidfd ends it */
	}
	pid_t zombie = MUST(fork());
	if (!zombie)
		_exit(42);
	pid_t gone = MUST(fork());
	if (!gone)
		_exit(0);
	fx_await_state(zombie, 'Z');
	fx_await_up(1);
	pthread_t th;
	pthread_create(&th, NULL, sleeper, NULL);
	while (!__atomic_load_n(&told, __ATOMIC_ACQUIRE))
		fx_pause_ms(1);

	int of_child = MUST(open_pidfd(child, 0));
	int again = MUST(open_pidfd(child, O_NONBLOCK));
	MUST(fcntl(again, F_SETFL, O_NONBLOCK | O_APPEND));
	int dupd = MUST(dup2(of_child, 300));
	int of_zombie = MUST(open_pidfd(zombie, 0));
	int of_self = MUST(open_pidfd(root, 0));
	int of_gone = MUST(open_pidfd(gone, 0));
	int of_thread = open_pidfd(tid, PIDFD_THREAD); /* Linux 6.9 */
	fx_reap_ok(gone);

	/* one that both processes have, and both watch by one epoll instance */
	int ep = MUST(epoll_create1(0));
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0x1234567890 };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, of_child, &ev));
	ev = (struct epoll_event){ .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 77 };
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, dupd, &ev)); /* the same open file by another number */
	pid_t heir = MUST(fork());
	if (!heir) {
		fx_up();
		fx_wait_check();
		CHECK_EQ(number(of_child), child, "the heir's pidfd");
		CHECK(syscall(SYS_kcmp, getpid(), root, KCMP_FILE, of_child, of_child) == 0, "the heir and the root do not share the pidfd any more");
		fx_touch("heir-looked", "");
		_exit(0);
	}
	fx_await_up(2);
	CHECK_EQ(number(of_gone), -1, "set-up: the process that is gone");
	fx_ready();
	fx_wait_check();

	CHECK_EQ(number(of_child), child, "the child");
	CHECK_EQ(number(again), child, "the child, opened again");
	CHECK_EQ(fcntl(again, F_GETFL), O_RDWR | O_NONBLOCK | O_APPEND, "its flags");
	CHECK_EQ(fcntl(of_child, F_GETFL), O_RDWR, "flags");
	CHECK_EQ(fcntl(of_child, F_GETFD), FD_CLOEXEC, "close-on-exec");
	CHECK_EQ(fcntl(dupd, F_GETFD), 0, "close-on-exec of the dup");
	CHECK(syscall(SYS_kcmp, root, root, KCMP_FILE, of_child, dupd) == 0, "the dup is another open file");
	CHECK(syscall(SYS_kcmp, root, root, KCMP_FILE, of_child, again) != 0, "two open files are one now");
	CHECK_EQ(number(of_self), root, "itself");
	CHECK_EQ(number(of_zombie), zombie, "the zombie");
	CHECK_EQ(number(of_gone), -1, "the process that is gone");
	CHECK(readable(of_zombie) & POLLIN, "the pidfd of a zombie is readable");
	CHECK(readable(of_gone) & POLLIN, "the pidfd of a process that is gone is readable");
	CHECK(send(of_gone, 0) == -1 && errno == ESRCH, "a signal to a process that is gone");
	CHECK_EQ(readable(of_child), 0, "the child lives");
	pthread_join(th, NULL);
	if (of_thread >= 0) {
		CHECK_EQ(fcntl(of_thread, F_GETFL) & PIDFD_THREAD, PIDFD_THREAD, "PIDFD_THREAD");
		for (int i = 0; i < 1000 && !readable(of_thread); i++)
			fx_pause_ms(2);
		CHECK(readable(of_thread), "the thread has ended, its pidfd does not say so");
	}
	for (int i = 0; i < 2000 && !(fx_exists("child-looked") && fx_exists("heir-looked")); i++)
		fx_pause_ms(5);
	fx_reap_ok(heir);

	siginfo_t si = {0};
	CHECK_EQ(waitid(P_PIDFD, of_zombie, &si, WEXITED), 0, "waiting for the zombie");
	CHECK_EQ(si.si_pid, zombie, "si_pid");
	CHECK_EQ(si.si_status, 42, "its status");
	struct epoll_event got[4];
	CHECK_EQ(epoll_wait(ep, got, 4, 0), 0, "events before the child has ended");
	CHECK_EQ(send(of_child, SIGTERM), 0, "a signal to the child");
	for (int i = 0; i < 2000 && !readable(of_child); i++)
		fx_pause_ms(2);
	int n = epoll_wait(ep, got, 4, 1000);
	CHECK_EQ(n, 2, "events");
	int sum = 0;
	for (int i = 0; i < n; i++)
		sum += got[i].data.u64 == 0x1234567890 ? 1 : got[i].data.u64 == 77 ? 10 : 100;
	CHECK_EQ(sum, 11, "which events");
	CHECK_EQ(epoll_ctl(ep, EPOLL_CTL_DEL, of_child, NULL), 0, "removing the item");
	CHECK_EQ(waitid(P_PIDFD, again, &si, WEXITED), 0, "waiting for the child");
	CHECK_EQ(si.si_code, CLD_KILLED, "si_code");
	CHECK_EQ(si.si_status, SIGTERM, "the signal that ended the child");
	CHECK_EQ(number(of_child), -1, "the child is gone");
	fx_finish();
}
