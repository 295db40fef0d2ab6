package memory

import (
	"bytes"
	"os"
	"sync"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
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
			return readVDSO(os.Getpid(), &list[i])
		}
	}
	return nil
})

func readVDSO(pid int, v *procfs.VMA) []byte {
	mem, err := os.Open(procfs.Path(pid, "mem"))
	if err != nil {
		return nil
	}
	defer mem.Close()
	image := make([]byte, min(v.Size(), 1<<19))
	if _, err := mem.ReadAt(image, int64(v.Start)); err != nil {
		return nil
	}
	return image
}

// untouched says that a process's vdso, whether or not some pages are its own copies, is what the kernel gives every process: its
// contents are not kept then, since another kernel's must take their place at restore.
func (m *mmDump) untouched(v *procfs.VMA) bool {
	own := kernelsOwn()
	return own != nil && bytes.Equal(own, readVDSO(m.tid, v))
}
