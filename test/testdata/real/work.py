"""Threads with queues, locks and timers, subprocesses with pipes, a pool, files and a generator, each with a result known beforehand."""
import hashlib
import os
import queue
import subprocess
import sys
import threading
import time

directory = sys.argv[1]
os.chdir(directory)
errors = []


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


work, results, lock, total = queue.Queue(maxsize=8), queue.Queue(), threading.Lock(), [0]


def worker():
    while True:
        item = work.get()
        if item is None:
            return
        digest = str(item).encode()
        for _ in range(300):
            digest = hashlib.sha256(digest).digest()
        with lock:
            total[0] += item
        results.put((item, digest))


def ticker(stop, ticks):
    while not stop.wait(0.01):
        ticks.append(time.monotonic())


def spawner(found):
    for i in range(40):
        p = subprocess.run(["/bin/sh", "-c", "read a; echo $((a * a)); exit %d" % (i % 5)], input=str(i), stdout=subprocess.PIPE, universal_newlines=True)
        found.append((p.returncode, p.stdout.strip()))


N = 1500
stop, ticks, found = threading.Event(), [], []
threads = [threading.Thread(target=worker) for _ in range(4)]
others = [threading.Thread(target=ticker, args=(stop, ticks)), threading.Thread(target=spawner, args=(found,))]
for t in threads + others:
    t.start()
long_lived = subprocess.Popen(["/usr/bin/sort", "-n"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
for i in range(N):
    work.put(i)
    if i % 10 == 0:
        long_lived.stdin.write("%d\n" % (N - i))
        long_lived.stdin.flush()
        time.sleep(0.005)
for _ in threads:
    work.put(None)
for t in threads:
    t.join()
stop.set()
for t in others:
    t.join()
out, _ = long_lived.communicate()
check("lines sorted by the long-lived child", [int(x) for x in out.split()], sorted(N - i for i in range(0, N, 10)))
check("status of the long-lived child", long_lived.returncode, 0)
check("sum", total[0], N * (N - 1) // 2)
seen = {}
while not results.empty():
    item, digest = results.get()
    seen[item] = digest
check("results", len(seen), N)
for item in (0, 7, N - 1):
    digest = str(item).encode()
    for _ in range(300):
        digest = hashlib.sha256(digest).digest()
    check("digest of %d" % item, seen.get(item), digest)
check("children", found, [(i % 5, str(i * i)) for i in range(40)])
if len(ticks) < 20 or any(b < a for a, b in zip(ticks, ticks[1:])):
    errors.append("the ticker: %d ticks" % len(ticks))
finish()
