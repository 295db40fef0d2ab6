package tasks

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"crpipe/engine/object"
)

// DumpAutogroup returns the nice value of the autogroup of a process, sched(7). A session makes one, so it is the tree's
// only where the session is.
func DumpAutogroup(p *object.Process, s *Process) (int32, error) {
	nice, ok := p.View.AutogroupNice.Get()
	if !ok {
		return 0, p.Error("", &object.Lacking{What: "the kernel view does not know the nice value of its autogroup"})
	}
	if s.OutsideSession {
		return 0, nil
	}
	return nice, nil
}

// SetAutogroup writes /proc/PID/autogroup where it differs.
func SetAutogroup(pid int, nice int32) error {
	path := "/proc/" + strconv.Itoa(pid) + "/autogroup"
	have, err := os.ReadFile(path) // "/autogroup-N nice M", nothing where there is none
	if errors.Is(err, fs.ErrNotExist) {
		have, err = nil, nil
	}
	if err != nil {
		return err
	}
	_, now, found := bytes.Cut(bytes.TrimSpace(have), []byte(" nice "))
	if string(now) == strconv.Itoa(int(nice)) || !found && nice == 0 {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(int(nice))), 0); err != nil {
		return &object.Lacking{What: fmt.Sprintf("setting the nice value of its autogroup to %d", nice), Err: err,
			Do: "it needs a kernel with CONFIG_SCHED_AUTOGROUP, and a lower value CAP_SYS_NICE"}
	}
	return nil
}
