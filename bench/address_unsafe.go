package main

import "unsafe"

// address is where a mapping is, for the reader in another process.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mem))) }
