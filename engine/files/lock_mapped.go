package files

import (
	"fmt"
	"os"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// A mapping holds the open file through which it was made, and so the locks that belong to that file (flock(2), open file
// description locks) and its lease live on when every descriptor has been closed (mmap(2), fs/locks.c). No /proc file of
// the process shows such a lock: the kernel view does, or /proc/locks, which does not say through which open file it was
// taken. A lock by flock(2) is kept with the mapped file (memory.File) where all mappings of it are of that one open file; others are
// refused.

// CheckLocks refuses locks that belong to open files which only mappings hold. It comes after the tables and the memory
// of all processes.
func CheckLocks(d *object.Dumper) error {
	ix, err := indexOf(d)
	if err != nil {
		return err
	}
	for _, m := range d.MappedLocks {
		if len(ix.holders[m.File]) > 0 {
			continue // its table has the locks, or has refused them
		}
		if m.Flock != 0 && m.Keep != nil && m.Keep() {
			continue
		}
		name := fmt.Sprintf("%x-%x", uint64(m.Start), uint64(m.End))
		if link, err := os.Readlink(procfs.Path(m.Process.Leader().TID, "map_files/"+name)); err == nil {
			name = link
		}
		d.Refuse(m.Process.Error("mapping of "+name, mappedLock("a lock or lease that only a mapping keeps, its descriptor being closed, cannot be checkpointed, unless it is one by flock of a file that is mapped from nowhere else")))
	}
	if !d.LocksUnknown {
		return nil
	}
	return ix.checkAllLocks(d)
}

func mappedLock(what string) error {
	return &object.Unsupported{What: what, Do: "give up the lock (flock LOCK_UN) before the descriptor is closed, or keep that open"}
}

// checkAllLocks does what CheckLocks does where the mappings do not tell: a lock, of whomever, on a file that a process
// of the tree maps, and that no descriptor of the tree shows, may be one of those. To list all locks the kernel waits for
// all processors, 10 ms here.
func (ix *index) checkAllLocks(d *object.Dumper) error {
	all, err := fileLocks()
	if err != nil || len(all) == 0 {
		return err
	}
	others := map[string]fileLock{}
	for _, l := range all {
		if !ix.locked[l.file] {
			others[l.file] = l
		}
	}
	if len(others) == 0 {
		return nil
	}
	for _, p := range d.Processes {
		if p.Zombie {
			continue
		}
		maps, err := procfs.ReadMaps(p.Leader().TID)
		if err != nil {
			return err
		}
		told := map[string]bool{}
		for i := range maps {
			v := &maps[i]
			file := lockedFile(v.Major, v.Minor, v.Inode)
			l, locked := others[file]
			if !locked || v.Inode == 0 || told[file] {
				continue
			}
			told[file] = true
			if l.kind == "FLOCK" && livesOutside(d, l.pid) {
				continue // who has taken it still has it, as far as anybody can tell
			}
			d.Refuse(p.Error("mapping of "+v.Path, mappedLock("there is a lock on the file that no descriptor of the tree shows; if the mapping keeps it, it cannot be checkpointed")))
		}
	}
	return nil
}

func livesOutside(d *object.Dumper, pid int) bool {
	for _, p := range d.Processes {
		if p.PID == pid {
			return false
		}
	}
	st, err := procfs.ReadStat(pid)
	return err == nil && st.State != 'Z'
}
