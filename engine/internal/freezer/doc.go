// Package freezer stops whole trees of processes and lets them go on without
// their noticing.
//
// There are three ways to stop a tree, tried in this order:
//
//   - v2: the freezer of cgroup version 2 (cgroup.freeze,
//     Documentation/admin-guide/cgroup-v2.rst). A frozen task can be killed and
//     traced.
//   - v1: the freezer controller of version 1 (freezer.state). A frozen task
//     can neither be killed nor stopped by ptrace before it is thawed.
//   - sigstop: SIGSTOP to each process. The tree's parents see it (SIGCHLD,
//     waitpid with WUNTRACED), which nothing can prevent.
//
// With the first two, the cgroup that the tree is in is frozen when nothing
// else is in it. Otherwise a transient cgroup is made below each cgroup that
// holds some of the tree, and the tasks are moved into it. Being below it keeps
// every limit of the former cgroup in force, and makes the way back readable
// from the path alone: whatever is in A/crpipe-ID belongs in A. So undoing
// needs no list that could be incomplete when somebody was killed half-way.
//
// Letting go is the delicate half. An interrupted epoll_wait, semop,
// rt_sigtimedwait or msgrcv returns EINTR to the program although no signal
// came, whichever way it was stopped. So the thaw first holds every thread in
// a ptrace stop, sets such calls back (tracee), and only then lets them run.
// Where the caller can tell from the outside which threads are in such calls
// (Interrupted), and version 2 holds the tree, only those are held.
package freezer
