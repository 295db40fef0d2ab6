package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// inGuest are the Debian packages that the machine has, with all that they depend on: what tools/packages.sh installs for
// tests, the shell's tools, and what the kernel itself calls. gcc is there because tests compile with it.
var inGuest = []string{
	"base-files", "base-passwd", "libc-bin", "bash", "dash", "debianutils", "coreutils", "diffutils", "findutils", "grep", "sed", "tar", "gzip", "util-linux", "login", "mount",
	"mawk", "gcc", "libc6-dev", "make", "xz-utils", "sqlite3", "perl", "python3", "netcat-openbsd", "iproute2", "procps", "strace", "kmod", "e2fsprogs",
}

// notCopied are directories of packages that no program reads.
var notCopied = []string{"/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/info/", "/usr/share/lintian/"}

// rootDisk makes an ext4 image of the Debian programs of this system and the modules of a kernel, unless there is one already.
func rootDisk(ctx context.Context, cache string, k kernel) (string, error) {
	packages, err := dependencies(ctx, inGuest)
	if err != nil {
		return "", err
	}
	versions, err := output(ctx, "dpkg-query", append([]string{"-W", "-f", "${Package}:${Architecture} ${Version}\n"}, packages...)...)
	if err != nil {
		return "", err
	}
	const layout = "2" // of what this function makes
	sum := sha256.Sum256([]byte(layout + versions + k.release + strings.Join(notCopied, " ")))
	image := filepath.Join(cache, "root-"+k.release+"-"+hex.EncodeToString(sum[:6])+".ext4")
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	say("making %s of %d packages", image, len(packages))
	old, _ := filepath.Glob(filepath.Join(cache, "root-"+k.release+"-*"))
	for _, path := range old {
		_ = os.Remove(path) // it only takes room
	}
	stage, err := os.MkdirTemp(cache, "stage-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(stage) //nolint:errcheck // of our own
	list, err := output(ctx, "dpkg", append([]string{"-L"}, packages...)...)
	if err != nil {
		return "", err
	}
	files := strings.Split(list, "\n")
	for _, pattern := range []string{"/etc/alternatives/*", "/usr/bin/*", "/usr/sbin/*", "/etc/ld.so.c*", "/etc/ld.so.conf.d/*", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"} {
		more, _ := filepath.Glob(pattern)
		for _, path := range more {
			// Of programs only the links that update-alternatives has made, which belong to no package.
			if to, err := os.Readlink(path); !strings.HasPrefix(path, "/usr/") || err == nil && strings.HasPrefix(to, "/etc/alternatives/") {
				files = append(files, path)
			}
		}
	}
	for _, path := range files {
		if err := copyFile(stage, path); err != nil {
			return "", err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} { // merged /usr
		if err := os.Symlink("usr/"+link, filepath.Join(stage, link)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "root", "vm", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(stage, d), 0o755); err != nil {
			return "", err
		}
	}
	// A file that only root may read; not this system's, which nobody else should have.
	if err := os.WriteFile(filepath.Join(stage, "etc", "shadow"), []byte("root:*:19000:0:99999:7:::\n"), 0o600); err != nil {
		return "", err
	}
	if err := os.CopyFS(filepath.Join(stage, "usr", "lib", "modules"), os.DirFS(filepath.Join(k.dir, "lib", "modules"))); err != nil {
		return "", err
	}
	return image, makeExt4(ctx, image, stage, "3G")
}

// dependencies are packages and all that they depend on, as they are installed here.
func dependencies(ctx context.Context, packages []string) ([]string, error) {
	args := []string{"depends", "--recurse", "--installed", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}
	out, err := output(ctx, "apt-cache", append(args, packages...)...)
	if err != nil {
		return nil, err
	}
	var named []string
	for _, line := range strings.Split(out, "\n") {
		if line != "" && line[0] != ' ' && line[0] != '<' {
			named = append(named, strings.TrimSpace(line))
		}
	}
	// Of alternatives apt names those that are not installed too.
	status, err := output(ctx, "dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${binary:Package}\n")
	if err != nil {
		return nil, err
	}
	installed := map[string]bool{}
	for _, line := range strings.Split(status, "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "ii" {
			installed[f[1]] = true
			name, arch, _ := strings.Cut(f[1], ":")
			installed[name] = installed[name] || arch == "amd64"
		}
	}
	var list []string
	for _, name := range named {
		if installed[name] {
			list = append(list, name)
		}
	}
	for _, name := range packages {
		if !installed[name] {
			return nil, fmt.Errorf("package %s is not installed: run tools/packages.sh, or apt-get install it", name)
		}
	}
	sort.Strings(list)
	return list, nil
}

// copyFile copies a file of the system, or makes the directory, below stage.
func copyFile(stage, path string) error {
	for _, not := range notCopied {
		if strings.HasPrefix(path+"/", not) {
			return nil
		}
	}
	if !strings.HasPrefix(path, "/") || path == "/." {
		return nil // dpkg's words about diversions
	}
	// Packages name files by the links of merged /usr too.
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	path = filepath.Join(dir, filepath.Base(path))
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a system without its documentation
	}
	if err != nil {
		return err
	}
	to := filepath.Join(stage, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return os.MkdirAll(to, 0o755)
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case info.Mode().IsRegular():
		if err := os.Link(path, to); err == nil || errors.Is(err, os.ErrExist) { // only read, and removed again
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, info.Mode().Perm())
	}
	return nil
}

