package object

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// unkept is a sort of file that nothing keeps: what it is, why it cannot be had again where that is not plain, and what the user
// can do.
type unkept struct{ what, do string }

// anonymous are the files without a place in any file system, by what their link says behind "anon_inode:", without
// brackets, up to a colon or blank (anon_inode_getfile in the kernel).
var anonymous = map[string]unkept{
	"userfaultfd":      {"a userfaultfd, which handles page faults,", "end its use before the dump"},
	"perf_event":       {"a counter of events of the processor or the kernel (perf_event_open(2))", "stop the measurement before the dump"},
	"bpf-map":          {"a BPF map, which belongs to the kernel,", bpfAdvice},
	"bpf-prog":         {"a BPF program, which belongs to the kernel,", bpfAdvice},
	"bpf_link":         {"the attachment of a BPF program (bpf_link), which belongs to the kernel,", bpfAdvice},
	"bpf_iter":         {"a BPF iterator", bpfAdvice},
	"btf":              {"BTF, the types of BPF programs,", bpfAdvice},
	"bpf-token":        {"a BPF token", bpfAdvice},
	"seccomp notify":   {"the listener of a seccomp filter (SECCOMP_RET_USER_NOTIF)", "dump the processes that it supervises without the supervisor, or end it"},
	"landlock-ruleset": {"a Landlock ruleset that is being made", "dump before or after it is enforced"},
	"fscontext":        {"a file system that is being set up (fsopen(2), fspick(2))", "dump before or after it is mounted"},
	"kvm-vm":           {"a virtual machine of KVM", kvmAdvice},
	"kvm-vcpu":         {"a processor of a virtual machine of KVM", kvmAdvice},
	"kvm-device":       {"a device of a virtual machine of KVM", kvmAdvice},
	"kvm-vcpu-stats":   {"the statistics of a virtual machine of KVM", kvmAdvice},
	"kvm-vm-stats":     {"the statistics of a virtual machine of KVM", kvmAdvice},
	"kvm-gmem":         {"the memory of a virtual machine of KVM", kvmAdvice},
	"vfio-device":      {"a device handed to the program (VFIO)", deviceAdvice},
	"iommufd":          {"the address spaces of devices (iommufd)", deviceAdvice},
	"sync_file":        {"a fence of a graphics device", deviceAdvice},
	"dmabuf":           {"memory of a device (dma-buf)", deviceAdvice},
	"rdmacm":           {"a connection of RDMA", deviceAdvice},
	"infinibandevent":  {"events of an InfiniBand device", deviceAdvice},
}

const (
	bpfAdvice    = "dump the processes without the one that loads BPF programs, or have it unload them first"
	kvmAdvice    = "save the virtual machine by its own means (for QEMU savevm or migrate)"
	deviceAdvice = "have the program let go of the device before the dump"
)

// devices are character devices by major and minor number (Documentation/admin-guide/devices.txt); minor -1: any.
var devices = []struct {
	major uint32
	minor int
	unkept
}{
	{10, 200, unkept{"a network interface of its own (TUN or TAP)", "close it before the dump and let it be made again afterwards, or pass --external with its name"}},
	{10, 229, unkept{"a file system that it serves itself (FUSE)", "unmount the file system before the dump"}},
	{10, 232, unkept{"KVM", kvmAdvice}},
	{10, 196, unkept{"devices handed to the program (VFIO)", deviceAdvice}},
	{10, 126, unkept{"userfaultfd", "end its use before the dump"}},
	{226, -1, unkept{"a graphics device (DRI)", deviceAdvice}},
	{195, -1, unkept{"a graphics device (NVIDIA)", deviceAdvice}},
	{13, -1, unkept{"an input device", deviceAdvice}},
	{116, -1, unkept{"a sound device", deviceAdvice}},
	{81, -1, unkept{"a video device", deviceAdvice}},
}

// describe names a file that no kind claims, and says what to do about it.
func describe(f *OpenFile) unkept {
	instead := func(what string) unkept {
		return unkept{what, fmt.Sprintf("close it before the dump, or pass --external '%s' and give one back at restore with --inherit", f.Link)}
	}
	switch f.Stat.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		major, minor := unix.Major(uint64(f.Stat.Rdev)), unix.Minor(uint64(f.Stat.Rdev))
		number := fmt.Sprintf("character device %d:%d", major, minor)
		for i := range devices {
			if d := &devices[i]; d.major == major && (d.minor < 0 || uint32(d.minor) == minor) {
				return unkept{number + ", " + d.what + ",", d.do}
			}
		}
		return instead(number)
	case unix.S_IFBLK:
		return instead(fmt.Sprintf("block device %d:%d", unix.Major(uint64(f.Stat.Rdev)), unix.Minor(uint64(f.Stat.Rdev))))
	case unix.S_IFSOCK:
		return instead(describeSocket(f))
	}
	if name, ok := strings.CutPrefix(f.Link, "anon_inode:"); ok {
		name = strings.Trim(name, "[]")
		kind, _, _ := strings.Cut(name, ":")
		if a, ok := anonymous[kind]; ok {
			return a
		}
		return instead("a descriptor of the kind " + name)
	}
	if kind, number, ok := strings.Cut(f.Link, ":["); ok && !strings.HasPrefix(f.Link, "/") && strings.HasSuffix(number, "]") && kind != "pipe" && kind != "socket" {
		return unkept{fmt.Sprintf("a namespace (%s) in which no process of the tree is, or opened with O_PATH,", kind), "dump a process that is in it too, or close it before the dump"}
	}
	switch strings.TrimSuffix(f.Link, " (deleted)") {
	case "/secretmem":
		return unkept{"secret memory (memfd_secret(2)), which nobody else may read,", "have the program give it up before the dump"}
	case "/dmabuf":
		return anonymous["dmabuf"]
	}
	return instead("a file of this kind")
}
