/* Threads and processes blocked in every kind of wait. Whatever returns from
 * its wait by an interruption is written to the log; nothing should be.
 * Usage: blocked LOG PROCESSES. Prints the ids of its IPC objects, then "ready". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int logfd, sem, msg, ep, pipefd[2], pair[2], word;
static volatile uint64_t *beats; /* [0]: wake-ups, [1]: spins */
static unsigned long aio;

static void complain(const char *what, long r)
{
	char b[200];
	int n = snprintf(b, sizeof b, "pid %d: %s returned %ld, errno %d (%s)\n", getpid(), what, r, errno, strerror(errno));
	if (write(logfd, b, n) != n)
		abort();
}

#define FOREVER(name, call) \
	static void *name(void *arg) { (void)arg; for (;;) { errno = 0; long r = (long)(call); complain(#name, r); if (errno != EINTR) return NULL; } }
#define AGAIN(name, decl, call, good) \
	static void *name(void *arg) { (void)arg; decl; for (;;) { errno = 0; long r = (long)(call); if (!(good)) complain(#name, r); __atomic_add_fetch(&beats[0], 1, __ATOMIC_RELAXED); } }

static struct epoll_event evs[4];
static struct sembuf down = { 0, -1, 0 };
static struct timespec minute = { 60, 0 };
static char buf[4][64];

FOREVER(t_epoll, epoll_wait(ep, evs, 4, -1))
FOREVER(t_epoll_pwait, ({ sigset_t s; sigfillset(&s); epoll_pwait(ep, evs, 4, -1, &s); }))
FOREVER(t_semop, semop(sem, &down, 1))
FOREVER(t_semtimedop, semtimedop(sem, &down, 1, &minute))
FOREVER(t_msgrcv, msgrcv(msg, buf[0], 32, 0, 0))
FOREVER(t_sigtimedwait, ({ sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); siginfo_t i; syscall(SYS_rt_sigtimedwait, &s, &i, NULL, 8L); }))
FOREVER(t_sigtimedwait_minute, ({ sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); siginfo_t i; syscall(SYS_rt_sigtimedwait, &s, &i, &minute, 8L); }))
FOREVER(t_sigsuspend, ({ sigset_t s; sigemptyset(&s); sigsuspend(&s); }))
FOREVER(t_pause, pause())
FOREVER(t_poll, ({ struct pollfd p = { pipefd[0], POLLIN, 0 }; poll(&p, 1, -1); }))
FOREVER(t_ppoll, ({ struct pollfd p = { pipefd[0], POLLIN, 0 }; sigset_t s; sigemptyset(&s); ppoll(&p, 1, &minute, &s); }))
FOREVER(t_select, ({ fd_set f; FD_ZERO(&f); FD_SET(pipefd[0], &f); select(pipefd[0] + 1, &f, NULL, NULL, NULL); }))
FOREVER(t_read, read(pipefd[0], buf[1], 1))
FOREVER(t_recv, recv(pair[0], buf[2], 1, 0))
FOREVER(t_futex, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0))
FOREVER(t_futex_minute, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &minute, NULL, 0))
FOREVER(t_io_getevents, syscall(SYS_io_getevents, aio, 1L, 1L, evs, NULL))
AGAIN(t_nanosleep, struct timespec ts = ((struct timespec){ 0, 3000000 }), nanosleep(&ts, NULL), r == 0)
AGAIN(t_clock_nanosleep, struct timespec ts, (clock_gettime(CLOCK_MONOTONIC, &ts), ts.tv_nsec = (ts.tv_nsec + 5000000) % 1000000000, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL)), r == 0)
AGAIN(t_poll_short, struct pollfd p = ((struct pollfd){ pipefd[0], POLLIN, 0 }), poll(&p, 1, 4), r == 0)
AGAIN(t_epoll_short, struct epoll_event e, epoll_wait(ep, &e, 1, 5), r == 0)
AGAIN(t_sem_short, struct timespec ts = ((struct timespec){ 0, 6000000 }), semtimedop(sem, &down, 1, &ts), r == -1 && errno == EAGAIN)
static void *t_spin(void *arg) { (void)arg; for (;;) __atomic_add_fetch(&beats[1], 1, __ATOMIC_RELAXED); }

static void on_signal(int sig) { errno = 0; complain(sig == SIGCONT ? "a SIGCONT handler" : "a SIGCHLD handler", sig); }

static void *(*const threads[])(void *) = {
	t_epoll, t_epoll_pwait, t_semop, t_semtimedop, t_msgrcv, t_sigtimedwait, t_sigtimedwait_minute, t_sigsuspend, t_pause,
	t_poll, t_ppoll, t_select, t_read, t_recv, t_futex, t_futex_minute, t_io_getevents,
	t_nanosleep, t_clock_nanosleep, t_poll_short, t_epoll_short, t_sem_short, t_spin,
};

int main(int argc, char **argv)
{
	int n = argc > 2 ? atoi(argv[2]) : 1;
	logfd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_TRUNC, 0600);
	int shared = open(argc > 3 ? argv[3] : "/dev/null", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (logfd < 0 || shared < 0 || ftruncate(shared, 4096))
		return 1;
	beats = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	sem = semget(IPC_PRIVATE, 1, 0600);
	msg = msgget(IPC_PRIVATE, 0600);
	if (beats == MAP_FAILED || sem < 0 || msg < 0)
		return 1;
	pid_t root = getpid();
	signal(SIGCONT, on_signal);
	signal(SIGCHLD, on_signal);
	for (int i = 1; i < n; i++)
		if (fork() == 0) { if (i % 2) break; } else if (i % 2 == 0) break;
	ep = epoll_create1(0);
	if (pipe(pipefd) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || syscall(SYS_io_setup, 4, &aio))
		return 1;
	sigset_t usr2;
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	sigprocmask(SIG_BLOCK, &usr2, NULL);
	for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, threads[i], NULL))
			return 1;
	}
	usleep(50000);
	__atomic_add_fetch(&beats[2], 1, __ATOMIC_SEQ_CST);
	if (getpid() != root)
		t_pause(NULL);
	while (__atomic_load_n(&beats[2], __ATOMIC_SEQ_CST) < (uint64_t)n)
		usleep(1000);
	char line[64];
	int len = snprintf(line, sizeof line, "sem %d msg %d\n", sem, msg);
	if (write(1, line, len) != len)
		return 1;
	t_pause(NULL);
	return 0;
}
