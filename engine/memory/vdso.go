package memory

import (
	"bytes"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// kernelsOwn is the vdso as this kernel maps it into every process, this one among them; nil when it cannot be read.
var kernelsOwn = sync.OnceValue(func() []byte {
	a, err := arch.Native()
	if err != nil {
		return nil
	}
	list, err := procfs.ReadMaps(os.Getpid())
	if err != nil {
		return nil
	}
	for i := range list {
		if list[i].Path == a.VDSO.Code {
			mem, err := sys.Open("/proc/self/mem", unix.O_RDONLY, 0)
			if err != nil {
				return nil
			}
			defer mem.Close()
			return readVDSO(mem, &list[i])
		}
	}
	return nil
})

// readVDSO reads it through /proc/PID/mem; nil when it cannot be read.
func readVDSO(mem *sys.FD, v *procfs.VMA) []byte {
	image := make([]byte, min(v.Size(), 1<<19))
	if n, err := readAt(mem, image, uint64(v.Start)); err != nil || n < len(image) {
		return nil
	}
	return image
}

// untouched says that a process's vdso, whether or not some pages are its own copies, is what the kernel gives every process: its
// contents are not kept then, since another kernel's must take their place at restore.
func (m *mmDump) untouched(v *procfs.VMA) bool {
	own := kernelsOwn()
	if own == nil {
		return false
	}
	mem, err := m.mem()
	if err != nil {
		return false
	}
	m.image = readVDSO(mem, v)
	return bytes.Equal(own, m.image)
}
