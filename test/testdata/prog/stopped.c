/*
 * Children stopped by job control: by SIGSTOP and by SIGTSTP, one whose stop the parent has already waited for and one
 * whose stop it has not, one of them with two threads. They stay stopped, the stop is reported as often as it should be,
 * and SIGCONT lets them go on.
 */
#include "fixture.h"

static volatile uint64_t *beat; /* shared: one counter a child, and one for its second thread */

static void *second(void *arg)
{
	volatile uint64_t *b = arg;
	for (;;) {
		++*b;
		fx_pause_ms(1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	beat = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int sig[] = { SIGSTOP, SIGTSTP, SIGSTOP, SIGTTIN };
	enum { N = 4 };
	pid_t pid[N];
	for (int i = 0; i < N; i++) {
		pid[i] = MUST(fork());
		if (!pid[i]) {
			pthread_t t;
			if (i == 2)
				pthread_create(&t, NULL, second, (void *)(beat + 100));
			/* a group of its own, so that it is not orphaned: SIGTSTP and SIGTTIN stop only then */
			setpgid(0, 0);
			fx_up();
			while (!fx_exists("go")) {
				beat[i]++;
				fx_pause_ms(1);
			}
			_exit(40 + i);
		}
	}
	fx_await_up(N);
	for (int i = 0; i < N; i++) {
		MUST(kill(pid[i], sig[i]));
		fx_await_state(pid[i], 'T');
	}
	/* 0 and 1 are reported now, 2 and 3 only after the restore */
	for (int i = 0; i < 2; i++) {
		int st = 0;
		CHECK(waitpid(pid[i], &st, WUNTRACED) == pid[i] && WIFSTOPPED(st) && WSTOPSIG(st) == sig[i], "set-up: status 0x%x", st);
	}
	uint64_t seen[N + 1];
	for (int i = 0; i < N; i++)
		seen[i] = beat[i];
	seen[N] = beat[100];
	fx_ready();
	fx_wait_check();
	fx_pause_ms(50);
	for (int i = 0; i < N; i++) {
		CHECK_EQ(fx_state(pid[i]), 'T', "state of the stopped child");
		CHECK_EQ(beat[i], seen[i], "counter of the stopped child");
	}
	CHECK_EQ(beat[100], seen[N], "counter of the stopped child's second thread");
	for (int i = 0; i < 2; i++) {
		int st = 0;
		CHECK_EQ(waitpid(pid[i], &st, WUNTRACED | WNOHANG), 0, "a stop that was waited for is reported again");
	}
	for (int i = 2; i < N; i++) {
		int st = 0;
		CHECK_EQ(waitpid(pid[i], &st, WUNTRACED | WNOHANG), pid[i], "a stop nobody had waited for");
		CHECK(WIFSTOPPED(st) && WSTOPSIG(st) == sig[i], "stop status 0x%x, want signal %d", st, sig[i]);
	}
	fx_touch("go", "");
	for (int i = 0; i < N; i++) {
		MUST(kill(pid[i], SIGCONT));
		int st = 0;
		CHECK_EQ(waitpid(pid[i], &st, WCONTINUED), pid[i], "waitpid for the continued child");
		if (WIFCONTINUED(st))
			CHECK_EQ(waitpid(pid[i], &st, 0), pid[i], "waitpid for the end");
		CHECK(WIFEXITED(st) && WEXITSTATUS(st) == 40 + i, "child %d: status 0x%x", i, st);
	}
	fx_finish();
}
