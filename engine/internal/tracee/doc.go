// Package tracee drives other tasks by ptrace: it stops those that run and makes new ones that
// execute batches of system calls.
//
// A [Tracer] is one operating system thread that owns all its tracees; the kernel accepts requests
// from no other. Every method may be called from any goroutine and runs on that thread; many small
// ones in a row belong in one [Tracer.Do], which saves the change of threads. An Arena, its batches
// and its tasks are for one goroutine at a time.
//
// # Existing tasks
//
// [Tracer.StopAll] seizes and interrupts; [Tracer.StopTree] does so until no new task appears.
// Nothing is executed in such a task. A signal that arrives in between is delivered, not lost; a
// task in job control stop stays in it. [Tracer.Rewind] makes the stop invisible to a system call
// that returns EINTR for it, and [Tracer.Detach] lets go. When the tracer dies the kernel detaches
// by itself.
//
// # New tasks
//
// An [Arena] is a memfd that the restorer and every task map: the routine (see package arch) and a
// slot for each task, with the table of calls and their data. [Tracer.Spawn] starts the first task,
// the stub, stopped and able to execute batches. A [Batch] is built with [Batch.Call] and executed
// by [Tracer.Run], for any number of tasks at once: all are continued, then all are waited for, so
// that a round trip costs one PTRACE_CONT and one wait4 a task whatever the number of calls.
// [Batch.Clone] makes children and threads; each is attached by CLONE_PTRACE with the options of
// its maker, PTRACE_O_EXITKILL among them, so that a generation of children is one batch and none
// survives the tracer.
//
// At the end come, in this order: [Tracer.Block], for system calls that shall be found interrupted;
// [Tracer.CallSteps], for calls after which there is no routine any more (the munmap of the arena);
// [Tracer.SetFinal]; and [Tracer.Commit]. Until that [Tracer.KillAll] undoes everything.
package tracee
