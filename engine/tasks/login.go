package tasks

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// NoLogin is the login uid of who has not logged in.
const NoLogin = ^uint32(0)

// DumpLogin returns the user that a process has logged in as, audit's name for its tasks (/proc/PID/loginuid). The number
// of the login session that goes with it is given out by the kernel and cannot be asked for.
func DumpLogin(d *object.Dumper, p *object.Process) uint32 {
	lead := look(looker{d, p.Leader()}, p.Leader().View.LoginUID, "login uid")
	for _, t := range p.Threads {
		own, _ := t.View.LoginUID.Get()
		looker{d, t}.refuse(own != lead, "has a login uid of its own")
	}
	return lead
}

// LoginCalls adds the calls by which a task takes a login uid, which only it itself may.
func LoginCalls(b *tracee.Batch, uid uint32) {
	n := b.Sys()
	at := unix.AT_FDCWD
	text := []byte("-1")
	if uid != NoLogin {
		text = strconv.AppendUint(nil, uint64(uid), 10)
	}
	const do = "login uid %d: to change it needs CAP_AUDIT_CONTROL, audit in the kernel, and /proc"
	fd := b.Call(n.Openat, at, "/proc/thread-self/loginuid", unix.O_WRONLY|unix.O_CLOEXEC, 0).Note(do, int32(uid))
	b.Call(n.Write, fd, text, len(text)).Note(do, int32(uid))
	b.Call(n.Close, fd)
}

// OwnLogin is the caller's login uid.
func OwnLogin() uint32 {
	text, err := os.ReadFile("/proc/thread-self/loginuid")
	if err != nil {
		return NoLogin // a kernel without audit
	}
	uid, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return NoLogin
	}
	return uint32(uid)
}
