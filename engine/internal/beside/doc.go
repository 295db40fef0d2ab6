// Package beside starts a process that stays beside a command and outlives it: the guard, which undoes what a dead command
// has left, and until then makes its moves between cgroups cheap.
//
// It is forked and executes nothing: a Go program takes milliseconds to start, a fork a fraction of one. What is forked from
// a program with many threads has only one of them and must not use Go's runtime (no allocation, no growing stack, no lock,
// which another thread may have held), so that all it does is written as a few raw system calls (fork_unsafe.go). When it has
// work to do it executes the command's program anew ([Orphaned]).
//
// It keeps no descriptor of the command's but those that it needs and standard error, so that the reader of a pipeline sees
// its end when the command ends. Its memory is its own: whoever is short of memory and ends the command does not end it too.
package beside
