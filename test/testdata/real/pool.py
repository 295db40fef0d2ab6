"""multiprocessing: a Pool, a Queue, shared memory, a Lock, a Condition and an Event between processes, each with a result known beforehand."""
import hashlib
import multiprocessing as mp
import os
import sys
import time
import traceback

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


def digest(n):
    d = str(n).encode()
    for _ in range(200):
        d = hashlib.sha256(d).digest()
    time.sleep(0.002)
    return n, d


def square(work, results, total, array, lock):
    while True:
        n = work.get()
        if n is None:
            results.put(None)
            return
        with total.get_lock():
            total.value += n
        with lock:
            array[n % len(array)] += 1
        results.put((n, n * n, "x" * (n % 5000)))


def follower(turn, count, mine, others, rounds):
    """Takes turns with the other one."""
    for _ in range(rounds):
        with turn:
            while count.value % 2 != mine:
                turn.wait()
            count.value += 1
            turn.notify_all()
    others.set()


def main():
    ctx = mp.get_context("fork")
    work, results = ctx.Queue(maxsize=16), ctx.Queue()
    total, array, lock = ctx.Value("q", 0), ctx.Array("i", 10, lock=False), ctx.Lock()
    workers = [ctx.Process(target=square, args=(work, results, total, array, lock)) for _ in range(3)]
    turn, count, ends = ctx.Condition(), ctx.Value("i", 0), [ctx.Event(), ctx.Event()]
    followers = [ctx.Process(target=follower, args=(turn, count, i, ends[i], 2000)) for i in range(2)]
    for p in workers + followers:
        p.start()
    n = 1200
    with ctx.Pool(3) as pool:
        digests = pool.map_async(digest, range(900), chunksize=5)
        got, left = {}, len(workers)
        sent = 0
        while left:
            while sent <= n and not work.full():
                work.put(sent if sent < n else None)
                if sent == n:
                    for _ in workers[1:]:
                        work.put(None)
                sent += 1
            item = results.get()
            if item is None:
                left -= 1
                continue
            got[item[0]] = item[1:]
            time.sleep(0.001)
        for k, d in digests.get():
            want = str(k).encode()
            for _ in range(200):
                want = hashlib.sha256(want).digest()
            check("digest of %d" % k, d, want)
        pool.close()
        pool.join()
    check("results", len(got), n)
    for k, (sq, text) in got.items():
        check("square of %d" % k, sq, k * k)
        check("text of %d" % k, text, "x" * (k % 5000))
    check("sum", total.value, n * (n - 1) // 2)
    check("array", list(array), [n // 10] * 10)
    for p in workers + followers:
        p.join()
        check("exit status of %s" % p.name, p.exitcode, 0)
    check("turns", count.value, 4000)
    check("events", [e.is_set() for e in ends], [True, True])


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # anything: it must be said
        errors.append(traceback.format_exc())
    finish()
