package engine

import (
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// identityCalls adds what a new process does about what its children inherit and nobody can give them later: its login
// uid and its session keyring. x is nil for the first task, which takes the login uid of the image's first process.
func (rs *restoration) identityCalls(b *tracee.Batch, x *tasks.Birth) {
	first := rs.procs[0].state.LoginUID
	if x == nil {
		if first != rs.initial.login {
			tasks.LoginCalls(b, first)
		}
		return
	}
	if x.Ghost() || x.Thread || x.Process.Zombie {
		return
	}
	login, ring := first, stream.Ref{}
	if c := x.Creator; c != nil && !c.Ghost() && !c.Process.Zombie {
		login, ring = c.Process.LoginUID, c.Process.Keyring
	}
	if want := x.Process.LoginUID; want != login {
		tasks.LoginCalls(b, want)
	}
	if want := x.Process.Keyring; want != ring && !want.IsZero() {
		k, err := object.State[tasks.Keyring](rs.plan, want)
		if err != nil || ring.IsZero() && k.Serial == rs.initial.keyring && k.Lives() { // checkProcess has seen the error
			return
		}
		k.JoinCalls(b)
	}
}

// keyCalls adds what a thread does about its keyrings once it has its final user.
func (rs *restoration) keyCalls(b *tracee.Batch, t *thread) {
	t.state.Keys.Calls(b, rs.arch)
	p := t.process
	if t != p.threads[0] || p.state.Keyring.IsZero() {
		return
	}
	if c := p.birth.Creator; c != nil && !c.Ghost() && !c.Process.Zombie && c.Process.Keyring == p.state.Keyring {
		return
	}
	if k, err := object.State[tasks.Keyring](rs.plan, p.state.Keyring); err == nil {
		k.LinkCalls(b)
	}
}
