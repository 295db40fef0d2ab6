// Package tasks keeps what makes a task a task: its place in the tree (pids, parents, groups, sessions), its
// registers, credentials, limits, scheduling and the other values that prctl(2) and its like set.
//
// forest.go plans, from numbers alone, which task must make which other in which order; everything else is one kind
// of state a file, with its dump and its restore side by side.
package tasks
