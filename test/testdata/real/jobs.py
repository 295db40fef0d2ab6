"""Jobs of interactive shells, moved from one terminal to another by cr-dump and cr-restore --wait as a user would."""
import ctypes
import os
import random
import subprocess
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from terminal import Terminal, check, errors, finish  # noqa: E402 (it goes to the directory)


def shell(rows, columns):
    t = Terminal("bash", "--norc", "--noprofile", "-i")
    t.size(rows, columns)
    t.expect(rb"\$ ")
    t.run("bind 'set enable-bracketed-paste off'; echo set", rb"set\r\n")
    return t


def foreground(t):
    """The names of the processes in the foreground."""
    group = os.tcgetpgrp(t.master)
    names = b""
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                stat = open("/proc/%s/stat" % pid, "rb").read()
            except OSError:
                continue
            if int(stat.rsplit(b")", 1)[1].split()[2]) == group:
                names += stat.split(b"(", 1)[1].rsplit(b")", 1)[0] + b"\n"
    return names


def await_front(t, name):
    end = time.monotonic() + 60
    while name not in foreground(t).split(b"\n"):
        if time.monotonic() > end:
            raise Exception("%s is not in the foreground, but %s" % (name, foreground(t)))
        time.sleep(0.005)


def child(t, name):
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                stat = open("/proc/%s/stat" % pid, "rb").read()
            except OSError:
                continue
            if b"(" + name + b")" in stat and int(stat.rsplit(b")", 1)[1].split()[1]) == t.pid:
                return int(pid)
    raise Exception("no %s" % name)


def move(a, b, name, image):
    """Moves the job in the foreground of a to that of b."""
    pid = child(a, name)
    if os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "exec cr-dump --kill %d > %s 2> dump.err" % (pid, image)):
        raise Exception("cr-dump: " + open("dump.err").read())
    a.run("echo =$?=", rb"=137=\r\n")
    b.send(b"cr-restore --wait -i %s\n" % image.encode())
    await_front(b, name)
    if child_of(pid) == a.pid:
        raise Exception("it is where it was")
    return pid


def child_of(pid):
    return int(open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()[1])


WATCHER = """
import os, signal, sys, termios, time
def size(*_):
    print("size %d %d" % tuple(reversed(os.get_terminal_size(0))), flush=True)
signal.signal(signal.SIGWINCH, size)
def again(*_):
    termios.tcsetattr(0, termios.TCSANOW, t)
    print("continued", flush=True)
signal.signal(signal.SIGCONT, again)
t = termios.tcgetattr(0)
t[3] &= ~(termios.ECHO | termios.ICANON)
t[6][termios.VINTR] = b"\\x07"
termios.tcsetattr(0, termios.TCSANOW, t)
print("begun", flush=True)
while True:
    c = os.read(0, 1)
    print("key %r" % c, flush=True)
    if c == b"m":
        print("modes %s %r" % (bool(termios.tcgetattr(0)[3] & termios.ECHO), termios.tcgetattr(0)[6][termios.VINTR]), flush=True)
    if c == b"q":
        sys.exit(7)
"""


def watcher():
    a, b = shell(24, 80), shell(31, 101)
    open("watcher.py", "w").write(WATCHER)
    a.send(b"python3 watcher.py\n")
    a.expect(rb"begun")
    a.send(b"x")
    a.expect(rb"key b'x'")
    move(a, b, b"python3", "watcher.cr")
    b.expect(rb"size 31 101")
    b.send(b"ym")
    b.expect(rb"key b'y'.*modes False b'\\x07'")
    b.size(32, 102)
    b.expect(rb"size 32 102")
    b.send(b"\x1a")
    b.expect(rb"Stopped +cr-restore")
    b.run("echo here; fg", rb"here\r\n")
    b.expect(rb"continued")
    await_front(b, b"python3")
    b.send(b"z")
    b.expect(rb"key b'z'")
    b.send(b"q")
    b.run("echo =$?=", rb"=7=\r\n")
    b.run("stty -a", rb"intr = \^C;.* icanon ")


def editor():
    a, b = shell(24, 80), shell(20, 70)
    a.send(b"vim -u NONE -N -i NONE -n edited\n")
    a.expect(rb"\[New\]|New File")
    a.send(b"ihello \x1b")
    time.sleep(0.2)
    move(a, b, b"vim", "vim.cr")
    b.expect(rb"hello")  # it has drawn its screen
    b.send(b"\x1a")
    b.expect(rb"Stopped +cr-restore")
    b.run("stty -a | grep -c ' icanon '", rb"\r\n1\r\n")
    b.send(b"fg\n")
    await_front(b, b"vim")
    time.sleep(0.2)
    b.send(b"aworld\x1b:wq\r")
    b.expect(rb"written.*\$ ")
    b.run("echo =$?=", rb"=0=\r\n")
    check("what was edited", open("edited").read(), "hello world\n")


