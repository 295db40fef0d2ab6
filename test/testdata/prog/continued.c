/*
 * Children that were stopped and continued, with one thread and with several, of which their parent has not heard yet
 * (WCONTINUED), and one of which it has. Nobody gets a SIGCONT or SIGCHLD more than there were.
 */
#include "fixture.h"

#define KIDS 3

static volatile int chld, conts;

static void on_chld(int sig) { (void)sig; chld++; }
static void on_cont(int sig) { (void)sig; conts++; }

static void *more(void *arg)
{
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	pid_t kid[KIDS];
	siginfo_t si;
	fx_init(argc, argv);
	for (int i = 0; i < KIDS; i++) {
		kid[i] = MUST(fork());
		if (kid[i])
			continue;
		pthread_t t;
		signal(SIGCONT, on_cont);
		if (i == 1)
			for (int k = 0; k < 3; k++)
				pthread_create(&t, NULL, more, NULL);
		fx_up();
		while (!conts)
			fx_pause_ms(2);
		fx_up();
		fx_wait_check();
		CHECK_EQ(conts, 1, "SIGCONT that came");
		while (!fx_exists("end"))
			fx_pause_ms(2);
		_exit(0);
	}
	fx_await_up(KIDS);
	for (int i = 0; i < KIDS; i++) {
		MUST(kill(kid[i], SIGSTOP));
		fx_await_state(kid[i], 'T');
		MUST(waitid(P_PID, kid[i], &si, WSTOPPED));
		MUST(kill(kid[i], SIGCONT));
	}
	fx_await_up(2 * KIDS);
	MUST(waitid(P_PID, kid[2], &si, WCONTINUED));
	signal(SIGCHLD, on_chld);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < KIDS; i++) {
		memset(&si, 0, sizeof si);
		CHECK(waitid(P_PID, kid[i], &si, WCONTINUED | WSTOPPED | WNOHANG) == 0, "waitid: %s", strerror(errno));
		CHECK_EQ(si.si_pid, i < 2 ? kid[i] : 0, "who has been continued");
		CHECK_EQ(si.si_code, i < 2 ? CLD_CONTINUED : 0, "what has happened to a child");
		memset(&si, 0, sizeof si);
		CHECK(waitid(P_PID, kid[i], &si, WCONTINUED | WSTOPPED | WNOHANG) == 0 && si.si_pid == 0, "the same news twice");
	}
	CHECK_EQ(chld, 0, "SIGCHLD that came");
	fx_touch("end", "");
	for (int i = 0; i < KIDS; i++)
		fx_reap_ok(kid[i]);
	fx_finish();
}
