/*
 * Standard descriptors that lead out of the tree (the harness gives it pipes): after a restore they are /dev/null, or what --inherit gave, and nothing hangs or dies.
 *   stdfds DIR null|pipe|same    what they should be after
 */
#include "fixture.h"
#include <sys/sysmacros.h>

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	const char *want = fx_argc > 0 ? fx_argv[0] : "same";
	struct stat before[3], st;
	for (int i = 0; i < 3; i++)
		MUST(fstat(i, &before[i]));
	printf("before\n");
	fflush(stdout);
	fx_ready();
	fx_wait_check();
	for (int i = 0; i < 3; i++) {
		if (fstat(i, &st)) {
			FAIL("descriptor %d is gone: %s", i, strerror(errno));
			continue;
		}
		int null = S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
		if (!strcmp(want, "null"))
			CHECK(null, "descriptor %d should be /dev/null, is %o %lu", i, st.st_mode, st.st_rdev);
		else if (!strcmp(want, "pipe"))
			CHECK(S_ISFIFO(st.st_mode), "descriptor %d should be a pipe, is %o", i, st.st_mode);
		else
			CHECK(st.st_ino == before[i].st_ino && st.st_dev == before[i].st_dev, "descriptor %d is another file", i);
		int acc = fcntl(i, F_GETFL) & O_ACCMODE;
		CHECK(acc == O_RDWR || acc == (i ? O_WRONLY : O_RDONLY), "access mode of descriptor %d: %o", i, acc);
	}
	if (printf("after\n") < 0 || fflush(stdout))
		FAIL("writing to standard output: %s", strerror(errno));
	fx_finish();
}
