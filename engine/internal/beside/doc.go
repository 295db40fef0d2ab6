// Package beside starts processes that stay beside a command and outlive it: the guard, which undoes what a dead command
// has left, and the mover, which pays for moves between cgroups before they are made.
//
// They are forked and execute nothing: a Go program takes milliseconds to start, a fork takes a fraction of one. What is
// forked from a program with many threads has only one of them and must not use Go's runtime (no allocation, no growing
// stack, no lock, which another thread may have held), so that all the two do is written as a few raw system calls
// (fork_unsafe.go). When the guard has work to do it executes the command's program anew ([Watch]).
//
// Neither keeps a descriptor of the command's but those that it needs and standard error, so that the reader of a
// pipeline sees its end when the command ends.
package beside
