/*
 * For the test that a dump runs nothing in its target: threads that stay where they are, each in another way, and one that counts its own instructions' effect: a loop in user mode. On the check the memory around
 * the loop, the vdso and the code are compared with copies made before, so that code put there and forgotten is seen.
 */
#include "fixture.h"
#include <sys/auxv.h>
#include <sys/eventfd.h>

static int efd;
static volatile int stop;

static void *reader(void *arg)
{
	uint64_t v;
	(void)arg;
	if (read(efd, &v, 8) != 8)
		FAIL("read: %s", strerror(errno));
	return NULL;
}

static void *spinner(void *arg)
{
	(void)arg;
	while (!stop)
		asm volatile("pause");
	return NULL;
}

extern char __executable_start, etext;

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	efd = MUST(eventfd(0, EFD_CLOEXEC));
	pthread_t t[2];
	pthread_create(&t[0], NULL, reader, NULL);
	pthread_create(&t[1], NULL, spinner, NULL);
	char *vdso = (char *)getauxval(AT_SYSINFO_EHDR);
	size_t text = &etext - &__executable_start;
	char *a = malloc(8192), *b = malloc(text);
	memcpy(a, vdso, 8192);
	memcpy(b, &__executable_start, text);
	fx_ready();
	fx_wait_check();
	CHECK(!memcmp(a, vdso, 8192), "the vdso was changed");
	CHECK(!memcmp(b, &__executable_start, text), "the code was changed");
	stop = 1;
	uint64_t one = 1;
	CHECK(write(efd, &one, 8) == 8, "write");
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	fx_finish();
}
