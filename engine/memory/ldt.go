package memory

import (
	"encoding/binary"

	"crpipe/engine/internal/tracee"
)

// maxLDT is how many entries a local descriptor table can have, modify_ldt(2).
const maxLDT = 8192

// ldtCalls adds the calls that set the entries of modify_ldt(2), which all threads of an address space share.
func (s *Space) ldtCalls(b *tracee.Batch) {
	const write = 0x11 // with the flag for system software
	for i := 0; i+8 <= len(s.MM.LDT); i += 8 {
		desc := binary.NativeEndian.Uint64(s.MM.LDT[i:])
		if desc == 0 {
			continue
		}
		entry := s.arch.UserDesc(uint32(i/8), desc)
		b.Call(b.Sys().ModifyLdt, write, entry, len(entry)).Note("entry %d of the local descriptor table", i/8)
	}
}
