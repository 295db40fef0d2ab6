// Package signals keeps what signals and timers are to a process: actions, masks, alternate stacks, what is pending,
// interval and POSIX timers with the time that was left, and the way in which an interrupted system call goes on.
package signals
