// Package cpuid has the instruction by which x86 processors tell what they are.
package cpuid
