//go:build !amd64

package main

// cloneParked is written for amd64 only: -38 is ENOSYS.
func cloneParked(*cloneArgs, uintptr) int64 { return -38 }
