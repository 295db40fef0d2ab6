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
	fx_ready();
	fx_wait_check();
	CHECK(read(gone, b, 64) == 7 && !memcmp(b, "deleted", 7), "contents of the deleted FIFO");
	CHECK(!fx_exists("fifo.gone"), "the deleted FIFO is back");
	fx_finish();
}
