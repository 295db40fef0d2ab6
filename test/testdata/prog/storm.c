/*
 * Forks as fast as it can, with never more than LIMIT live processes, until it is told to check, at the longest for a minute, and not at all
 * once its first process is gone. DIR/beat is how many were born.
 */
#include "fixture.h"

struct shared {
	int live, stop;
	uint64_t born;
};

static struct shared *s;

/* whoever ends, ends well */
static int reap(int options)
{
	int st;
	pid_t p;
	while ((p = waitpid(-1, &st, options)) > 0)
		if (st)
			FAIL("a child ended with status 0x%x", st);
	return p;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int limit = fx_argc ? atoi(fx_argv[0]) : 12;
	pid_t root = getpid();
	time_t end = time(NULL) + 60;
	s = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1)); /* none leaves the tree */
	s->live = 1;
	uint64_t shown = 0;
	for (unsigned n = 0; !s->stop; n++) {
		reap(WNOHANG);
		if (getpid() == root && s->born - shown > 20) {
			char text[32];
			shown = s->born;
			snprintf(text, sizeof text, "%" PRIu64 "\n", shown);
			fx_touch("beat", text);
			if (shown < 100)
				fx_ready();
			s->stop = fx_exists("check") || time(NULL) > end;
		} else if (kill(root, 0)) {
			_exit(0);
		}
		if (__atomic_add_fetch(&s->live, 1, __ATOMIC_SEQ_CST) > limit) {
			__atomic_sub_fetch(&s->live, 1, __ATOMIC_SEQ_CST);
			if (getpid() != root && n % 3 == 0)
				break;
			usleep(300); /* at its limit it leaves the processors to others */
			continue;
		}
		__atomic_add_fetch(&s->born, 1, __ATOMIC_SEQ_CST);
		pid_t p = fork();
		if (p < 0) {
			FAIL("fork: %s", strerror(errno));
			s->stop = 1;
		}
		if (p == 0)
			n = 0;
	}
	if (getpid() != root) {
		__atomic_sub_fetch(&s->live, 1, __ATOMIC_SEQ_CST);
		_exit(0);
	}
	if (reap(0) != -1 || errno != ECHILD)
		FAIL("waiting for all: %s", strerror(errno));
	fx_finish();
}
