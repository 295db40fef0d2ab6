package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"crpipe/test/harness"
)

// mountsJob is a job in a mount namespace of its own, and the mount namespace from which the commands are called: neither is that of
// the machine, whose mounts are nobody's to play with.
type mountsJob struct {
	*harness.Job
	outer int    // who has the callers' namespace
	dir   string // $D
}

// startMounts makes the callers' namespace by one script, with $D an empty directory, and in it that of the job by another,
// called by unshare with the given arguments.
func startMounts(t *testing.T, outer string, how []string, inner string, o harness.Options) *mountsJob {
	t.Helper()
	harness.NeedRoot(t)
	dir := t.TempDir()
	ready := filepath.Join(t.TempDir(), "ready")
	holder := exec.Command("/usr/bin/unshare", "-m", "/bin/bash", "-ec", outer+"\n: > "+ready+"\nexec sleep 1000")
	holder.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "D=" + dir}
	var said strings.Builder
	holder.Stderr = &said
	holder.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	for end := time.Now().Add(30 * time.Second * harness.Slow()); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(ready); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the namespace of the callers was not made: " + said.String())
		}
	}
	prog := harness.Prog(t, "counter")
	o.Name = "counter"
	o.Env = append(o.Env, "D="+dir)
	o.Shell = fmt.Sprintf("exec nsenter -t %d -m unshare -m %s /bin/bash -ec '%s\nexec %s \"$1\"' x \"$1\"", holder.Process.Pid, strings.Join(how, " "), inner, prog)
	j := &mountsJob{Job: harness.Start(t, prog, o), outer: holder.Process.Pid, dir: dir}
	j.WaitFile("ready", 30*time.Second)
	return j
}

// in is a script run in the callers' namespace.
func (j *mountsJob) in(script string) string {
	return fmt.Sprintf("nsenter -t %d -m bash -euc '%s'", j.outer, script)
}

// look returns the mounts of the job as mountinfo shows them, without numbers that the kernel gives: those of groups are kept where
// the callers' namespace has them too.
func (j *mountsJob) look() []string {
	j.T.Helper()
	read := func(pid int) [][]string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			j.T.Fatal(err)
		}
		var out [][]string
		for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			out = append(out, strings.Fields(line))
		}
		return out
	}
	outside := map[string]bool{}
	for _, f := range read(j.outer) {
		for _, o := range f[6:slices.Index(f, "-")] {
			_, n, _ := strings.Cut(o, ":")
			outside[n] = true
		}
	}
	lines, point := read(j.Pid), map[string]string{}
	for _, f := range lines {
		point[f[0]] = f[4]
	}
	slices.SortStableFunc(lines, func(a, b []string) int { return strings.Compare(a[4], b[4]) })
	groups := map[string]string{}
	var out []string
	for _, f := range lines {
		end := slices.Index(f, "-")
		for i, o := range f[6:end] {
			name, n, _ := strings.Cut(o, ":")
			if n != "" && !outside[n] {
				if groups[n] == "" {
					groups[n] = fmt.Sprintf("own%d", len(groups))
				}
				f[6+i] = name + ":" + groups[n]
			}
		}
		f[0], f[1] = "", "on "+point[f[1]]
		if f[end+1] == "proc" || f[end+1] == "tmpfs" || f[end+1] == "devpts" || f[end+1] == "mqueue" {
			f[2] = "" // a new one may be another device
		}
		out = append(out, strings.Join(f[1:], " "))
	}
	return out
}

// TestPropagationKept: mounts share with, and receive from, the same others after a restore, be they the callers' or the tree's own.
func TestPropagationKept(t *testing.T) {
	// What is mounted where, so that a hidden one, one bound elsewhere and one of a subdirectory are among them.
	const outer = `
		mount -t tmpfs run $D; mkdir $D/shared $D/slave $D/private $D/bound $D/sub $D/below $D/loop
		for d in shared slave private loop; do mount -t tmpfs $d $D/$d; mount --make-shared $D/$d; done
		mkdir $D/shared/d $D/slave/d $D/private/d
		mount --bind $D/shared $D/bound; mount --bind $D/shared/d $D/sub`
	for _, c := range []struct {
		name  string
		outer string
		how   []string
		inner string
		want  []string // tags that must be there
	}{
		{"unchanged", outer, []string{"--propagation", "unchanged"}, ``, []string{"/shared ", "shared:"}},
		{"everything shared", "mount --make-rshared /;" + outer, []string{"--propagation", "unchanged"}, ``, []string{"/ / ", "shared:"}},
		{"slaves of the callers", outer, []string{"--propagation", "slave"}, ``, []string{"/shared ", "master:"}},
		{"every way", outer, []string{"--propagation", "unchanged"}, `
			mount --make-slave $D/slave; mount --make-private $D/private; mount --make-unbindable $D/loop
			mount --make-slave $D/bound; mount --make-shared $D/bound`, []string{"shared:own", "unbindable", "master:"}},
		{"of its own", outer, []string{"--propagation", "private"}, `
			mount --make-shared $D/shared; mount --make-shared $D; mount --make-shared /`, []string{"shared:own0", "shared:own1", "shared:own2"}},
		{"the callers' are slaves", outer + `; mount --make-slave $D/slave`, []string{"--propagation", "unchanged"}, ``, []string{"/slave "}},
		{"hidden", outer + `; mkdir $D/h; mount -t tmpfs a $D/h; mount --make-shared $D/h; mount -t tmpfs b $D/h`,
			[]string{"--propagation", "unchanged"}, ``, []string{"/h "}},
		{"hidden slave", outer + `; mkdir $D/h; mount -t tmpfs a $D/h; mount --make-shared $D/h; mount -t tmpfs b $D/h`,
			[]string{"--propagation", "slave"}, ``, []string{"/h "}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			j := startMounts(t, c.outer, c.how, c.inner, harness.Options{})
			before := j.look()
			for _, w := range c.want {
				if !strings.Contains(strings.Join(before, "\n"), w) {
					t.Errorf("no %q among\n%s", w, strings.Join(before, "\n"))
				}
			}
			host, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", j.outer))
			j.DumpKill(j.in("cr-dump --kill $PID > image.cr"))
			j.RestoreSh(j.in("cr-restore < image.cr > restored.ticket"))
			after := j.look()
			if !slices.Equal(before, after) {
				t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			if now, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", j.outer)); string(now) != string(host) {
				t.Errorf("the mounts of the caller were\n%s and are\n%s", host, now)
			}
			j.Finish()
		})
	}
}

