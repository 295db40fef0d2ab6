/*
 * Threads: tids, names, masks, thread-local storage, what pthread_join brings back, mutexes with waiters, condition
 * variables, barriers, once, specific data, and a thread made after the restore.
 */
#include "fixture.h"

enum { N = 8 };
static __thread uint64_t tls_zero, tls_init = 0x1122334455667788ull;
static __thread char tls_big[10000];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_key_t key;
static int released, tid[N], passed;

static void *worker(void *arg)
{
	long i = (long)arg;
	char name[16], got[16];
	sigset_t mask, now;
	tid[i] = syscall(SYS_gettid);
	snprintf(name, sizeof name, "worker-%ld", i);
	prctl(PR_SET_NAME, name);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1 + (i & 1) * 2);
	sigaddset(&mask, SIGRTMIN + (int)i);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	tls_zero = fx_mix(i);
	memset(tls_big, (int)i + 1, sizeof tls_big);
	pthread_setspecific(key, (void *)(1000 + i));
	fx_up();
	if (i < 3) {
		pthread_mutex_lock(&lock);
		while (!released)
			pthread_cond_wait(&cond, &lock);
		pthread_mutex_unlock(&lock);
	} else if (i < 5) {
		pthread_mutex_lock(&held); /* the main thread holds it */
		passed++;
		pthread_mutex_unlock(&held);
	} else
		pthread_barrier_wait(&barrier);
	CHECK_EQ(syscall(SYS_gettid), tid[i], "tid");
	prctl(PR_GET_NAME, got);
	CHECK(!strcmp(got, name), "name %s, want %s", got, name);
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	CHECK(!memcmp(&now, &mask, 8), "signal mask of thread %ld: %lx", i, *(long *)&now);
	CHECK_EQ(tls_zero, fx_mix(i), "thread-local variable");
	CHECK_EQ(tls_init, 0x1122334455667788ull, "initialised thread-local variable");
	for (size_t k = 0; k < sizeof tls_big; k++)
		if (tls_big[k] != (char)(i + 1)) {
			FAIL("thread-local array at %zu", k);
			break;
		}
	CHECK_EQ((long)pthread_getspecific(key), 1000 + i, "pthread_getspecific");
	return (void *)(5000 + i);
}

static void *late(void *arg) { return (char *)arg + syscall(SYS_gettid); }

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	pthread_t t[N], another;
	pthread_key_create(&key, NULL);
	pthread_barrier_init(&barrier, NULL, N - 5 + 1);
	pthread_mutex_lock(&held);
	tls_zero = 77;
	int self = syscall(SYS_gettid);
	pthread_t me = pthread_self();
	for (long i = 0; i < N; i++)
		if (pthread_create(&t[i], NULL, worker, (void *)i))
			FAIL("set-up: pthread_create");
	fx_await_up(N);
	for (int i = 0; i < N; i++)
		fx_await_state(tid[i], 'S');
	fx_ready();
	fx_wait_check();
	CHECK_EQ(syscall(SYS_gettid), self, "tid of the leader");
	CHECK(pthread_equal(me, pthread_self()), "pthread_self");
	CHECK_EQ(tls_zero, 77, "thread-local variable of the leader");
	CHECK_EQ(passed, 0, "the held mutex let somebody through");
	pthread_mutex_unlock(&held);
	pthread_mutex_lock(&lock);
	released = 1;
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&lock);
	pthread_barrier_wait(&barrier);
	for (long i = 0; i < N; i++) {
		void *r = NULL;
		CHECK_EQ(pthread_join(t[i], &r), 0, "pthread_join"); /* needs set_tid_address to have survived */
		CHECK_EQ((long)r, 5000 + i, "what the thread returned");
	}
	CHECK_EQ(passed, 2, "threads through the mutex");
	CHECK_EQ(pthread_create(&another, NULL, late, NULL), 0, "pthread_create after the restore");
	void *r = NULL;
	CHECK_EQ(pthread_join(another, &r), 0, "pthread_join of the late thread");
	CHECK((long)r > 0, "tid of the late thread");
	fx_finish();
}
