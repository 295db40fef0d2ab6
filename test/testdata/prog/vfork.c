/* A parent that waits in vfork(2) for a child that takes its time, with what such a child does before it calls exec: it moves and closes
 * descriptors, resets signals, leaves the session. Both find everything as it was, and the parent waits until the child ends. */
#include "fixture.h"

static volatile int *seen;
static int fds[2], moved;

static void handler(int sig) { (void)sig; seen[4]++; }

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t root = getpid();
	MUST(pipe(fds));
	moved = MUST(fcntl(fds[1], F_DUPFD_CLOEXEC, 20));
	struct sigaction act = { .sa_handler = handler, .sa_flags = SA_RESTART }, old;
	MUST(sigaction(SIGUSR1, &act, NULL));
	act.sa_handler = SIG_IGN;
	MUST(sigaction(SIGUSR2, &act, NULL));
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	pid_t kid = MUST(vfork());
	if (!kid) {
		/* raw calls only: the memory and the stack are the parent's */
		if (fx_argc > 0) /* what cannot come from the parent: with this argument it is to be refused */
			open("/dev/null", O_RDONLY);
		act.sa_handler = SIG_DFL;
		sigaction(SIGUSR2, &act, NULL);
		dup2(fds[1], fds[0]); /* where the parent has another one */
		close(fds[1]);
		setsid();
		kill(root, SIGUSR1); /* blocked there, so it stays pending */
		fx_ready();
		fx_wait_check();
		sigaction(SIGUSR2, NULL, &old);
		seen[1] = old.sa_handler == SIG_DFL;
		seen[2] = write(fds[0], "moved", 5) == 5 && write(moved, "!", 1) == 1;
		seen[3] = getsid(0) == getpid() && fcntl(fds[1], F_GETFD) == -1 && fcntl(moved, F_GETFD) == FD_CLOEXEC;
		seen[0] = getppid();
		_exit(7);
	}
	CHECK_EQ(seen[0], root, "parent of the child");
	CHECK_EQ(seen[1], 1, "the child's action for SIGUSR2");
	CHECK_EQ(seen[2], 1, "writing by the child");
	CHECK_EQ(seen[3], 1, "session and descriptors of the child");
	MUST(sigaction(SIGUSR2, NULL, &old));
	CHECK(old.sa_handler == SIG_IGN, "the action for SIGUSR2");
	CHECK_EQ(seen[4], 0, "SIGUSR1 taken while blocked");
	MUST(sigprocmask(SIG_UNBLOCK, &set, NULL));
	CHECK_EQ(seen[4], 1, "SIGUSR1");
	char text[7] = "";
	MUST(close(fds[1]));
	CHECK_EQ(read(fds[0], text, 6), 6, "what the child has written");
	CHECK(!strcmp(text, "moved!"), "it is %s", text);
	int status = 0;
	CHECK_EQ(waitpid(kid, &status, 0), kid, "the child");
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "its status is %#x", status);
	fx_finish();
}
