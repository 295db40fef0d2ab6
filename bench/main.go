// Bench measures dump and restore beside the raw limits of the same machine in the same run, and prints the ratios: absolute figures say little
// on a shared machine, ratios hold.
//
//	go run ./bench [-sizes 16,256,2048] [-rounds 5] [-zeros 1024] [-threads 1000] [-tree 200] [-descriptors 6000] [-unix 200] [-tcp 100]
//
// Ours and raw alternate (A/B/A/B) after a warm-up of each; the medians are compared. As root, on Linux.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleFlag {
		if err := role(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// figure is one line of the table.
type figure struct {
	what  string
	ours  []time.Duration
	raw   []time.Duration
	bytes int64
	limit string // what the project asks for
	peak  int64  // KiB, of the worse of the rounds; 0: not measured
	other string // shown instead of a ratio
}

func run() error {
	sizes := flag.String("sizes", "16,256,2048", "sizes in MiB of the processes, separated by commas")
	rounds := flag.Int("rounds", 5, "measured rounds of each")
	zeros := flag.Int("zeros", 1024, "MiB of zeros in the process whose image size is shown; 0 leaves it out")
	threads := flag.Int("threads", 1000, "threads of the process of many; 0 leaves it out")
	tree := flag.Int("tree", 200, "processes of the tree of many; 0 leaves it out")
	descriptors := flag.Int("descriptors", 6000, "descriptors of the process of many; 0 leaves it out")
	unixes := flag.Int("unix", 200, "pairs of unix sockets of the process of many; 0 leaves it out")
	tcp := flag.Int("tcp", 100, "TCP connections of the process of many; 0 leaves it out")
	bin := flag.String("bin", "", "directory of the five commands (built when empty)")
	dir := flag.String("dir", "/dev/shm", "where images are written: it should be memory")
	flag.Parse()
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	work, err := os.MkdirTemp(*dir, "crpipe-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	b := &bench{work: work, bin: *bin, rounds: *rounds}
	if b.bin == "" {
		b.bin = filepath.Join(work, "bin")
		build := exec.Command("go", "build", "-trimpath", "-o", b.bin+"/", "./cmd/cr-dump", "./cmd/cr-restore", "./cmd/cr-freeze", "./cmd/cr-thaw", "./cmd/cr-filter")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building the commands: %w\n%s", err, out)
		}
	}
	if err := becomeSubreaper(); err != nil {
		return err
	}
	var figures []figure
	for _, s := range strings.FieldsFunc(*sizes, func(r rune) bool { return r == ',' }) {
		mib, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || mib < 1 {
			return fmt.Errorf("size %q is no number of MiB", s)
		}
		fmt.Fprintf(os.Stderr, "%d MiB...\n", mib)
		f, err := b.size(int64(mib) << 20)
		if err != nil {
			return fmt.Errorf("%d MiB: %w", mib, err)
		}
		figures = append(figures, f...)
	}
	fmt.Fprintln(os.Stderr, "longest gap...")
	gap, err := b.gap()
	if err != nil {
		return fmt.Errorf("gap: %w", err)
	}
	figures = append(figures, gap)
	for _, many := range []struct {
		n       int
		what    string
		measure func(int) ([]figure, error)
	}{{*threads, "threads", b.threads}, {*threads, "threads", b.restoreThreads}, {*tree, "processes", b.tree}, {*tree, "processes", b.restoreTree},
		{*descriptors, "descriptors", b.descriptors}, {*unixes, "unix pairs", b.sockets("unix", "unix pairs")},
		{*tcp, "TCP connections", b.sockets("tcp", "TCP connections")}} {
		if many.n == 0 {
			continue
		}
		fmt.Fprintf(os.Stderr, "%d %s...\n", many.n, many.what)
		f, err := many.measure(many.n)
		if err != nil {
			return fmt.Errorf("%d %s: %w", many.n, many.what, err)
		}
		figures = append(figures, f...)
	}
	if *zeros > 0 {
		fmt.Fprintf(os.Stderr, "%d MiB of zeros...\n", *zeros)
		f, err := b.zeros(int64(*zeros) << 20)
		if err != nil {
			return fmt.Errorf("zeros: %w", err)
		}
		figures = append(figures, f)
	}
	return show(figures)
}

func median(d []time.Duration) time.Duration {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[len(s)/2]
}

func show(figures []figure) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tOURS\tSPREAD\tRAW\tGB/s\tRATIO\tASKED\tPEAK")
	for _, f := range figures {
		peak := "-"
		if f.peak > 0 {
			peak = fmt.Sprintf("%.1f MiB", float64(f.peak)/1024)
		}
		if f.other != "" {
			fmt.Fprintf(w, "%s\t%s\t\t\t\t\t%s\t%s\n", f.what, f.other, f.limit, peak)
			continue
		}
		ours, raw := median(f.ours), median(f.raw)
		rate, ratio := "", fmt.Sprintf("%.2fx of the time", float64(ours)/float64(raw))
		if f.bytes > 0 {
			rate = fmt.Sprintf("%.2f", float64(f.bytes)/1e9/ours.Seconds())
			if strings.HasPrefix(f.limit, ">=") {
				ratio = fmt.Sprintf("%.2fx of the speed", float64(raw)/float64(ours))
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s-%s\t%s\t%s\t%s\t%s\t%s\n", f.what, ms(ours), ms(slices.Min(f.ours)), ms(slices.Max(f.ours)), ms(raw), rate, ratio, f.limit, peak)
	}
	return w.Flush()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }
