// Cr-restore makes the process tree of an image.
package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"crpipe/cmd/internal/cli"
	"crpipe/engine"
)

type restore struct {
	cli.Common
	Input   string   `short:"i" placeholder:"FILE" help:"Read the image from FILE instead of standard input."`
	Output  string   `short:"o" placeholder:"FILE" help:"Write the ticket to FILE instead of standard output."`
	Frozen  bool     `help:"Leave the processes stopped, for cr-thaw to let them go on."`
	DryRun  bool     `short:"n" help:"Check the whole image, print what would be made, and make nothing."`
	Wait    bool     `help:"Stay until the root process ends, with the standard descriptors that it had outside given back, and end with its exit status."`
	PIDFile string   `name:"pid-file" placeholder:"FILE" help:"Write the pid of the root process to FILE."`
	Inherit []string `placeholder:"NAME=FD" sep:"none" help:"Give descriptor FD for the external file NAME of the image (pipe:[4711], /dev/pts/3, or stdin, stdout, stderr). May be repeated."`
	Changed []string `name:"allow-changed" placeholder:"PATTERN" sep:"none" help:"Accept that files whose paths match PATTERN have changed or grown since the dump. May be repeated."`
	TCP     string   `name:"tcp" enum:"keep,drop" default:"keep" help:"What becomes of TCP connections: keep, or drop (they come back reset)."`
	UserNS  bool     `name:"userns" help:"Make the processes in a new user and pid namespace, in which an ordinary user may choose their pids."`
	Verbose bool     `short:"v" help:"Say what is being done."`
	cli.ProgressFlags
}

func main() {
	engine.RunGuard()
	engine.UseHugePages()
	cli.Main("cr-restore", "Makes the processes of an image and writes a ticket that says what it made.", &restore{})
}

func (c *restore) Run(app *cli.App) error {
	switch {
	case c.Wait && c.Frozen:
		return cli.UsageError("--wait and --frozen exclude each other", "")
	case c.DryRun && (c.Wait || c.Frozen || c.PIDFile != ""):
		return cli.UsageError("--dry-run makes nothing: --wait, --frozen and --pid-file have no place beside it", "")
	}
	inner := engine.AdoptInner()
	switch {
	case c.UserNS && inner == nil:
		return c.runOuter(app)
	case inner != nil:
		if err := inner.Prepare(); err != nil {
			return err
		}
	}
	if err := engine.CheckLimits(); err != nil {
		return err
	}
	inherit, err := inherited(c.Inherit)
	if err != nil {
		return err
	}
	for _, pattern := range c.Changed {
		if err := engine.CheckPattern(pattern); err != nil {
			return cli.UsageError("--allow-changed "+pattern+": not a pattern", "put a backslash before a bracket that stands for itself")
		}
	}
	in, err := app.Input(c.Input, cli.Binary)
	if err != nil {
		return err
	}
	out, err := c.output(app)
	if err != nil {
		return err
	}
	var pidFile *cli.Output
	if c.PIDFile != "" && inner == nil {
		if pidFile, err = app.Output(c.PIDFile, cli.Public); err != nil {
			return err
		}
	}
	app.Verbose = c.Verbose
	if err := app.StartProgress(c.ProgressFlags, in.Count); err != nil {
		return err
	}
	var guardian *engine.Guardian
	o := engine.RestoreOptions{
		Frozen: c.Frozen, Wait: c.Wait, DryRun: c.DryRun, Inherit: inherit, AllowChanged: c.Changed, DropTCP: c.TCP == "drop", StdinTaken: c.Input == "" || c.Input == "-",
		Warn: app.Warn, Progress: func(p engine.Progress) { app.Progress(p.Phase, p.Pages) },
	}
	if c.DryRun {
		o.Plan = out
	}
	if inner == nil { // a namespace ends with its init, which is this process
		o.Guard = func() *engine.Guardian {
			guardian = engine.StartGuard(nil)
			return guardian
		}
	}
	if inner != nil {
		o.Groups = inner.Groups
	}
	o.Tell = func(made *engine.Restored) error {
		if c.Wait {
			app.HandOver()
		}
		return tell(made, out, pidFile)
	}
	made, err := engine.Restore(app.Context, in, o)
	if err != nil || c.DryRun {
		return err
	}
	err = complete(out, pidFile)
	if err == nil {
		err = engine.Failpoint("restore.committed")
	}
	if err != nil {
		// A status that says failed promises that nothing was made.
		return errors.Join(err, engine.Thaw(made.Ticket, engine.ThawOptions{Kill: true, Guard: guardian, Warn: app.Warn}))
	}
	if err := guardian.Clear(); err != nil {
		return err
	}
	if inner != nil {
		if err := inner.Done(made.Root); err != nil {
			return err // and the tree ends with its init
		}
	}
	switch {
	case !c.Wait && inner != nil:
		return inner.Stay()
	case !c.Wait:
		return nil
	}
	guardian.Dismiss()
	if err := app.ForwardSignals(made.Root); err != nil {
		return err
	}
	status, err := made.Wait()
	if err != nil {
		return err
	}
	return cli.ExitWith(cli.StatusOf(status))
}

