package sys

// KcmpType says which kernel object kcmp(2) compares.
type KcmpType int

// The types of kcmp(2), include/uapi/linux/kcmp.h.
const (
	KcmpFile     KcmpType = 0 // open file descriptions; idx1 and idx2 are descriptor numbers
	KcmpVM       KcmpType = 1 // address spaces
	KcmpFiles    KcmpType = 2 // descriptor tables
	KcmpFS       KcmpType = 3 // root, cwd, umask
	KcmpSighand  KcmpType = 4 // tables of signal actions
	KcmpIO       KcmpType = 5 // I/O contexts; two tasks that have none compare as the same
	KcmpSysvsem  KcmpType = 6 // lists of System V semaphore undo
	KcmpEpollTFD KcmpType = 7 // a file against the target of an epoll item, see KcmpEpoll
)

// Order is what kcmp(2) says of two objects. The order of unequal objects is
// arbitrary but stable while both live, so it can sort.
type Order int

// The results of kcmp(2).
const (
	Same      Order = 0
	Less      Order = 1
	Greater   Order = 2
	Unordered Order = 3
)

func (t KcmpType) String() string {
	names := [...]string{"file", "vm", "files", "fs", "sighand", "io", "sysvsem", "epoll-tfd"}
	if t < 0 || int(t) >= len(names) {
		return "unknown"
	}
	return names[t]
}
