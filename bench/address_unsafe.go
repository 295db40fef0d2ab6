package main

import (
	"sync/atomic"
	"unsafe"
)

// address is where a mapping is, for the reader in another process.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mem))) }

// words is a page-aligned mapping as counters.
func words(mem []byte) []atomic.Uint64 {
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}
