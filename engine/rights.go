package engine

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
	"crpipe/engine/tasks"
)

const userNSHint = "use cr-restore --userns, give cr-restore CAP_CHECKPOINT_RESTORE, or run it as root"

// checkRights refuses what needs rights that this cr-restore lacks: to choose the pids of new processes, and to give threads the ids
// that they had.
func (rs *restoration) checkRights() error {
	have := &rs.initial.creds
	can := func(capability int) bool { return have.Effective&(1<<capability) != 0 }
	if !can(unix.CAP_CHECKPOINT_RESTORE) && !can(unix.CAP_SYS_ADMIN) {
		return &object.Lacking{What: "making processes with the pids that they had needs CAP_CHECKPOINT_RESTORE", Do: userNSHint}
	}
	uids, gids, err := idMaps()
	if err != nil {
		return err
	}
	setgroups, err := os.ReadFile("/proc/self/setgroups")
	denied := err == nil && strings.TrimSpace(string(setgroups)) == "deny"
	for _, p := range rs.procs {
		for _, t := range p.threads {
			if err := checkIDs(&t.state.Creds, have, can, uids, gids, denied); err != nil {
				return &object.Error{PID: int(p.state.PID), Comm: p.threads[0].state.Comm, FD: -1, Err: err}
			}
		}
	}
	return nil
}

func checkIDs(c, have *tasks.Credentials, can func(int) bool, uids, gids []idRange, denied bool) error {
	const do = "restore it as the user that it ran as, or as root"
	if !slices.Equal(c.UID, have.UID) && !can(unix.CAP_SETUID) || !slices.Equal(c.GID, have.GID) && !can(unix.CAP_SETGID) {
		return &object.Lacking{What: fmt.Sprintf("it ran as user %v, group %v; cr-restore runs as user %v, group %v", c.UID, c.GID, have.UID, have.GID), Do: do}
	}
	for _, id := range c.UID {
		if !mapped(uids, id) {
			return &object.Lacking{What: fmt.Sprintf("user %d is not there in this user namespace", id), Do: do}
		}
	}
	for _, id := range c.GID {
		if !mapped(gids, id) {
			return &object.Lacking{What: fmt.Sprintf("group %d is not there in this user namespace", id), Do: do}
		}
	}
	if !slices.Equal(c.Groups, have.Groups) && (denied || !can(unix.CAP_SETGID)) {
		return &object.Lacking{What: fmt.Sprintf("it had the supplementary groups %v; cr-restore has %v and may not change them", c.Groups, have.Groups), Do: do}
	}
	return nil
}

// idRange is a line of uid_map: from is inside of the namespace.
type idRange struct{ from, count uint64 }

func mapped(ranges []idRange, id uint32) bool {
	return slices.ContainsFunc(ranges, func(r idRange) bool { return uint64(id) >= r.from && uint64(id)-r.from < r.count })
}

// idMaps reads which users and groups there are in the own user namespace (user_namespaces(7)).
func idMaps() (uids, gids []idRange, err error) {
	read := func(path string) ([]idRange, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var out []idRange
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 3 {
				return nil, fmt.Errorf("reading %s: unexpected line %q", path, line)
			}
			from, err1 := strconv.ParseUint(f[0], 10, 64)
			count, err2 := strconv.ParseUint(f[2], 10, 64)
			if err1 != nil || err2 != nil {
				return nil, fmt.Errorf("reading %s: unexpected line %q", path, line)
			}
			out = append(out, idRange{from, count})
		}
		return out, nil
	}
	if uids, err = read("/proc/self/uid_map"); err == nil {
		gids, err = read("/proc/self/gid_map")
	}
	return uids, gids, err
}
