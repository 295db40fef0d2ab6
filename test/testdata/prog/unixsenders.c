/*
 * Messages in unix(7) sockets whose senders have ended, with the credentials that the kernel has noted of them (SO_PASSCRED): to a server of datagrams, as that of
 * the system log, to one of packets, to a stream, and to one who has not accepted the connection; of other users; of one who has led a process group that is still there, and
 * of one whose number another process has by now; in order between those of who lives. SO_PEERCRED of the dead.
 */
#include "fixture.h"
#include <linux/sched.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un addr(const char *name)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strcpy(a.sun_path, name);
	return a;
}

static int server(int type, const char *name)
{
	struct sockaddr_un a = addr(name);
	int on = 1, s = MUST(socket(AF_UNIX, type, 0));
	MUST(bind(s, (void *)&a, sizeof a));
	MUST(chmod(name, 0777));
	if (type != SOCK_DGRAM)
		MUST(listen(s, 8));
	MUST(setsockopt(s, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	return s;
}

/* one who connects, has said text when this returns, and ends when told to */
static pid_t say(int type, const char *name, const char *text, uid_t uid, int *end)
{
	int p[2], said[2];
	char c;
	MUST(pipe(p));
	MUST(pipe(said));
	pid_t kid = MUST(fork());
	if (kid) {
		close(p[0]);
		close(said[1]);
		CHECK_EQ(read(said[0], &c, 1), 1, text);
		close(said[0]);
		*end = p[1];
		return kid;
	}
	close(p[1]);
	if (uid) {
		MUST(setresgid(uid + 1, uid + 1, uid + 1));
		MUST(setresuid(uid, uid, uid));
	}
	struct sockaddr_un a = addr(name);
	int s = MUST(socket(AF_UNIX, type, 0));
	MUST(connect(s, (void *)&a, sizeof a));
	MUST(send(s, text, strlen(text), 0));
	MUST(write(said[1], "", 1));
	MUST(read(p[0], &c, 1));
	_exit(0);
}

static void end(pid_t pid, int how)
{
	MUST(write(how, "", 1));
	close(how);
	fx_reap_ok(pid);
}

static void hear(int s, const char *text, pid_t pid, uid_t uid, gid_t gid)
{
	char control[256] = { 0 }, buf[64];
	struct iovec v = { buf, sizeof buf };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(s, &m, MSG_DONTWAIT);
	if (n != (ssize_t)strlen(text) || memcmp(buf, text, n)) {
		FAIL("\"%s\": %zd bytes, \"%.*s\", %s", text, n, n > 0 ? (int)n : 0, buf, strerror(errno));
		return;
	}
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	struct ucred u = { 0 };
	if (!c || c->cmsg_type != SCM_CREDENTIALS) {
		FAIL("\"%s\" has no credentials", text);
		return;
	}
	memcpy(&u, CMSG_DATA(c), sizeof u);
	if (u.pid != pid || u.uid != uid || u.gid != gid)
		FAIL("\"%s\" is of process %d, %d:%d, want %d, %d:%d", text, (int)u.pid, (int)u.uid, (int)u.gid, (int)pid, (int)uid, (int)gid);
}

static void peer(const char *what, int s, pid_t pid, uid_t uid, gid_t gid)
{
	struct ucred u = { 0 };
	socklen_t len = sizeof u;
	CHECK_EQ(getsockopt(s, SOL_SOCKET, SO_PEERCRED, &u, &len), 0, what);
	if (u.pid != pid || u.uid != uid || u.gid != gid)
		FAIL("%s: the peer is %d, %d:%d, want %d, %d:%d", what, (int)u.pid, (int)u.uid, (int)u.gid, (int)pid, (int)uid, (int)gid);
}

/* not a fixture, but who sends to one from outside, and stays until its input ends */
static int from_outside(void)
{
	struct sockaddr_un a = addr("outside");
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);
	char c;
	return s < 0 || sendto(s, "outside", 7, 0, (void *)&a, sizeof a) != 7 || write(1, "\n", 1) != 1 || read(0, &c, 1) != 0;
}

int main(int argc, char **argv)
{
	fx_init(argc, argv);
	MUST(chdir(fx_dir));
	if (fx_argc && !strcmp(fx_argv[0], "send"))
		return from_outside();
	uid_t me = geteuid(), other = me ? me : 4321;
	gid_t group = getegid(), otherg = me ? group : 4322;
	mode_t mask = umask(0);
	struct stat st;
	MUST(stat(".", &st));
	MUST(chmod(".", 0777));
	int log = server(SOCK_DGRAM, "log"), packets = server(SOCK_SEQPACKET, "packets"), streams = server(SOCK_STREAM, "streams"), how[8];
	pid_t first = say(SOCK_DGRAM, "log", "first", 0, &how[0]);
	pid_t second = say(SOCK_DGRAM, "log", "second", other == me ? 0 : other, &how[1]);
	pid_t third = say(SOCK_SEQPACKET, "packets", "packet", other == me ? 0 : other, &how[2]);
	pid_t fourth = say(SOCK_STREAM, "streams", "stream", 0, &how[3]);
	pid_t fifth = say(SOCK_STREAM, "streams", "waits", 0, &how[4]);
	int accepted = MUST(accept(packets, NULL, NULL)), on = 1;
	int one = MUST(accept(streams, NULL, NULL));
	MUST(setsockopt(accepted, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	MUST(setsockopt(one, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	end(first, how[0]);
	end(second, how[1]);
	end(third, how[2]);
	end(fourth, how[3]);
	end(fifth, how[4]);
	/* one who leads a group in which another lives */
	pid_t leader = say(SOCK_DGRAM, "log", "leader", 0, &how[0]);
	MUST(setpgid(leader, leader));
	pid_t member = MUST(fork());
	if (!member) {
		fx_up();
		fx_wait_check();
		_exit(getpgrp() != leader);
	}
	MUST(setpgid(member, leader));
	fx_await_up(1);
	end(leader, how[0]);
	/* one whose number another has */
	pid_t twice = say(SOCK_DGRAM, "log", "twice", 0, &how[0]);
	end(twice, how[0]);
	pid_t number = twice; /* where this is not allowed, nobody gets it */
	struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&number, .set_tid_size = 1 };
	pid_t heir = syscall(SYS_clone3, &args, sizeof args);
	if (!heir) {
		fx_up();
		fx_wait_check();
		_exit(0);
	}
	if (heir > 0)
		fx_await_up(2);
	int own = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	struct sockaddr_un a = addr("log");
	MUST(sendto(own, "own", 3, 0, (void *)&a, sizeof a));
	MUST(chmod(".", st.st_mode & 07777));
	umask(mask);
	if (fx_argc) { /* the test sends what was not sent here */
		int out = server(SOCK_DGRAM, "outside");
		fx_ready();
		fx_wait_check();
		FILE *f = fopen("sender", "re");
		int pid = 0;
		CHECK_EQ(f ? fscanf(f, "%d", &pid) : 0, 1, "numbers of the sender");
		hear(out, "outside", pid, me, group);
	} else {
		fx_ready();
		fx_wait_check();
	}

	hear(log, "first", first, me, group);
	hear(log, "second", second, other, otherg);
	hear(log, "leader", leader, me, group);
	hear(log, "twice", twice, me, group);
	hear(log, "own", getpid(), me, group);
	hear(accepted, "packet", third, other, otherg);
	hear(one, "stream", fourth, me, group);
	int two = MUST(accept(streams, NULL, NULL));
	hear(two, "waits", fifth, me, group);
	peer("packets", accepted, third, other, otherg);
	peer("stream", one, fourth, me, group);
	peer("accepted late", two, fifth, me, group);
	CHECK(kill(first, 0) < 0 && errno == ESRCH, "a helper is left");
	CHECK(waitpid(first, NULL, __WALL | WNOHANG) < 0 && errno == ECHILD, "a helper is to be waited for");
	fx_reap_ok(member);
	if (heir > 0)
		fx_reap_ok(heir);
	fx_finish();
}
