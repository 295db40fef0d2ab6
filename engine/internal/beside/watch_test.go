package beside

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

const mark = "BESIDE_TEST_GUARD"

// TestMain is the guard of TestWatch's child that has died, or the child, or runs the tests.
func TestMain(m *testing.M) {
	if entry, orphaned, err := Orphaned(mark); orphaned {
		fmt.Fprintf(os.Stderr, "left %d bytes, ending %.4s, mark %q, %v\n", len(entry), tail(entry), os.Getenv(mark), err)
		os.Exit(0)
	}
	if job := os.Getenv("BESIDE_TEST_JOB"); job != "" {
		if err := child(job); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func tail(b []byte) []byte { return b[max(0, len(b)-4):] }

// child starts a guard and writes down the entries that job names by length and last bytes; "-" clears.
func child(job string) error {
	procs, err := sys.Open("/dev/null", unix.O_WRONLY, 0) // what the guard writes to moves nothing
	if err != nil {
		return err
	}
	w, err := NewWatch(mark, procs)
	if err != nil {
		return err
	}
	for _, e := range strings.Fields(job) {
		if e == "-" {
			w.Clear()
			continue
		}
		n, end, _ := strings.Cut(e, ":")
		size, err := strconv.Atoi(n)
		if err != nil {
			return err
		}
		w.ExpectMoves(size%2 == 0)
		if err := w.Write(append(make([]byte, size-len(end)), end...)); err != nil {
			return err
		}
		if err := w.Ensure(); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	time.Sleep(time.Hour)
	return nil
}

// TestWatch: what was written down last, and nothing else, reaches the guard when the process is killed.
func TestWatch(t *testing.T) {
	for job, want := range map[string]string{
		"":                               "",
		"10:abcd":                        "left 10 bytes, ending abcd, mark \"\", <nil>\n",
		"10:abcd -":                      "",
		"10:abcd 3000001:efgh":           "left 3000001 bytes, ending efgh, mark \"\", <nil>\n",
		"3000000:abcd 5000:xyzw 7:ijkl":  "left 7 bytes, ending ijkl, mark \"\", <nil>\n",
		"3000000:abcd - 20:mnop":         "left 20 bytes, ending mnop, mark \"\", <nil>\n",
		"20000:abcd - 20000:mnop 9:q -":  "",
		"20000:abcd - 4:mnop - 30:qrstu": "left 30 bytes, ending rstu, mark \"\", <nil>\n",
	} {
		t.Run(job, func(t *testing.T) {
			c := exec.Command(os.Args[0])
			c.Env = append(os.Environ(), "BESIDE_TEST_JOB="+job+" ")
			var errs bytes.Buffer
			c.Stderr = &errs // its end is that of the guard
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if n, err := out.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
				t.Fatalf("it says %q, %v", buf[:n], err)
			}
			_ = c.Process.Kill()
			if _, err := io.Copy(io.Discard, out); err != nil { // nobody else holds this pipe
				t.Error(err)
			}
			_ = c.Wait()
			if got := errs.String(); got != want {
				t.Errorf("the guard says %q, want %q", got, want)
			}
		})
	}
}

// TestEnsure: a guard that is alive stays, a dead one is replaced and leaves no zombie.
func TestEnsure(t *testing.T) {
	open := sys.OpenFDs()
	w, err := NewWatch(mark, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := w.GuardPID()
	if err := w.Ensure(); err != nil || w.GuardPID() != first {
		t.Errorf("there was a guard, and now it is %d instead of %d: %v", w.GuardPID(), first, err)
	}
	told := make(chan struct{})
	go func() {
		AwaitDeath(first)
		close(told)
	}()
	time.Sleep(10 * time.Millisecond)
	select {
	case <-told:
		t.Error("it is said to be dead")
	default:
	}
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-told
	if err := w.Ensure(); err != nil || w.GuardPID() == first {
		t.Errorf("the guard was killed, and now it is %d: %v", w.GuardPID(), err)
	}
	second := w.GuardPID()
	w.Close()
	for _, pid := range []int{first, second} {
		if err := unix.Kill(pid, 0); err != unix.ESRCH { //nolint:errorlint // a bare errno
			t.Errorf("guard %d is there: %v", pid, err)
		}
	}
	if now := sys.OpenFDs(); now != open {
		t.Errorf("%d descriptors are open, were %d", now, open)
	}
}

// TestShortLived: a guard that cannot live is not started for ever.
func TestShortLived(t *testing.T) {
	w, err := NewWatch(mark, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 10 * maxShort {
		_ = unix.Kill(w.GuardPID(), unix.SIGKILL)
		AwaitDeath(w.GuardPID())
		if err := w.Ensure(); errors.Is(err, errShortLived) {
			if i < maxShort-1 {
				t.Errorf("given up after %d", i)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Skip("this machine is too slow to kill guards at once")
}

// TestOrphanedByMistake: a variable that is left over in somebody's environment does nothing.
func TestOrphanedByMistake(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, v := range []string{"", "x", "2", "-1", "9999", strconv.Itoa(int(f.Fd()))} {
		t.Setenv(mark, v)
		if _, ok, err := Orphaned(mark); ok || err != nil {
			t.Errorf("%q is taken for an orphan's: %v", v, err)
		}
		if _, there := os.LookupEnv(mark); there {
			t.Errorf("%q is still in the environment", v)
		}
	}
	if _, err := f.Stat(); err != nil {
		t.Error(err)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(2, &st); err != nil {
		t.Error(err)
	}
}
