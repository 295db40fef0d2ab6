//go:build amd64

package cpuid

// Ask executes CPUID: leaf in EAX, sub in ECX (Intel SDM volume 2). In a virtual machine it costs tens of microseconds.
func Ask(leaf, sub uint32) (a, b, c, d uint32)
