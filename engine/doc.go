// Package engine freezes, dumps, restores and thaws trees of processes.
//
// # Dump
//
// [Dump] opens the view into the kernel first, because that may take time, and only then touches the tree:
//
//  1. takeHold freezes the tree (or takes over a ticket's). Where that is a frozen cgroup of version 2 and the view knows
//     registers nobody attaches to it (still.go); elsewhere every thread is brought into a ptrace stop. Nothing is
//     executed in the tree from here to the end.
//  2. lookAtTree reads everything but the bulk, from outside: tree.go what /proc and the kernel say of every task,
//     namespaces, then for each process what the families say of its files, memory and signals. Each object is met
//     once and gets one record. Whatever cannot be kept is refused; all refusals are known before the first byte.
//  3. copyTree writes the records, then the contents of memory, pipes and deleted files. Of a small tree it only copies
//     these contents; that is written when the tree goes on.
//     Before the image is ended it is proved that nothing ran meanwhile, which only a ptrace stop would have prevented.
//  4. Only when the stream is complete and committed is the tree let go, or with Kill ended.
//
// # Restore
//
// [Restore] reads all records up to the contents into a plan and checks it (restore.go); births.go and release.go act:
//
//  1. makeObjects opens every open file, in the tree's mount namespace, into a pool of descriptors.
//  2. spawn starts a tiny first task that inherits the pool and executes batches of system calls (package tracee); it
//     makes the roots of the tree, each generation makes the next, threads too, in one batch (tasks.PlanForest says who makes
//     whom and what they share), and stand-ins for dead leaders leave.
//  3. Every address space is laid out by a process that has it; the contents are streamed in from outside.
//  4. The end of the stream is verified. Then descriptors, credentials, timers and the like are set, what takes rights
//     away or ticks last, and sleepers are put back to sleep.
//  5. The arena is unmapped, registers are set, and all tasks are let go at once.
//
// Until that moment any error, or the death of this process, ends everything that was made.
package engine