func makeExt4(ctx context.Context, image, dir, size string) error {
	tmp := image + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if _, err := output(ctx, "mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0", "-d", dir, tmp, size); err != nil {
		return err
	}
	return os.Rename(tmp, image)
}

// initramfs makes the archive that the kernel starts from: init, and the modules that the disks and the ports need.
func initramfs(ctx context.Context, work string, k kernel) (string, error) {
	dir := filepath.Join(work, "initramfs")
	for _, d := range []string{"modules", "root", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	if err := goOutput(ctx, []string{"CGO_ENABLED=0"}, "build", "-trimpath", "-o", filepath.Join(dir, "init"), "./tools/vm/init"); err != nil {
		return "", err
	}
	files, err := k.modulesFor(ctx, "virtio_pci", "virtio_blk", "ext4")
	if err != nil {
		return "", err
	}
	for i, file := range files {
		to := filepath.Join(dir, "modules", fmt.Sprintf("%02d-%s", i, strings.TrimSuffix(filepath.Base(file), ".xz")))
		data, err := os.ReadFile(file)
		if strings.HasSuffix(file, ".xz") {
			var text string
			text, err = output(ctx, "xz", "-dc", file)
			data = []byte(text)
		}
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return "", err
		}
	}
	image := filepath.Join(work, "initramfs.cpio")
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "find . | cpio --quiet -o -H newc > ../initramfs.cpio")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cpio: %w\n%s", err, out)
	}
	return image, nil
}

// job and plan are those of tools/vm/init.
type (
	job struct {
		Argv    []string
		Dir     string
		Env     []string
		Seconds int
	}
	plan struct {
		Repository string
		First      job
		Jobs       []job
	}
)

