package engine

import (
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/terminals"
)

// foreground is the terminal of the caller's, which a restored job has taken over, as the job of a shell does.
type foreground struct {
	fd    *sys.FD
	group int   // of the job, in the caller's pid namespace; 0: it is in the caller's own
	roots []int // children of the caller that are in it
}

// showTerminals gives the terminals that stand in for those of the image the modes of that, and the jobs their foreground. It is the
// last thing before the tree runs; hideTerminals undoes it.
func (rs *restoration) showTerminals(made *Restored) (err error) {
	defer func() {
		if err != nil {
			rs.hideTerminals(made)
		}
	}()
	if rs.o.Frozen {
		return nil
	}
	for _, o := range rs.outside {
		if !o.InForeground() {
			continue // a job in the background must not disturb who is not
		}
		// In the foreground or not, this may act; and Ctrl-Z is for the job: Wait hears of it.
		signal.Ignore(unix.SIGTTOU, unix.SIGTSTP)
		if err := o.SetModes(); err != nil {
			return err
		}
		f := &foreground{fd: o.FD}
		for _, p := range rs.procs {
			if p.state.Zombie || p.state.Group != o.Group {
				continue
			}
			if p.state.Parent == 0 {
				f.roots = append(f.roots, p.task.Pid)
			}
			if p.state.PID == o.Group && !p.state.OutsideGroup {
				f.group = p.task.Pid
			}
		}
		if o.Session != 0 {
			f.group = 0 // its leader has done that
		} else if f.group != 0 {
			if err := terminals.PutForeground(f.fd, f.group); err != nil {
				return err
			}
		}
		made.foreground = f
	}
	return nil
}

func (rs *restoration) hideTerminals(made *Restored) {
	for _, o := range rs.outside {
		o.Undo()
	}
	_ = made.foreground.takeBack() // another error is under way
}

// changed tells the job that its window is another one.
func (f *foreground) changed() {
	if f == nil {
		return
	}
	for _, pid := range f.roots { // not waited for yet: the numbers are theirs
		if pid > 0 && (f.group == 0 || pid == f.group) {
			target := pid
			if f.group != 0 {
				target = -pid
			}
			_ = unix.Kill(target, unix.SIGWINCH) // or it has ended
		}
	}
}

// takeBack puts the caller's own group in the foreground again, unless somebody else is there by now.
func (f *foreground) takeBack() error {
	if f == nil || f.group <= 0 {
		return nil
	}
	now, err := unix.IoctlGetUint32(f.fd.Int(), unix.TIOCGPGRP)
	if err != nil || int(now) != f.group {
		return nil // the terminal has hung up, or is another's
	}
	return terminals.PutForeground(f.fd, unix.Getpgrp())
}

// give puts the job in the foreground, if the caller is there.
func (f *foreground) give() error {
	if f == nil || f.group <= 0 {
		return nil
	}
	now, err := unix.IoctlGetUint32(f.fd.Int(), unix.TIOCGPGRP)
	if err != nil || int(now) != unix.Getpgrp() {
		return nil
	}
	return terminals.PutForeground(f.fd, f.group)
}

// Wait waits for the end of the root process. When it was put in the foreground of the caller's terminal and job control stops it, the
// caller stops itself, for its shell to see, and lets it go on when it is continued.
func (made *Restored) Wait() (unix.WaitStatus, error) {
	f := made.foreground
	options := unix.WALL
	if f != nil {
		options |= unix.WUNTRACED
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(made.Root, &status, options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("waiting for process %d: %w", made.Root, err)
		case status.Stopped():
			if err := f.stopToo(made.Root); err != nil {
				return 0, err
			}
		default:
			return status, f.takeBack()
		}
	}
}

// stopToo stops this process until its shell continues it, and then the job.
func (f *foreground) stopToo(root int) error {
	if err := f.takeBack(); err != nil {
		return err
	}
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, unix.SIGCONT)
	defer signal.Stop(continued)
	if err := unix.Kill(os.Getpid(), unix.SIGSTOP); err != nil {
		return fmt.Errorf("stopping: %w", err)
	}
	<-continued // the signal may stop this thread a moment later
	if err := f.give(); err != nil {
		return err
	}
	target := root
	if f.group > 0 {
		target = -f.group
	}
	if target == 0 || target == -1 {
		return nil
	}
	if err := unix.Kill(target, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("continuing process %d: %w", root, err)
	}
	return nil
}
