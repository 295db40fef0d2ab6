// Package arch describes processor architectures: register sets, the system call ABI, the code that
// runs inside a task, and what the kernel does with an interrupted system call. There is one value
// of type [Arch] per architecture. It is chosen by the name in a stream's header, never by
// runtime.GOARCH, so any host can look at any image; only [Native] asks what this machine is.
//
// The package is pure: no system call, no unsafe, any GOOS. Everything works on bytes that somebody
// else read or will write, and those bytes may come from a hostile stream. A blob is therefore
// checked once with [Arch.CheckPRStatus], and every accessor after that may rely on its length.
//
// # Porting
//
// A port is one value beside amd64's, in files that begin with its name (arm64_regs.go, not
// regs_arm64.go, which other hosts would not compile):
//
//  1. The register sets in the order in which they are saved, NT_PRSTATUS first, and the accessors on it.
//  2. The system call numbers (NAME_sysnum.go).
//  3. The restart rule: what a stopped task's registers show of an interrupted call, and how it is rewound. The list of calls that
//     return EINTR on a mere stop is shared (restart.go).
//  4. The routine: the loop over a table of calls that routine.go specifies, in at most one page, position-independent, and the stub
//     that is executed first.
//  5. The signal frame and the vdso's names.
//  6. Run is set to nil, and the tests of engine/internal/tracee pass on that machine.
package arch
