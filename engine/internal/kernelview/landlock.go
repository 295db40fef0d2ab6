package kernelview

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Landlock keeps a thread's domain in the part of cred.security that it has
// asked the kernel for at boot. How far in is a variable of the kernel, not of
// its types, so it is found by calibration: a helper restricts itself.

var (
	fCredSecurity = want("cred.security")
	fLandDomain   = want("landlock_cred_security.domain")
	fLandLayers   = want("landlock_ruleset.num_layers")
)

// securitySpan is how much of cred.security is looked through: more than any
// combination of security modules takes before Landlock's part.
const securitySpan = 128

// noLandlock is the value of factLandlock on a kernel without Landlock.
const noLandlock = ^uint64(0)

func (c *calibration) landlock() error {
	const handleExecute = 1 // LANDLOCK_ACCESS_FS_EXECUTE
	l := c.v.l
	if !l.has(fCredSecurity) {
		return errNoField
	}
	stack, err := c.stack()
	if err != nil {
		return err
	}
	if err := c.h.write(stack, binary.NativeEndian.AppendUint64(nil, handleExecute)); err != nil {
		return err
	}
	ruleset, err := c.h.call(unix.SYS_LANDLOCK_CREATE_RULESET, stack, 8, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) { // not built, or not switched on
		l.facts[factLandlock] = fact{known: true, value: noLandlock}
		return nil
	}
	if err != nil {
		return nil
	}
	if !l.has(fLandDomain) || !l.has(fLandLayers) {
		return errNoField
	}
	if _, err := c.h.call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil
	}
	// Twice, so that the number of layers in what the word leads to tells it from any other.
	candidates := map[int]bool{}
	before, err := c.security()
	if err != nil {
		return err
	}
	for i := 0; i+8 <= len(before); i += 8 {
		candidates[i] = binary.NativeEndian.Uint64(before[i:]) == 0
	}
	for layers := uint64(1); layers <= 2; layers++ {
		if _, err := c.h.call(unix.SYS_LANDLOCK_RESTRICT_SELF, uint64(ruleset), 0); err != nil {
			return nil
		}
		after, err := c.security()
		if err != nil {
			return err
		}
		for i := range candidates {
			domain := binary.NativeEndian.Uint64(after[i:])
			b, err := c.v.mem.peek(domain, l.span["landlock_ruleset"])
			if err != nil {
				delete(candidates, i)
				continue
			}
			if n, ok := l.uint(b, fLandLayers); !ok || n != layers || !candidates[i] {
				delete(candidates, i)
			}
		}
	}
	if len(candidates) == 1 {
		for i := range candidates {
			l.facts[factLandlock] = fact{known: true, value: uint64(i) - l.off(fLandDomain)}
		}
	}
	return nil
}

// stack is an address in the helper's stack, below what it uses.
func (c *calibration) stack() (uint64, error) {
	start, err := c.word(fTMM, fMStartStack)
	return start&^0xf - 2048, err
}

// security reads the beginning of cred.security of the helper.
func (c *calibration) security() ([]byte, error) {
	b, err := c.asleep()
	if err != nil {
		return nil, err
	}
	cred, ok := c.v.l.uint(b, fTCred)
	if !ok {
		return nil, errNoField
	}
	cr, err := c.v.mem.peek(cred, c.v.l.span["cred"])
	if err != nil {
		return nil, err
	}
	at, ok := c.v.l.uint(cr, fCredSecurity)
	if !ok {
		return nil, errNoField
	}
	return c.v.mem.peek(at, securitySpan)
}

// landlocked tells, by the address of credentials, whether they are in a domain.
func (v *bpfView) landlocked(creds map[uint64][]byte) (map[uint64]Maybe[bool], error) {
	at := v.l.facts[factLandlock]
	out := make(map[uint64]Maybe[bool], len(creds))
	if !at.known {
		return out, nil
	}
	if at.value == noLandlock {
		for a := range creds {
			out[a] = Is(false)
		}
		return out, nil
	}
	var places []uint64
	of := map[uint64]uint64{}
	for a, b := range creds {
		if p, ok := v.l.uint(b, fCredSecurity); ok && p != 0 {
			of[a] = p + at.value
			places = append(places, p+at.value)
		}
	}
	parts, err := v.gatherMap(places, v.l.span["landlock_cred_security"])
	if err != nil {
		return nil, err
	}
	for a, p := range of {
		if domain, ok := v.l.uint(parts[p], fLandDomain); ok {
			out[a] = Is(domain != 0)
		}
	}
	return out, nil
}
