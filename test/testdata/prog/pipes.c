/*
 * Pipes: contents (in several writes, up to full), capacity, flags; both ends here, ends in parent and child, writer closed, reader closed, an end duplicated, a chain of children like
 * a shell pipeline's; contents of a pipe in packet mode keep their boundaries.
 */
#include "fixture.h"

static uint64_t buf[1 << 17];

static void drain(const char *what, int fd, size_t len, uint64_t seed)
{
	size_t got = 0;
	while (got < len) {
		ssize_t n = read(fd, (char *)buf + got, len - got);
		if (n <= 0) {
			FAIL("%s: only %zu of %zu bytes: %s", what, got, len, n ? strerror(errno) : "end of file");
			return;
		}
		got += n;
	}
	fx_verify(what, buf, len, seed);
}

static void put(int fd, size_t len, uint64_t seed, size_t chunk)
{
	fx_fill(buf, len, seed);
	for (size_t i = 0; i < len; i += chunk)
		MUST(write(fd, (char *)buf + i, len - i < chunk ? len - i : chunk));
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	int plain[2], big[2], nowriter[2], noreader[2], packet[2], empty[2], full[2], chain[2], back[2], small[2];
	MUST(pipe(plain)), MUST(pipe2(big, O_CLOEXEC)), MUST(pipe(nowriter)), MUST(pipe(noreader)), MUST(pipe2(packet, O_DIRECT)), MUST(pipe2(empty, O_NONBLOCK)), MUST(pipe(full)), MUST(pipe(chain)), MUST(pipe(back)), MUST(pipe(small));
	signal(SIGPIPE, SIG_IGN);
	put(plain[1], 8000, 1, 1000);
	MUST(fcntl(big[1], F_SETPIPE_SZ, 1 << 20));
	put(big[1], 1 << 20, 2, 65536);
	put(nowriter[1], 4096 * 3, 3, 4096);
	close(nowriter[1]);
	close(noreader[0]);
	for (int i = 1; i <= 5; i++)
		put(packet[1], 8 * i, 100 + i, 4096);
	fcntl(full[1], F_SETFL, O_NONBLOCK);
	int n = 0;
	while (write(full[1], "01234567", 8) == 8)
		n += 8;
	MUST(fcntl(small[1], F_SETPIPE_SZ, 4096));
	int dupw = MUST(dup(plain[1]));
	close(plain[1]);
	pid_t kid[2];
	for (int i = 0; i < 2; i++) {
		kid[i] = MUST(fork());
		if (kid[i])
			continue;
		/* 0 copies chain to back; 1 writes into chain. They run all the time. */
		close(i ? back[1] : chain[1]);
		close(i ? chain[0] : back[0]);
		for (int k = 0; k < 10; k++)
			if (i == 1)
				close(k < 2 ? big[k] : k < 4 ? packet[k - 2] : k < 6 ? full[k - 4] : k < 7 ? back[0] : 1000);
		fx_up();
		uint64_t v = 0, r = 0;
		if (i) {
			while (!fx_exists("check")) {
				for (int k = 0; k < 50; k++, v++)
					if (write(chain[1], &v, 8) != 8)
						FAIL("write into the chain: %s", strerror(errno));
				fx_pause_ms(1);
			}
			v = ~0ull;
			CHECK(write(chain[1], &v, 8) == 8, "last write");
		} else
			do {
				ssize_t len = read(chain[0], &r, 8);
				if (len != 8) {
					FAIL("read from the chain: %zd, %s", len, strerror(errno));
					break;
				}
				if (write(back[1], &r, 8) != 8)
					FAIL("write back: %s", strerror(errno));
			} while (r != ~0ull);
		_exit(0);
	}
	close(chain[0]);
	close(chain[1]);
	close(back[1]);
	fx_await_up(2);
	int sizes[] = { fcntl(big[0], F_GETPIPE_SZ), fcntl(small[0], F_GETPIPE_SZ), fcntl(full[0], F_GETPIPE_SZ) };
	fx_ready();
	/* the root reads the chain's end all the time, so that data is under way in both pipes when the dump comes */
	uint64_t want = 0, got;
	for (;;) {
		ssize_t len = read(back[0], &got, 8);
		if (len != 8) {
			FAIL("end of the chain: %zd, %s", len, strerror(errno));
			break;
		}
		if (got == ~0ull)
			break;
		if (got != want) {
			FAIL("the chain brought %" PRIu64 ", want %" PRIu64, got, want);
			want = got;
		}
		want++;
	}
	fx_wait_check();
	CHECK_EQ(fcntl(big[0], F_GETPIPE_SZ), sizes[0], "capacity of the big pipe");
	CHECK_EQ(fcntl(small[0], F_GETPIPE_SZ), sizes[1], "capacity of the small pipe");
	CHECK_EQ(fcntl(full[0], F_GETPIPE_SZ), sizes[2], "capacity of the full pipe");
	CHECK_EQ(fcntl(big[1], F_GETFD), FD_CLOEXEC, "close-on-exec");
	CHECK_EQ(fcntl(packet[1], F_GETFL) & O_DIRECT, O_DIRECT, "packet mode");
	CHECK_EQ(fcntl(empty[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK");
	CHECK_EQ(fcntl(plain[0], F_GETFL) & O_NONBLOCK, 0, "no O_NONBLOCK");
	drain("pipe", plain[0], 8000, 1);
	drain("big pipe", big[0], 1 << 20, 2);
	drain("pipe without a writer", nowriter[0], 4096 * 3, 3);
	CHECK_EQ(read(nowriter[0], buf, 1), 0, "end of file of the pipe without a writer");
	CHECK(write(noreader[1], "x", 1) < 0 && errno == EPIPE, "pipe without a reader: %s", strerror(errno));
	for (int i = 1; i <= 5; i++) {
		CHECK_EQ(read(packet[0], buf, 4096), 8 * i, "length of the packet");
		fx_verify("packet", buf, 8 * i, 100 + i);
	}
	CHECK(read(empty[0], buf, 1) < 0 && errno == EAGAIN, "empty pipe: %s", strerror(errno));
	CHECK(write(full[1], "x", 1) < 0 && errno == EAGAIN, "full pipe: %s", strerror(errno));
	for (int i = 0; i < n; i += 8)
		if (read(full[0], buf, 8) != 8 || memcmp(buf, "01234567", 8)) {
			FAIL("full pipe at byte %d", i);
			break;
		}
	fcntl(full[0], F_SETFL, O_NONBLOCK);
	CHECK(read(full[0], buf, 1) < 0 && errno == EAGAIN, "the full pipe held more");
	CHECK(write(dupw, "y", 1) == 1 && read(plain[0], buf, 1) == 1, "the pipe goes on");
	for (int i = 0; i < 2; i++)
		fx_reap_ok(kid[i]);
	fx_finish();
}
