package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"crpipe/test/harness"
)

// program is a real program at work: it ends by itself, and says in DIR/done whether the result is right.
type program struct {
	name  string
	start func(t *testing.T) *harness.Job
	takes time.Duration // about how long it works undisturbed: the moments are chosen within
}

func script(name string) string {
	return filepath.Join(harness.Root(), "test", "testdata", "real", name)
}

func shell(name string, needs ...string) func(t *testing.T) *harness.Job {
	return func(t *testing.T) *harness.Job {
		need(t, needs...)
		return harness.Start(t, "/bin/bash", harness.Options{Name: name, Shell: fmt.Sprintf(". %q", script(name+".sh"))})
	}
}

func interpreter(path, file string) func(t *testing.T) *harness.Job {
	return func(t *testing.T) *harness.Job {
		need(t, path)
		return harness.Start(t, path, harness.Options{Before: []string{script(file)}})
	}
}

// java runs a class of test/testdata/real in a heap so small that the collector works all the time. Without PerfDisableSharedMem the machine maps
// /tmp/hsperfdata_USER/PID, which every other java that starts removes once that pid is dead.
func java(class string) func(t *testing.T) *harness.Job {
	return func(t *testing.T) *harness.Job {
		need(t, "java", "javac", "jar")
		return harness.Start(t, "/usr/bin/java", harness.Options{Before: []string{"-Xmx64m", "-XX:+PerfDisableSharedMem", "-jar", harness.JavaProg(t, class)}})
	}
}

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
}

// pyenv is the interpreter behind pyenv's shim, when there is one: another build than the system's, with its own libraries.
func pyenv() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	found, _ := filepath.Glob(filepath.Join(home, ".pyenv", "versions", "3.1*", "bin", "python3"))
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}

func programs() []program {
	all := []program{
		{"bash", shell("bash", "awk", "seq"), 2500 * time.Millisecond},
		{"python", interpreter("/usr/bin/python3", "work.py"), 2 * time.Second},
		{"perl", interpreter("/usr/bin/perl", "work.pl"), 2 * time.Second},
		{"make", shell("make", "make", "gcc"), 2500 * time.Millisecond},
		{"go", func(t *testing.T) *harness.Job {
			return harness.Start(t, harness.GoProg(t, "gophers"), harness.Options{})
		}, 2 * time.Second},
		{"xz", shell("xz", "xz", "sha256sum"), 2500 * time.Millisecond},
		{"sqlite", shell("sqlite", "sqlite3"), 3 * time.Second},
		{"java", java("Work"), 2 * time.Second},
		{"node", interpreter("/usr/bin/node", "work.js"), 2 * time.Second},
		{"multiprocessing", interpreter("/usr/bin/python3", "pool.py"), 1500 * time.Millisecond},
		{"awk", shell("awk", "awk", "sort", "uniq"), 2 * time.Second},
	}
	all = append(all, program{"terminal", func(t *testing.T) *harness.Job {
		need(t, "vim", "less")
		return harness.Start(t, "/usr/bin/python3", harness.Options{Name: "terminal", Before: []string{script("terminal.py")}})
	}, 4 * time.Second})
	if p := pyenv(); p != "" {
		all = append(all, program{"pyenv", interpreter(p, "work.py"), 2 * time.Second})
	}
	return all
}

// TestRealPrograms puts every program through the pipeline at random moments of its work, and lets it end. CR_TEST_MOMENTS is how many moments.
func TestRealPrograms(t *testing.T) {
	harness.NeedRoot(t)
	moments := number(t, "CR_TEST_MOMENTS", 2)
	for _, p := range programs() {
		for _, mode := range []string{"untouched", "go-on", "kill-restore"} {
			t.Run(p.name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				rnd := seeded(t)
				j := p.start(t)
				for m := 0; m < moments && mode != "untouched"; m++ {
					time.Sleep(time.Duration(rnd.Int63n(int64(p.takes) / int64(moments))))
					if j.Ended() {
						t.Logf("it had ended before moment %d", m)
						break
					}
					if mode == "go-on" {
						if r := j.Sh("cr-dump $PID > image.cr"); r.Status != 0 && j.Ended() {
							t.Logf("it had ended before the dump of moment %d", m)
							break
						} else if r.Status != 0 {
							t.Fatalf("cr-dump: status %d: %s", r.Status, r.Stderr)
						}
						j.Check("image.cr")
						continue
					}
					if !j.DumpKill("cr-dump --kill $PID > image.cr") {
						break
					}
					j.RestoreSh("cr-restore < image.cr > restored.ticket")
				}
				j.Verdict(120 * time.Second)
			})
		}
	}
}
