package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// kernels are Debian's suites by the version of their kernel. The package is the suite's linux-image-amd64.
var kernels = map[string]string{
	"6.1":  "bookworm",
	"6.12": "bookworm-backports",
}

func kernelNames() []string {
	var names []string
	for name := range kernels {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// kernel is an unpacked linux-image package.
type kernel struct {
	dir     string
	release string // as of uname -r
	image   string
}

// needed are programs and the packages that have them.
var needed = [][2]string{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"mkfs.ext4", "e2fsprogs"},
	{"depmod", "kmod"},
	{"cpio", "cpio"},
	{"xz", "xz-utils"},
	{"zstd", "zstd"},
}

func install(ctx context.Context) error {
	var missing []string
	for _, n := range needed {
		if _, err := exec.LookPath(n[0]); err != nil {
			missing = append(missing, n[1])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	say("installing %s", strings.Join(missing, " "))
	_ = os.Setenv("DEBIAN_FRONTEND", "noninteractive")
	if _, err := output(ctx, "apt-get", "-qq", "update"); err != nil {
		return err
	}
	_, err := output(ctx, "apt-get", append([]string{"-qq", "-y", "--no-install-recommends", "install"}, missing...)...)
	return err
}

// fetchKernel downloads and unpacks the kernel that linux-image-amd64 of a suite names. The system's own lists of packages are
// left alone: apt gets others, of the mirror that the system uses.
func fetchKernel(ctx context.Context, cache, suite string) (kernel, error) {
	dir := filepath.Join(cache, suite)
	found, err := unpacked(dir)
	if err == nil {
		return found, nil
	}
	say("fetching the kernel of %s", suite)
	mirror, err := debianMirror(ctx)
	if err != nil {
		return kernel{}, err
	}
	apt := filepath.Join(cache, "apt", suite)
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(apt, d), 0o755); err != nil {
			return kernel{}, err
		}
	}
	sources := filepath.Join(apt, "sources.list")
	line := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", mirror, suite)
	if err := os.WriteFile(sources, []byte(line), 0o644); err != nil {
		return kernel{}, err
	}
	own := []string{
		"-o", "Dir::Etc::sourcelist=" + sources, "-o", "Dir::Etc::sourceparts=-", "-o", "Dir::State::lists=" + apt + "/lists",
		"-o", "Dir::Cache=" + apt, "-o", "APT::Sandbox::User=root", "-qq",
	}
	if _, err := output(ctx, "apt-get", append(own, "update")...); err != nil {
		return kernel{}, err
	}
	show, err := output(ctx, "apt-cache", append(own, "show", "--no-all-versions", "linux-image-amd64/"+suite)...)
	if err != nil {
		return kernel{}, err
	}
	// Depends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)
	image := regexp.MustCompile(`(?m)^Depends:.*?(linux-image-\S+)`).FindStringSubmatch(show)
	if image == nil {
		return kernel{}, fmt.Errorf("linux-image-amd64 of %s names no package:\n%s", suite, show)
	}
	get := exec.CommandContext(ctx, "apt-get", append(own, "download", image[1])...)
	get.Dir = apt
	if out, err := get.CombinedOutput(); err != nil {
		return kernel{}, fmt.Errorf("apt-get download %s: %w\n%s", image[1], err, out)
	}
	debs, err := filepath.Glob(filepath.Join(apt, image[1]+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return kernel{}, fmt.Errorf("apt-get download %s: %d files", image[1], len(debs))
	}
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return kernel{}, err
	}
	if _, err := output(ctx, "dpkg-deb", "-x", debs[0], tmp); err != nil {
		return kernel{}, err
	}
	if err := prepareModules(ctx, tmp); err != nil {
		return kernel{}, err
	}
	if err := os.RemoveAll(apt); err != nil {
		return kernel{}, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return kernel{}, err
	}
	return unpacked(dir)
}

// debianMirror is where this system gets Debian's own packages from.
func debianMirror(ctx context.Context) (string, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(CODENAME)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[1] == "Debian" {
			return f[0], nil
		}
	}
	return "", errors.New("no package list of Debian's: run apt-get update")
}

func unpacked(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("%d kernels in %s", len(images), dir)
	}
	return kernel{dir: dir, image: images[0], release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}, nil
}

// unwanted are drivers that the machine has no devices for: most of a kernel's package.
var unwanted = []string{"gpu", "media", "infiniband", "scsi", "net/ethernet", "net/wireless", "net/usb", "net/can", "usb", "iio", "hwmon", "staging",
	"input", "mtd", "isdn", "comedi", "ata", "hid", "i2c", "leds", "mfd", "platform", "power", "video", "target", "bluetooth", "edac", "firewire"}

// prepareModules leaves of a package the modules that can be used, lists what depends on what, and uncompresses those that disks need.
func prepareModules(ctx context.Context, dir string) error {
	releases, err := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if err != nil || len(releases) != 1 {
		return fmt.Errorf("modules of %d kernels in one package", len(releases))
	}
	for _, u := range append([]string{"../sound"}, unwanted...) {
		if err := os.RemoveAll(filepath.Join(releases[0], "kernel", "drivers", u)); err != nil {
			return err
		}
	}
	_, err = output(ctx, "depmod", "-b", dir, filepath.Base(releases[0]))
	return err
}

// modulesFor returns the files of modules, those that a module needs before it.
func (k kernel) modulesFor(ctx context.Context, names ...string) ([]string, error) {
	var files []string
	seen := map[string]bool{}
	for _, name := range names {
		out, err := output(ctx, "modprobe", "-d", k.dir, "-S", k.release, "--show-depends", name)
		if err != nil {
			return nil, err
		}
		for _, line := range strings.Split(out, "\n") { // insmod FILE, or builtin NAME
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "insmod" && !seen[f[1]] {
				seen[f[1]] = true
				files = append(files, f[1])
			}
		}
	}
	return files, nil
}
