package memory

import (
	"fmt"
	"slices"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// The kernel shows the NUMA policy of a mapping (mbind(2)) in /proc/PID/numa_maps, in words that do not tell the mask that the program gave from
// the one in force, nor the home node. The kernel view reads it whole; what only numa_maps shows is refused. On which node each page is is not kept:
// the policy decides again when a restore makes it.

// Policy is the NUMA policy of a range of an address space.
type Policy struct {
	Start   uint64   `msgpack:"start"`
	End     uint64   `msgpack:"end"`
	Mode    uint16   `msgpack:"mode"`            // MPOL_*
	Flags   uint16   `msgpack:"flags,omitempty"` // MPOL_F_STATIC_NODES and its like
	Nodes   []uint64 `msgpack:"nodes,omitempty"` // the mask, lowest nodes first
	HasHome bool     `msgpack:"has_home,omitempty"`
	Home    int32    `msgpack:"home,omitempty"` // set_mempolicy_home_node(2)
}

// maxPolicies keeps the metadata of the record of an address space below stream.MaxMeta.
const maxPolicies = 2048

// addPolicy notes the policy of a mapping.
func (m *mmDump) addPolicy(v *procfs.VMA, p *kernelview.Mempolicy) {
	next := Policy{Start: uint64(v.Start), End: uint64(v.End), Mode: p.Mode, Flags: p.Flags, Nodes: p.Nodes, HasHome: p.Home >= 0}
	if next.HasHome {
		next.Home = p.Home
	}
	if k := len(m.policies) - 1; k >= 0 {
		last := &m.policies[k]
		if last.End == next.Start && last.Mode == next.Mode && last.Flags == next.Flags && last.HasHome == next.HasHome && last.Home == next.Home && slices.Equal(last.Nodes, next.Nodes) {
			last.End = next.End
			return
		}
	}
	m.policies = append(m.policies, next)
}

// checkPolicies checks those of an image.
func (s *Space) checkPolicies() error {
	last := uint64(0)
	for i := range s.MM.Policies {
		p := &s.MM.Policies[i]
		if p.Start >= p.End || p.Start < last || !pageAligned(p.Start|p.End, s.pageSize) || s.covered(arch.Addr(p.Start), arch.Addr(p.End)) == nil {
			return fmt.Errorf("the NUMA policy of %x-%x is for nothing, out of order or for no mapping", p.Start, p.End)
		}
		if err := object.CheckMempolicy(p.Mode, p.Flags, p.Nodes); err != nil || p.Home < 0 || p.Home >= object.MaxNodeWords*64 {
			return fmt.Errorf("the NUMA policy of %x-%x does not exist", p.Start, p.End)
		}
		last = p.End
	}
	return nil
}

// policyCalls adds the calls that set them: before there are any pages, which they place.
func (s *Space) policyCalls(b *tracee.Batch) {
	for i := range s.MM.Policies {
		p := &s.MM.Policies[i]
		mask, bits := object.NodeMask(p.Nodes, s.arch)
		b.Call(b.Sys().Mbind, p.Start, p.End-p.Start, uint64(p.Mode|p.Flags), mask, bits, 0).Note("NUMA policy of %x-%x", p.Start, p.End)
		if p.HasHome {
			b.Call(b.Sys().SetMempolicyHomeNode, p.Start, p.End-p.Start, uint64(p.Home), 0).Note("home node of %x-%x", p.Start, p.End)
		}
	}
}
