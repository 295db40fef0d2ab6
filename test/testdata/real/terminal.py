"""A terminal: bash as an interactive shell with job control in a pseudo-terminal whose master this program has, with jobs that are
stopped and continued, typed lines, a changing window, vim and less. What they answer is known beforehand."""
import errno
import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import time
import traceback

directory = sys.argv[1]
os.chdir(directory)
errors = []
begun = time.monotonic()
TIOCGPTN, TIOCSPTLCK = 0x80045430, 0x40045431


def finish():
    with open("report", "a") as f:
        f.writelines(e + "\n" for e in errors)
    with open("done.new", "w") as f:
        f.write("bad\n" if errors else "ok\n")
    os.rename("done.new", "done")
    sys.exit(bool(errors))


def check(what, got, want):
    if got != want:
        errors.append("%s: %r, want %r" % (what, got, want))


def far_master():
    """Far from the numbers that others take while this program is not there."""
    wait, want = [], 400 + os.getpid() % 100
    while True:
        m = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        n = struct.unpack("i", fcntl.ioctl(m, TIOCGPTN, b"\0" * 4))[0]
        if n >= want:
            break
        wait.append(m)
    for fd in wait:
        os.close(fd)
    fcntl.ioctl(m, TIOCSPTLCK, struct.pack("i", 0))
    return m, "/dev/pts/%d" % n


class Terminal:
    def __init__(self, *argv):
        self.master, name = far_master()
        self.text = b""
        self.size(24, 80)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                s = os.open(name, os.O_RDWR)
                fcntl.ioctl(s, termios.TIOCSCTTY, 0)
                os.close(self.master)
                for fd in range(3):
                    os.dup2(s, fd)
                if s > 2:
                    os.close(s)
                os.environ.update(TERM="xterm", PS1="$ ", LC_ALL="C.UTF-8", HISTFILE="/dev/null")
                os.execvp(argv[0], argv)
            finally:
                os._exit(99)

    def size(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text):
        os.write(self.master, text)

    def expect(self, pattern, wait=90):
        """Reads until the pattern comes, and returns its match."""
        end = time.monotonic() + wait
        while True:
            m = re.search(pattern, self.text, re.S)
            if m:
                self.text = self.text[m.end():]
                return m
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise Exception("%r does not come, but %r" % (pattern, self.text[-2000:]))
            try:
                self.text += os.read(self.master, 4096)
            except OSError as e:
                if e.errno != errno.EIO:
                    raise
                raise Exception("the shell has ended, after %r" % self.text[-2000:])

    def run(self, line, pattern):
        self.send(line.encode() + b"\n")
        return self.expect(pattern)


def rounds(t):
    """Everything once and once more, until the time is over."""
    n = resized = 0
    while n < 2 or time.monotonic() - begun < 4:
        n += 1
        m = t.run("echo =$((%d * 7))=" % n, rb"=(\d+)=\r\n")
        check("a sum", int(m[1]), 7 * n)
        t.run("sleep 1000", rb"sleep 1000\r\n")
        while not job(t):
            time.sleep(0.005)
        t.send(b"\x1a")
        t.expect(rb"Stopped +sleep 1000")
        t.run("bg; jobs; echo 'end of jobs'", rb"Running +sleep 1000 &.*end of jobs\r\n")
        t.run("fg", rb"sleep 1000\r\n")
        while not job(t):
            time.sleep(0.005)
        t.send(b"\x03")
        t.expect(rb"\^C.*\$ ")  # what is typed before may be thrown away
        t.run("echo =$?=", rb"=130=\r\n")
        t.run("cat > typed", rb"cat > typed\r\n")
        while not job(t):
            time.sleep(0.005)
        text = "".join("line %d of round %d %s\n" % (k, n, "x" * (k * 11 % 60)) for k in range(20))
        for line in text.splitlines(True):
            t.send(line.replace("line", "lixy\x7f\x7fne").encode())
            time.sleep(0.001)
        t.send(b"\x04")
        t.run("echo =$(md5sum < typed | wc -c)=", rb"=36=\r\n")
        check("what was typed", open("typed").read(), text)
        rows, columns = 20 + n % 7, 70 + n % 11
        t.size(rows, columns)
        resized += 1
        m = t.run("echo =$(stty size)=", rb"=(\d+) (\d+)=\r\n")
        check("window size", (int(m[1]), int(m[2])), (rows, columns))
        t.run("read -rsn 4 x; echo =$x=", rb"x; echo =\$x=\r\n")
        while not raw(t):
            time.sleep(0.005)
        t.send(b"a\x02")
        time.sleep(0.01)
        t.send(b"cd")
        t.expect(rb"=a\x02cd=\r\n")
        t.send(b"vim -u NONE -N -i NONE -n edited%d\n" % n)
        t.expect(rb"\[New\]|New File")
        t.send(b"ifirst\rsecond %d" % n)
        time.sleep(0.02)
        t.send(b"\x1byyp:wq\r")
        t.expect(rb"written.*\$ ")
        check("what was edited", open("edited%d" % n).read(), "first\nsecond %d\nsecond %d\n" % (n, n))
        t.send(b"less typed\n")
        t.expect(rb"line 7")
        t.send(b"/line 15\r")
        t.expect(rb"line 15")
        t.send(b"q")
        t.run("echo back", rb"back\r\n")
    m = t.run("echo =$W=$H=$C=", rb"=(\d+)=(\d+)=(\d+)=\r\n")
    check("signals of the window, of a hang-up, to continue", (int(m[1]), int(m[2]), int(m[3])), (resized, 0, 0))
    return n


def job(t):
    """A job has the foreground, not the shell, and is what it shall be: before, signals are still as in the shell."""
    group = os.tcgetpgrp(t.master)
    try:  # of nobody outside of this tree
        with open("/proc/%d/comm" % group) as f:
            return group != t.pid and f.read() != "bash\n"
    except OSError:
        return False


def raw(t):
    return not termios.tcgetattr(t.master)[3] & termios.ICANON and os.tcgetpgrp(t.master) == t.pid


def main():
    t = Terminal("bash", "--norc", "--noprofile", "-i")
    t.expect(rb"\$ ")
    t.run("W=0 H=0 C=0; trap 'W=$((W+1))' WINCH; trap 'H=$((H+1))' HUP; trap 'C=$((C+1))' CONT; bind 'set enable-bracketed-paste off'; echo set", rb"set\r\n")
    open("ready", "w").close()
    rounds(t)
    t.send(b"exit 5\n")
    try:
        t.expect(rb"nothing that comes", 30)
    except Exception as e:
        check("the end", "has ended" in str(e), True)
    check("its status", os.waitstatus_to_exitcode(os.waitpid(t.pid, 0)[1]), 5)


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # anything: it must be said
        errors.append(traceback.format_exc())
    finish()
