/* Forks as fast as it can: never more than LIMIT live processes, never more than 20000 in all, never longer than 20 s,
 * and not at all once the first of them is gone. Usage: forker LIMIT. Prints "ready" once it is under way. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct shared {
	int live, born;
	time_t end;
};

static time_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

int main(int argc, char **argv)
{
	int limit = argc > 1 ? atoi(argv[1]) : 10;
	struct shared *s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t root = getpid();
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* none leaves the tree */
	s->live = 1;
	s->end = now() + 20;
	for (unsigned n = 0;; n++) {
		if (now() >= s->end || kill(root, 0) != 0 || s->born > 20000)
			_exit(0);
		if (getpid() == root && n == 50 && write(1, "ready\n", 6) != 6)
			return 1;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (__atomic_add_fetch(&s->live, 1, __ATOMIC_SEQ_CST) > limit) {
			__atomic_sub_fetch(&s->live, 1, __ATOMIC_SEQ_CST);
			if (getpid() != root && n % 3 == 0) {
				__atomic_sub_fetch(&s->live, 1, __ATOMIC_SEQ_CST);
				_exit(0);
			}
			usleep(300); /* at its limit it leaves the processors to others */
			continue;
		}
		s->born++;
		pid_t p = fork();
		if (p < 0)
			__atomic_sub_fetch(&s->live, 1, __ATOMIC_SEQ_CST);
		if (p == 0)
			n = 0;
	}
}
