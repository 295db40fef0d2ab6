package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Commands are the five programs of the pipeline.
var Commands = []string{"cr-freeze", "cr-dump", "cr-filter", "cr-restore", "cr-thaw"}

// Root is the module's directory.
var Root = sync.OnceValue(func() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
})

var runDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "crpipe-test-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
})

// RunDir is a directory that lives as long as the test process; RemoveRunDir removes it.
func RunDir(t testing.TB) string {
	t.Helper()
	dir, err := runDir()
	if err != nil {
		t.Fatalf("making the run's directory: %v", err)
	}
	return dir
}

// RemoveRunDir removes what RunDir made.
func RemoveRunDir() error {
	dir, err := runDir()
	if err != nil {
		return nil //nolint:nilerr // it was never made
	}
	return os.RemoveAll(dir)
}

var binaries = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("CR_TEST_BIN"); dir != "" {
		return dir, nil
	}
	return build("bin")
})

// failing are the commands with failpoints (engine/internal/failpoint).
var failing = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("CR_TEST_FAILING_BIN"); dir != "" {
		return dir, nil
	}
	return build("failing", "-tags=failpoints")
})

// build builds the commands into a directory of that name.
func build(name string, flags ...string) (string, error) {
	run, err := runDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(run, name)
	args := append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, flags...)
	if os.Getenv("GOCOVERDIR") != "" {
		args = append(args, "-cover", "-coverpkg=crpipe/...")
	}
	for _, c := range Commands {
		args = append(args, "./cmd/"+c)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the commands: %w\n%s", err, out)
	}
	return dir, nil
}

// FailingBinaries builds the five commands with failpoints, once. CR_TEST_FAILING_BIN names a directory to use instead.
func FailingBinaries(t testing.TB) string {
	t.Helper()
	dir, err := failing()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Binaries builds the five commands once and returns their directory. CR_TEST_BIN names a directory to use instead.
func Binaries(t testing.TB) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// cacheDir holds compiled fixtures between runs, by the hash of their sources.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	dir := filepath.Join(base, "crpipe-test")
	return dir, os.MkdirAll(dir, 0o755)
}

var buildLock sync.Mutex

// built returns the cached program made of the given sources by make(output), making it when there is none.
func built(name, variant string, sources []string, make func(out string) ([]byte, error)) (string, error) {
	buildLock.Lock()
	defer buildLock.Unlock()
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\x00%s\x00", variant, runtime.Version())
	for _, s := range sources {
		data, err := os.ReadFile(s)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s\x00%d\x00%s", filepath.Base(s), len(data), data)
	}
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	cached := filepath.Join(dir, name+"-"+hex.EncodeToString(sum.Sum(nil)[:12]))
	if _, err := os.Stat(cached); errors.Is(err, os.ErrNotExist) {
		tmp := fmt.Sprintf("%s.%d", cached, os.Getpid())
		if out, err := make(tmp); err != nil {
			return "", fmt.Errorf("compiling %s: %w\n%s", name, err, out)
		}
		if err := os.Rename(tmp, cached); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	// The program that runs is a copy by its own name: comm and exe then say what it is, and the cache stays clean.
	run, err := runDir()
	if err != nil {
		return "", err
	}
	prog := filepath.Join(run, "prog", name)
	if _, err := os.Stat(prog); err == nil {
		return prog, nil
	}
	if err := os.MkdirAll(filepath.Dir(prog), 0o755); err != nil {
		return "", err
	}
	data, err := os.ReadFile(cached)
	if err != nil {
		return "", err
	}
	return prog, os.WriteFile(prog, data, 0o755)
}

// Prog compiles the fixture test/testdata/prog/NAME.c, once, and returns its path.
func Prog(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(Root(), "test", "testdata", "prog")
	src := filepath.Join(dir, name+".c")
	flags := []string{"-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-pthread"}
	prog, err := built(name, fmt.Sprint(flags), []string{src, filepath.Join(dir, "fixture.h"), filepath.Join(dir, "getters.h")}, func(out string) ([]byte, error) {
		return exec.Command("gcc", append(flags, "-o", out, src, "-lrt")...).CombinedOutput()
	})
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

// Prog32 compiles a fixture as a 32-bit program: test/testdata/prog32/NAME.c, or where there is none the one that Prog compiles.
func Prog32(t testing.TB, name string) string {
	t.Helper()
	data := filepath.Join(Root(), "test", "testdata")
	src := filepath.Join(data, "prog32", name+".c")
	if _, err := os.Stat(src); err != nil {
		src = filepath.Join(data, "prog", name+".c")
	}
	// libc6-dev-i386 has no headers of the kernel's: those of amd64 serve for both. Static, so that nothing else is needed where it
	// runs. GCC of 32 bits sees other ranges in the fixtures' arithmetic, which is right for what they run with.
	flags := []string{"-m32", "-static", "-idirafter", "/usr/include/x86_64-linux-gnu", "-std=gnu11", "-O1", "-g", "-Wall", "-Wno-unused-function", "-pthread"}
	prog, err := built(name+"32", fmt.Sprint(flags), []string{src, filepath.Join(data, "prog", "fixture.h"), filepath.Join(data, "prog", "getters.h")}, func(out string) ([]byte, error) {
		return exec.Command("gcc", append(flags, "-o", out, src, "-lrt")...).CombinedOutput()
	})
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

// GoProg compiles the Go program in test/testdata/goprog/NAME, once, and returns its path.
func GoProg(t testing.TB, name string) string { return goProg(t, name, name, nil) }

// GoProg32 compiles it for 386.
func GoProg32(t testing.TB, name string) string {
	return goProg(t, name, name+"32", []string{"GOARCH=386", "CGO_ENABLED=0"})
}

func goProg(t testing.TB, name, as string, env []string) string {
	t.Helper()
	dir := filepath.Join(Root(), "test", "testdata", "goprog", name)
	src, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(src) == 0 {
		t.Fatalf("no Go program in %s: %v", dir, err)
	}
	prog, err := built(as, fmt.Sprint("go", env), src, func(out string) ([]byte, error) {
		cmd := exec.Command("go", "build", "-o", out, ".")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), env...)
		return cmd.CombinedOutput()
	})
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

// JavaProg compiles test/testdata/real/NAME.java, once, into a jar whose main class is NAME, and returns its path.
func JavaProg(t testing.TB, name string) string {
	t.Helper()
	src := filepath.Join(Root(), "test", "testdata", "real", name+".java")
	jar, err := built(name+".jar", "javac", []string{src}, func(out string) ([]byte, error) {
		classes, err := os.MkdirTemp(t.TempDir(), "classes-")
		if err != nil {
			return nil, err
		}
		if msg, err := exec.Command("javac", "-d", classes, src).CombinedOutput(); err != nil {
			return msg, err
		}
		return exec.Command("jar", "--create", "--file", out, "--main-class", name, "-C", classes, ".").CombinedOutput()
	})
	if err != nil {
		t.Fatal(err)
	}
	return jar
}