// runOuter has another cr-restore make the tree in a new user and pid namespace.
func (c *restore) runOuter(app *cli.App) error {
	if c.Frozen {
		return cli.UsageError("--userns and --frozen exclude each other: a ticket means nothing outside of the new pid namespace", "")
	}
	if c.Output != "" && !c.DryRun {
		return cli.UsageError("--userns writes no ticket: it would mean nothing outside of the new pid namespace", "use --pid-file")
	}
	var tellPID func(int) error
	if c.PIDFile != "" {
		tellPID = func(pid int) error {
			file, err := app.Output(c.PIDFile, cli.Public)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(file, pid); err != nil {
				return err
			}
			return file.Commit()
		}
	}
	status, err := engine.RunInner(c.Wait, tellPID)
	if err != nil || status == 0 {
		return err
	}
	return cli.ExitWith(status)
}

// output opens what the ticket, or the plan, is written to: nil for none. Beside
// a process that writes to our standard output, and on a terminal that just
// wanted its job back, there is no place for a ticket.
func (c *restore) output(app *cli.App) (*cli.Output, error) {
	if c.DryRun {
		return app.Output(c.Output, cli.Text)
	}
	if c.UserNS || c.Output == "" && (c.Wait || !c.Frozen && cli.StdoutIsTerminal()) {
		return nil, nil
	}
	return app.Output(c.Output, cli.Binary)
}

// tell writes the ticket and the pid, which nobody can read to the end yet.
func tell(made *engine.Restored, ticket, pidFile *cli.Output) error {
	if ticket != nil {
		if err := made.Ticket.Write(ticket, cli.Producer("cr-restore")); err != nil {
			return err
		}
		if err := ticket.Sync(); err != nil {
			return err
		}
	}
	if pidFile == nil {
		return nil
	}
	if _, err := fmt.Fprintln(pidFile, made.Root); err != nil {
		return err
	}
	return pidFile.Sync()
}

// complete lets others have what tell has written.
func complete(outputs ...*cli.Output) error {
	for _, out := range outputs {
		if out == nil {
			continue
		}
		if err := out.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// inherited takes the flags --inherit NAME=FD apart. A name may hold an equals
// sign, a descriptor none.
func inherited(flags []string) (map[string]int, error) {
	out := map[string]int{}
	for _, flag := range flags {
		i := strings.LastIndex(flag, "=")
		if i <= 0 {
			return nil, cli.UsageError("--inherit "+flag+": not of the form NAME=FD", "")
		}
		fd, err := strconv.Atoi(flag[i+1:])
		if err != nil || fd < 0 {
			return nil, cli.UsageError("--inherit "+flag+": not a descriptor", "open it in the shell: --inherit 'pipe:[4711]=5' 5<file")
		}
		name := flag[:i]
		if _, twice := out[name]; twice {
			return nil, cli.UsageError("--inherit "+name+": given twice", "")
		}
		out[name] = fd
	}
	return out, nil
}