// TestOwnMountsKept: mounts that the callers have not are made again.
func TestOwnMountsKept(t *testing.T) {
	const outer = `mkdir $D/a $D/a/b $D/c $D/e; echo x > $D/a/b/file; : > $D/f; mount -t tmpfs t $D/c; mkdir $D/c/d; echo y > $D/c/d/file; : > $D/c/g`
	for _, c := range []struct {
		name, inner string
		want        []string
	}{
		{"bind", `mount --bind $D/a/b $D/e`, []string{"/e "}},
		{"bind of a subdirectory of a mount, read-only", `mount --bind $D/c/d $D/e; mount -o remount,bind,ro,nosuid $D/e`, []string{"/e ro,nosuid"}},
		{"bind of a file", `mount --bind $D/c/g $D/f`, []string{"/f "}},
		{"recursive bind", `mount --bind $D/c/d $D/a/b; mount --rbind $D/a $D/e`, []string{"/e/b "}},
		{"read-only remount", `mount -o remount,bind,ro,noatime $D/c`, []string{"/c ro,noatime"}},
		{"empty tmpfs", `mount -t tmpfs -o size=64k,mode=700 mine $D/e; mount --make-shared $D/e`, []string{"tmpfs mine", "size=64k", "shared:"}},
		{"tmpfs with mounts on it", `mount -t tmpfs mine $D/e; mkdir -m 751 $D/e/x $D/e/x/y; mount --bind $D/a $D/e/x/y; mount -o remount,bind,ro $D/e`, []string{"/e/x/y "}},
		{"the kernel's", `mount -t sysfs s $D/e; mount -t mqueue q $D/c/d; mount -t devpts -o newinstance,mode=620,ptmxmode=666 p $D/a/b`, nil},
		{"in place of the callers'", `umount $D/c; mount -t tmpfs t $D/c`, []string{"/c "}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			j := startMounts(t, outer, []string{"--propagation", "private"}, c.inner, harness.Options{})
			before := j.look()
			for _, w := range c.want {
				if !strings.Contains(strings.Join(before, "\n"), w) {
					t.Errorf("no %q among\n%s", w, strings.Join(before, "\n"))
				}
			}
			list := func() string {
				return j.MustSh("cd /proc/$PID/root/" + j.dir + "; find . -maxdepth 2 -printf \"%p %m %u %s\\n\" | sort")
			}
			files := list()
			j.DumpKill(j.in("cr-dump --kill $PID > image.cr"))
			j.RestoreSh(j.in("cr-restore < image.cr > restored.ticket"))
			if after := j.look(); !slices.Equal(before, after) {
				t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			if after := list(); after != files {
				t.Errorf("files before\n%s\nafter\n%s", files, after)
			}
			j.Finish()
		})
	}
}

// TestOwnMountsRefused: what would be lost with a mount is named.
func TestOwnMountsRefused(t *testing.T) {
	for _, c := range []struct{ name, inner, want string }{
		{"tmpfs with a file", `mount -t tmpfs mine $D; echo x > $D/file`, "whose contents are not kept (there is file in it)"},
		{"hidden", `mount -t tmpfs mine $D; mount -t tmpfs mine $D`, "and hidden by another one"},
		{"another file system", `mount -t ramfs mine $D`, "from where cr-dump"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			j := startMounts(t, ":", []string{"--propagation", "private"}, c.inner, harness.Options{})
			if r := j.Sh(j.in("cr-dump $PID > image.cr")); r.Status != 3 || !strings.Contains(r.Stderr, c.want) {
				t.Errorf("status %d: %s", r.Status, r.Stderr)
			}
			j.Finish()
		})
	}
}
