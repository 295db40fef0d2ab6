/*
 * Robust lists: threads and a process that hold robust mutexes die after the restore, and whoever waits sees EOWNERDEAD.
 * The waiter in the other process already waits when the dump comes.
 */
#include "fixture.h"
#include <linux/futex.h>

struct area { pthread_mutex_t a, b, c; int got; } *sh;

static void *owner(void *arg)
{
	pthread_mutex_lock(arg);
	fx_up();
	fx_wait_check();
	fx_pause_ms(100);
	syscall(SYS_exit, 0); /* dies with it */
	return NULL;
}

static void check_dead(pthread_mutex_t *m, const char *who)
{
	int r = pthread_mutex_lock(m);
	CHECK_EQ(r, EOWNERDEAD, who);
	CHECK_EQ(pthread_mutex_consistent(m), 0, "pthread_mutex_consistent");
	pthread_mutex_unlock(m);
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t at;
	pthread_mutexattr_init(&at);
	pthread_mutexattr_setrobust(&at, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&at, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&sh->a, &at);
	pthread_mutex_init(&sh->b, &at);
	pthread_mutex_init(&sh->c, &at);
	pthread_t t;
	pthread_create(&t, NULL, owner, &sh->a);
	pid_t holder = MUST(fork()); /* holds b and is killed */
	if (!holder) {
		pthread_mutex_lock(&sh->b);
		fx_up();
		for (;;)
			pause();
	}
	fx_await_up(2);
	pid_t waiter = MUST(fork()); /* waits for b from before the dump */
	if (!waiter) {
		fx_up();
		check_dead(&sh->b, "lock of the killed process's mutex, by one who waited");
		sh->got++;
		_exit(0);
	}
	pid_t waiter2 = MUST(fork()); /* waits for a, which a thread of the root holds */
	if (!waiter2) {
		fx_up();
		check_dead(&sh->a, "lock of the dead thread's mutex");
		sh->got++;
		_exit(0);
	}
	fx_await_up(4);
	fx_await_state(waiter, 'S');
	fx_await_state(waiter2, 'S');
	pthread_mutex_lock(&sh->c);
	fx_ready();
	fx_wait_check();
	MUST(kill(holder, SIGKILL));
	waitpid(holder, NULL, 0);
	fx_reap_ok(waiter);
	fx_reap_ok(waiter2);
	CHECK_EQ(sh->got, 2, "waiters that got their mutex");
	/* the leader's own list: hand c to a child's eyes by dying in a fork of us is not possible, so ask the kernel */
	void *head = NULL;
	size_t len = 0;
	CHECK_EQ(syscall(SYS_get_robust_list, 0, &head, &len), 0, "get_robust_list");
	CHECK(head != NULL && len == sizeof(struct robust_list_head), "robust list head %p, length %zu", head, len);
	pthread_mutex_unlock(&sh->c);
	fx_finish();
}