def session():
    """A whole shell, whose session goes to a terminal that cr-restore leads."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: to wait for what a shell leaves behind
    a = shell(24, 80)
    a.run("x=17; sleep 1000 &\necho up", rb"up\r\n")
    if os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "exec cr-dump --kill %d > shell.cr 2> dump.err" % a.pid):
        raise Exception("cr-dump: " + open("dump.err").read())
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    b = Terminal("cr-restore", "--wait", "-i", "shell.cr")
    b.size(33, 99)
    time.sleep(1)
    b.run("", rb"\$ ")
    b.run("echo =$x=$(stty size)=", rb"=17=33 99=\r\n")
    b.run("jobs; kill %1; wait; echo done", rb"Running +sleep 1000.*done\r\n")
    b.send(b"cat\n")
    await_front(b, b"cat")
    b.send(b"\x03")
    b.expect(rb"\^C.*\$ ")  # what is typed before may be thrown away
    b.run("echo =$?=", rb"=130=\r\n")
    b.send(b"exit 3\n")
    check("its status", os.waitstatus_to_exitcode(os.waitpid(b.pid, 0)[1]), 3)


def tmux():
    """A tmux server with a shell and an editor, dumped at random moments while both work; its screens are the same afterwards."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the server leaves its client
    os.environ.update(TMUX_TMPDIR=os.getcwd(), LC_ALL="C.UTF-8", HOME=os.getcwd())
    os.environ.pop("TMUX", None)
    rnd = random.Random(int(os.environ.get("CR_TEST_SEED", 0)) or None)
    low = [os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC) for _ in range(80)]  # numbers that others take meanwhile

    def client(*args):
        return subprocess.run(("tmux", "-L", "cr", "-f", "/dev/null") + args, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60).stdout

    def await_pane(pane, text):
        end = time.monotonic() + 60
        while text not in client("capture-pane", "-p", "-t", pane):
            if time.monotonic() > end:
                raise Exception("%r does not come, but %r" % (text, client("capture-pane", "-p", "-t", pane)))
            time.sleep(0.02)

    client("new-session", "-d", "-x", "90", "-y", "30", "env PS1='$ ' bash --norc --noprofile")
    client("split-window", "vim -u NONE -N -i NONE -n edited")
    for fd in low:
        os.close(fd)
    server = int(client("display-message", "-p", "#{pid}"))
    try:
        await_pane("0.1", b"~")
        client("send-keys", "-t", "0.0", "x=0", "Enter")
        client("send-keys", "-t", "0.1", "i")
        for n in range(1, 7):
            client("send-keys", "-t", "0.0", "x=$((x+1)); for i in 1 2 3 4 5; do echo $i; sleep 0.05; done; echo =$x=", "Enter")
            client("send-keys", "-t", "0.1", "line %d" % n, "Enter")
            time.sleep(rnd.random() * 0.5)
            kill = n % 2
            if n == 5:  # at rest: nothing on the screens may change
                await_pane("0.0", b"\n=%d=" % n)
                time.sleep(0.3)
            screens = [client("capture-pane", "-p", "-t", pane) for pane in ("0.0", "0.1")]
            if os.system("cr-dump %s %d > tmux.cr 2> dump.err" % ("--kill" if kill else "", server)):
                raise Exception("cr-dump: " + open("dump.err").read())
            if kill:
                try:
                    while True:
                        os.wait()
                except ChildProcessError:
                    pass
                if os.system("cr-restore < tmux.cr > ticket 2> restore.err"):
                    raise Exception("cr-restore: " + open("restore.err").read())
            if n == 5:
                check("the screens", [client("capture-pane", "-p", "-t", pane) for pane in ("0.0", "0.1")], screens)
            await_pane("0.0", b"\n=%d=" % n)
        client("send-keys", "-t", "0.1", "Escape", ":wq", "Enter")
        end = time.monotonic() + 60
        while not os.path.exists("edited") and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.2)
        check("what was edited", open("edited").read(), "".join("line %d\n" % n for n in range(1, 7)) + "\n")
        client("kill-server")
    except BaseException:
        os.kill(server, 9)
        raise


if __name__ == "__main__":
    try:
        {"watcher": watcher, "editor": editor, "session": session, "tmux": tmux}[sys.argv[2]]()
    except BaseException:  # anything: it must be said
        errors.append(traceback.format_exc())
    finish()
