package object

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
)

// Files that nothing keeps are refused in words that say what they are. Those that this machine has are made.
func TestDescribe(t *testing.T) {
	open := func(path string) func() (int, error) {
		return func() (int, error) { return unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0) }
	}
	call := func(nr uintptr, args ...uintptr) func() (int, error) {
		return func() (int, error) {
			args = append(args, 0, 0, 0)
			fd, _, errno := unix.Syscall(nr, args[0], args[1], args[2])
			if errno != 0 {
				return -1, errno
			}
			return int(fd), nil
		}
	}
	for _, c := range []struct {
		name string
		make func() (int, error)
		want string
	}{
		{"namespace", func() (int, error) { return unix.Open("/proc/self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0) }, "a namespace (uts)"},
		{"secret memory", call(447 /* memfd_secret, on all architectures */, unix.O_CLOEXEC), "memfd_secret(2)"},
		{"userfaultfd", call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1), "a userfaultfd"},
		{"perf", func() (int, error) {
			return unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unix.PERF_ATTR_SIZE_VER0)}, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		}, "perf_event_open(2)"},
		{"fscontext", func() (int, error) { return unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC) }, "fsopen(2)"},
		{"tun", open("/dev/net/tun"), "TUN or TAP"},
		{"fuse", open("/dev/fuse"), "FUSE"},
		{"kvm", open("/dev/kvm"), "KVM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fd, err := c.make()
			if err != nil {
				t.Skipf("this machine does not have it: %v", err)
			}
			defer unix.Close(fd)
			p := &Process{PID: os.Getpid(), Threads: []*Thread{{TID: os.Getpid(), ID: os.Getpid()}}}
			f, err := Meet(p, fd, &kernelview.File{ID: 1})
			if err != nil {
				t.Fatal(err)
			}
			d := &Dumper{}
			if _, err := d.File(f); err != nil {
				t.Fatal(err)
			}
			err = d.Refusals()
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "cannot be checkpointed") || !strings.Contains(err.Error(), "fd "+strconv.Itoa(fd)) {
				t.Errorf("refused with %v, want %q", err, c.want)
			}
			var u unkept
			if u = describe(f); u.do == "" {
				t.Error("nothing is said of what to do")
			}
		})
	}
	for link, want := range map[string]string{"anon_inode:bpf-map": "a BPF map", "anon_inode:kvm-vcpu:0": "a processor of a virtual machine",
		"anon_inode:seccomp notify": "the listener of a seccomp filter", "anon_inode:[something new]": "a descriptor of the kind something new", "/dmabuf:x (deleted)": "a file of this kind"} {
		if u := describe(&OpenFile{Link: link}); !strings.Contains(u.what, want) || u.do == "" {
			t.Errorf("%s: %q, %q; want %q", link, u.what, u.do, want)
		}
	}
}