// jobsDisk makes an ext4 image of the repository, the commands, the fixture programs and the test binaries, and returns the
// packages that have tests, in the order of the jobs.
func jobsDisk(ctx context.Context, work string, o options) ([]string, string, error) {
	top, err := output(ctx, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return nil, "", err
	}
	top = strings.TrimSpace(top)
	dir := filepath.Join(work, "jobs")
	repository := filepath.Join(dir, "repository")
	files, err := output(ctx, "git", "-C", top, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return nil, "", err
	}
	for _, name := range strings.Split(strings.TrimRight(files, "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(top, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed, and not committed yet
		}
		if err != nil {
			return nil, "", err
		}
		info, err := os.Stat(filepath.Join(top, name))
		if err != nil {
			return nil, "", err
		}
		to := filepath.Join(repository, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return nil, "", err
		}
		if err := os.WriteFile(to, data, info.Mode().Perm()); err != nil {
			return nil, "", err
		}
	}
	say("building")
	bin := filepath.Join(dir, "bin")
	if err := goOutput(ctx, []string{"CGO_ENABLED=0"}, "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/",
		"./cmd/cr-freeze", "./cmd/cr-dump", "./cmd/cr-filter", "./cmd/cr-restore", "./cmd/cr-thaw"); err != nil {
		return nil, "", err
	}
	// The test compiles every program; what it leaves in the cache is found there by the tests in the machine.
	if err := programs(ctx, filepath.Join(filepath.Dir(work), "programs"), filepath.Join(dir, "cache")); err != nil {
		return nil, "", err
	}
	var names []string
	p := plan{Repository: top, First: learn}
	for _, arg := range o.packages {
		pattern, run, own := strings.Cut(arg, "=")
		if !own {
			run = o.run
		}
		list, err := output(ctx, "go", "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}", pattern)
		if err != nil {
			return nil, "", err
		}
		for _, line := range strings.Split(strings.TrimSpace(list), "\n") {
			name, source, ok := strings.Cut(line, " ")
			if !ok {
				continue
			}
			binary := fmt.Sprintf("%02d-%s.test", len(names), filepath.Base(name))
			if err := goOutput(ctx, nil, "test", "-c", "-o", filepath.Join(dir, "tests", binary), name); err != nil {
				return nil, "", err
			}
			names = append(names, name)
			p.Jobs = append(p.Jobs, newJob(o, binary, source, run))
		}
	}
	data, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return nil, "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "jobs.json"), data, 0o644); err != nil {
		return nil, "", err
	}
	image := filepath.Join(work, "jobs.ext4")
	return names, image, makeExt4(ctx, image, dir, "1G")
}

// learn is a dump that nobody waits for: the first in a kernel learns its layout, which takes longer here than a test waits, and
// leaves it in a cache.
var learn = job{
	Argv: []string{"/bin/sh", "-c", "sleep 100000 & /vm/bin/cr-dump $! > /dev/null; s=$?; kill $!; exit $s"}, Dir: "/", Seconds: 3600,
	Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"},
}

// newJob is the run of a test binary in the directory of its source.
func newJob(o options, binary, source, run string) job {
	j := job{
		Argv: []string{"/vm/tests/" + binary, "-test.v=test2json", "-test.timeout=" + o.timeout.String()}, Dir: source, Seconds: int(o.timeout.Seconds()) + 60,
		Env: append([]string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
			"CR_TEST_BIN=/vm/bin", "XDG_CACHE_HOME=/vm/cache", "CR_TEST_SLOW=" + itoa(o.slow),
		}, strings.Fields(o.env)...),
	}
	if run != "" {
		j.Argv = append(j.Argv, "-test.run="+run)
	}
	if o.skip != "" {
		j.Argv = append(j.Argv, "-test.skip="+o.skip)
	}
	return j
}

// programs compiles the fixtures, keeping what has not changed, and copies them to a directory.
func programs(ctx context.Context, kept, to string) error {
	const most = 400 // files; a version of all is about 130
	if old, _ := filepath.Glob(filepath.Join(kept, "*", "*")); len(old) > most {
		if err := os.RemoveAll(kept); err != nil {
			return err
		}
	}
	if err := goOutput(ctx, []string{"XDG_CACHE_HOME=" + kept, goCache(ctx)}, "test", "-vet=off", "-count=1", "-run", "^TestPrograms$", "./test"); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(kept))
}

// goCache keeps the go command's own cache where it is when XDG_CACHE_HOME is set for a test.
func goCache(ctx context.Context) string {
	dir, err := output(ctx, "go", "env", "GOCACHE")
	if err != nil {
		return "GOCACHE="
	}
	return "GOCACHE=" + strings.TrimSpace(dir)
}
