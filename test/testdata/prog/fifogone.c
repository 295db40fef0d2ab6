/* A FIFO whose name was removed while it was open, with contents. */
#include "fixture.h"

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(mkfifo(fx_path("fifo.gone"), 0600));
	int gone = MUST(open(fx_path("fifo.gone"), O_RDWR | O_NONBLOCK));
	MUST(write(gone, "deleted", 7));
	MUST(unlink(fx_path("fifo.gone")));
	char b[64] = "";
	char link[64];
	struct timespec t[2] = { { 1000000000, 5 }, { 1100000000, 7 } };
	struct stat was, is;
	snprintf(link, sizeof link, "/proc/self/fd/%d", gone);
	int reader = MUST(open(link, O_RDONLY)), writer = MUST(open(link, O_WRONLY | O_APPEND));
	MUST(fcntl(gone, F_SETPIPE_SZ, 131072));
	MUST(fchown(gone, 7001, 7002));
	MUST(fchmod(gone, 0620));
	MUST(futimens(gone, t));
	MUST(fstat(gone, &was));
	fx_ready();
	fx_wait_check();
	MUST(fstat(gone, &is));
	CHECK(is.st_uid == was.st_uid && is.st_gid == was.st_gid && is.st_mode == was.st_mode && is.st_nlink == 0, "owner %d:%d, mode %o, %d links", is.st_uid, is.st_gid, is.st_mode, (int)is.st_nlink);
	CHECK(!memcmp(&is.st_atim, &was.st_atim, sizeof is.st_atim) && !memcmp(&is.st_mtim, &was.st_mtim, sizeof is.st_mtim), "times of the deleted FIFO");
	CHECK_EQ(fcntl(gone, F_GETPIPE_SZ), 131072, "capacity");
	CHECK(fcntl(writer, F_GETFL) == (fcntl(reader, F_GETFL) | O_WRONLY | O_APPEND), "flags %o and %o", fcntl(writer, F_GETFL), fcntl(reader, F_GETFL));
	CHECK(write(writer, " twice", 6) == 6 && read(reader, b, 3) == 3 && !memcmp(b, "del", 3), "the other descriptors of the deleted FIFO");
	CHECK(read(gone, b, 64) == 10 && !memcmp(b, "eted twice", 10), "contents of the deleted FIFO");
	CHECK(!fx_exists("fifo.gone"), "the deleted FIFO is back");
	fx_finish();
}
