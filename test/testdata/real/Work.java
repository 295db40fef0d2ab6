import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import java.util.stream.LongStream;

/** Threads that queue, lock, park and meet, timers, code that becomes hot and is compiled, a heap under a small limit, files: each with a result known beforehand. */
public class Work {
    static final List<String> errors = new ArrayList<>();

    static synchronized void fail(String what) {
        errors.add(what);
    }

    static void check(String what, Object got, Object want) {
        if (!got.equals(want)) fail(what + ": " + got + ", want " + want);
    }

    interface Part {
        void run() throws Exception;
    }

    /** A queue between two sides, with digests. */
    static void queue() throws Exception {
        BlockingQueue<Integer> queue = new ArrayBlockingQueue<>(8);
        Map<Integer, byte[]> results = new ConcurrentHashMap<>();
        AtomicLong sum = new AtomicLong();
        int n = 600;
        List<Thread> threads = new ArrayList<>();
        for (int t = 0; t < 4; t++) {
            Thread thread = new Thread(() -> {
                try {
                    for (int item; (item = queue.take()) >= 0; ) {
                        sum.addAndGet(item);
                        results.put(item, digest(item));
                    }
                } catch (Exception e) {
                    fail("a taker: " + e);
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (int i = 0; i < n; i++) {
            queue.put(i);
            if (i % 3 == 0) Thread.sleep(5);
        }
        for (Thread ignored : threads) queue.put(-1);
        for (Thread t : threads) t.join();
        check("sum", sum.get(), (long) n * (n - 1) / 2);
        check("results", results.size(), n);
        for (int i = 0; i < n; i++) check("digest of " + i, Arrays.equals(results.get(i), digest(i)), true);
    }

    static byte[] digest(int i) throws Exception {
        MessageDigest d = MessageDigest.getInstance("SHA-256");
        byte[] b = Integer.toString(i).getBytes();
        for (int k = 0; k < 200; k++) b = d.digest(b);
        return b;
    }

    /** Monitors: two threads take turns by wait and notify; four meet at a barrier. */
    static void turns() throws Exception {
        Object lock = new Object();
        int[] count = {0};
        Thread[] two = new Thread[2];
        for (int m = 0; m < 2; m++) {
            int mine = m;
            two[m] = new Thread(() -> {
                for (int r = 0; r < 3000; r++)
                    synchronized (lock) {
                        while (count[0] % 2 != mine) {
                            try {
                                lock.wait();
                            } catch (InterruptedException e) {
                                fail("interrupted");
                            }
                        }
                        count[0]++;
                        lock.notifyAll();
                    }
            });
            two[m].start();
        }
        AtomicInteger meetings = new AtomicInteger();
        CyclicBarrier barrier = new CyclicBarrier(4, meetings::incrementAndGet);
        CountDownLatch done = new CountDownLatch(4);
        for (int t = 0; t < 4; t++)
            new Thread(() -> {
                try {
                    for (int r = 0; r < 150; r++) {
                        barrier.await();
                        LockSupport.parkNanos(2_000_000);
                    }
                } catch (Exception e) {
                    fail("the barrier: " + e);
                }
                done.countDown();
            }).start();
        for (Thread t : two) t.join();
        done.await();
        check("turns", count[0], 6000);
        check("meetings", meetings.get(), 150);
    }

    static void timers() throws Exception {
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(2);
        AtomicInteger ticks = new AtomicInteger();
        AtomicLong last = new AtomicLong(System.nanoTime());
        List<Integer> order = new ArrayList<>();
        timer.scheduleAtFixedRate(() -> {
            long now = System.nanoTime();
            if (now < last.getAndSet(now)) fail("the clock went back");
            ticks.incrementAndGet();
        }, 0, 4, TimeUnit.MILLISECONDS);
        for (int i = 0; i < 60; i++) {
            int n = i;
            timer.schedule(() -> {
                synchronized (order) {
                    order.add(n);
                }
            }, 10 + 30L * i, TimeUnit.MILLISECONDS);
        }
        Thread.sleep(2000);
        timer.shutdown();
        check("the end of the timers", timer.awaitTermination(60, TimeUnit.SECONDS), true);
        check("delayed tasks", order.size(), 60);
        if (ticks.get() < 50) fail(ticks.get() + " ticks");
    }

    /** Hot loops of shapes that change, so that the compiler compiles, takes back and compiles again. */
    static void compiled() {
        java.util.function.LongUnaryOperator[] shapes = {x -> x * 31 + 7, x -> x ^ (x >>> 3), x -> Long.rotateLeft(x, 5) - 1, x -> x % 1000003 + 11};
        long want = 0;
        for (int round = 0; round < 120; round++) {
            long v = 1;
            for (int i = 0; i < 40000; i++) v = shapes[(i + round / 30) % (1 + round / 30)].applyAsLong(v);
            long again = 1;
            for (int i = 0; i < 40000; i++) {
                switch ((i + round / 30) % (1 + round / 30)) {
                    case 0: again = again * 31 + 7; break;
                    case 1: again = again ^ (again >>> 3); break;
                    case 2: again = Long.rotateLeft(again, 5) - 1; break;
                    default: again = again % 1000003 + 11;
                }
            }
            if (v != again) fail("round " + round + ": " + v + ", want " + again);
            double d = 0;
            for (int i = 1; i < 20000; i++) d += 1.0 / i / i;
            if (Math.abs(d - 1.6448840648482) > 1e-9) fail("round " + round + ": " + d);
            want += LongStream.range(0, 3000).parallel().filter(x -> x % 7 == 3).sum();
        }
        check("the sum of streams", want, 120 * LongStream.range(0, 3000).filter(x -> x % 7 == 3).sum());
    }

    /** More garbage than the heap holds, live objects kept and checked. */
    static void heap() throws Exception {
        Object[] live = new Object[2000];
        Random random = new Random(1);
        for (int i = 0; i < 60000; i++) {
            int k = random.nextInt(live.length);
            byte[] b = new byte[16 + random.nextInt(4000)];
            Arrays.fill(b, (byte) k);
            live[k] = b;
            if (i % 500 == 0) Thread.sleep(8);
        }
        System.gc();
        for (int k = 0; k < live.length; k++)
            if (live[k] != null)
                for (byte x : (byte[]) live[k])
                    if (x != (byte) k) {
                        fail("object " + k + " is wrong");
                        break;
                    }
    }

    static void files(Path dir) throws Exception {
        Path file = dir.resolve("mapped");
        try (FileChannel ch = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            ByteBuffer map = ch.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20);
            for (int i = 0; i < 1 << 18; i++) {
                map.putInt(i * 4, i * 7);
                if (i % 4096 == 0) Thread.sleep(20);
            }
        }
        ByteBuffer back = ByteBuffer.wrap(Files.readAllBytes(file));
        for (int i = 0; i < 1 << 18; i++)
            if (back.getInt(i * 4) != i * 7) {
                fail("the file at " + i * 4 + ": " + back.getInt(i * 4));
                break;
            }
    }

    public static void main(String[] args) throws Exception {
        Path dir = Path.of(args[0]);
        ExecutorService pool = Executors.newCachedThreadPool();
        List<Future<?>> parts = new ArrayList<>();
        for (Part p : new Part[] {Work::queue, Work::turns, Work::timers, Work::compiled, Work::heap, () -> files(dir)})
            parts.add(pool.submit(() -> {
                try {
                    p.run();
                } catch (Throwable e) {
                    fail("" + e);
                }
            }));
        for (Future<?> f : parts) f.get();
        pool.shutdown();
        Files.write(dir.resolve("report"), errors);
        Files.writeString(dir.resolve("done.new"), errors.isEmpty() ? "ok\n" : "bad\n");
        Files.move(dir.resolve("done.new"), dir.resolve("done"), StandardCopyOption.ATOMIC_MOVE);
        System.exit(errors.isEmpty() ? 0 : 1);
    }
}
