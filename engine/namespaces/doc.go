// Package namespaces keeps the namespaces of a tree. A namespace that the tree shares with the caller of cr-dump becomes
// that of the caller of cr-restore; one of its own is made again, or refused by name.
package namespaces
