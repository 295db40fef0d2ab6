//go:build amd64

package main

//go:noescape
func cloneParked(args *cloneArgs, size uintptr) (pid int64)
