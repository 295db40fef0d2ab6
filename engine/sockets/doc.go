// Package sockets holds the kinds of open files that are sockets, a file or more for each family, on one base: what all sockets
// have (socket.go) and the options that getsockopt(2) tells and setsockopt(2) takes (options.go).
//
// What waits in a socket is read from the kernel's memory (kernelview): every other look at it takes it, or changes how its owner
// will.
package sockets
