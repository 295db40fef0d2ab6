/*
 * Restartable sequences: the registration that glibc made (both threads) is still in force: the kernel keeps cpu_id right
 * when the thread moves to another CPU, and aborts a critical section that is interrupted. A thread that spins inside a
 * critical section when the dump comes finds itself in the abort handler, not in the middle of the section.
 */
#include "fixture.h"
#include <sys/rseq.h>

static struct rseq *mine(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void check_cpu(const char *who)
{
	cpu_set_t all, one;
	sched_getaffinity(0, sizeof all, &all);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &all)) {
			CPU_ZERO(&one);
			CPU_SET(cpu, &one);
			sched_setaffinity(0, sizeof one, &one);
			CHECK(mine()->cpu_id == (unsigned)cpu, "%s on cpu %d: rseq says %d", who, cpu, (int)mine()->cpu_id);
		}
	sched_setaffinity(0, sizeof all, &all);
	/* an area that is registered cannot be registered again, in another place */
	static struct rseq other __attribute__((aligned(32)));
	long r = syscall(SYS_rseq, &other, 32, 0, RSEQ_SIG);
	CHECK(r == -1 && (errno == EINVAL || errno == EBUSY), "%s: a second registration was accepted: %ld", who, r);
	r = syscall(SYS_rseq, mine(), 32, 0, RSEQ_SIG);
	CHECK(r == -1 && errno == EBUSY, "%s: registering the same area again: %ld, %s; want EBUSY", who, r, strerror(errno));
}

static volatile int go_on, entered, aborts;

/* enters a critical section and stays in it until go_on; returns the number of aborts met */
static int section(void)
{
	int n = 0;
	struct rseq *rs = mine();
	asm volatile(
		".pushsection .data.rseqcs, \"aw\"\n.balign 32\n"
		"9:	.long 0, 0; .quad 1f, 2f - 1f, 4f\n"
		".popsection\n"
		"0:	lea 9b(%%rip), %%rax; mov %%rax, %c[cs](%[rs])\n"
		"1:	movl $1, %[entered]\n"
		"	pause; cmpl $0, %[go]; je 1b\n"
		"2:	jmp 5f\n"
		"	.long 0x53053053\n" /* RSEQ_SIG stands before the abort handler */
		"4:	incl %[n]; incl %[aborts]; cmpl $0, %[go]; je 0b\n"
		"5:	movq $0, %c[cs](%[rs])\n"
		: [n] "+m"(n), [entered] "=m"(entered), [aborts] "+m"(aborts)
		: [rs] "r"(rs), [go] "m"(go_on), [cs] "i"(offsetof(struct rseq, rseq_cs))
		: "rax", "memory", "cc");
	return n;
}

static void *worker(void *arg)
{
	(void)arg;
	section();
	check_cpu("second thread");
	return NULL;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	CHECK(__rseq_size > 0 && (int)mine()->cpu_id >= 0, "set-up: glibc did not register rseq");
	pthread_t t;
	pthread_create(&t, NULL, worker, NULL);
	while (!entered)
		fx_pause_ms(1);
	fx_ready();
	fx_wait_check();
	go_on = 1;
	pthread_join(t, NULL);
	check_cpu("leader");
	fx_finish();
}
