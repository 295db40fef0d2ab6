package namespaces

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// UTS is the record of a UTS namespace of the tree's own (uts_namespaces(7)). The other names that uname(2) tells are the kernel's.
type UTS struct {
	Host   string `msgpack:"host,omitempty"`
	Domain string `msgpack:"domain,omitempty"` // of NIS, setdomainname(2)
}

// UTSKind is the kind of record "ns.uts".
var UTSKind = object.NewKind[UTS]("ns.uts", nil)

// DumpUTS adds the record where the root is in another UTS namespace than the caller.
func DumpUTS(d *object.Dumper) error {
	own, err := ownNamespace(d, "uts")
	if err != nil || !own {
		return err
	}
	var name unix.Utsname
	if err := within(d, "uts", unix.CLONE_NEWUTS, func() error { return unix.Uname(&name) }); err != nil {
		return err
	}
	s := &UTS{Host: unix.ByteSliceToString(name.Nodename[:]), Domain: unix.ByteSliceToString(name.Domainname[:])}
	d.AddPlain(UTSKind.Type, s)
	return nil
}

// Make gives the calling thread, which must be locked to its goroutine and end with it, such a namespace.
func (s *UTS) Make() error {
	if max(len(s.Host), len(s.Domain)) > 64 || strings.ContainsRune(s.Host+s.Domain, 0) { // __NEW_UTS_LEN
		return object.BadImagef("a host or domain name of more than 64 bytes, or with a NUL byte")
	}
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("making a UTS namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Host)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := unix.Setdomainname([]byte(s.Domain)); err != nil {
		return fmt.Errorf("setting the domain name: %w", err)
	}
	return nil
}

// ownNamespace says whether the root is in another namespace of a type than the caller.
func ownNamespace(d *object.Dumper, file string) (bool, error) {
	mine, theirs, err := compare(d.Root.Leader().TID, file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // this kernel has none of that type
	}
	return mine != theirs, err
}

// within runs f on a thread of its own that has entered a namespace of the root.
func within(d *object.Dumper, file string, flag int, f func() error) error {
	fd, err := sys.Open("/proc/"+strconv.Itoa(d.Root.Leader().TID)+"/ns/"+file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer fd.Close() //nolint:errcheck // only entered
	return onThread(func() error {
		err := unix.Setns(fd.Int(), flag)
		if errors.Is(err, unix.EPERM) {
			return d.Root.Error("", &object.Unsupported{What: "is in a namespace of its own (" + file + "), which only CAP_SYS_ADMIN may look into",
				Do: "run cr-dump as root"})
		}
		if err != nil {
			return fmt.Errorf("entering the %s namespace of the tree: %w", file, err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}
