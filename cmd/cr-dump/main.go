// Cr-dump writes the image of a process tree.
package main

import (
	"os"
	"time"

	"crpipe/cmd/internal/cli"
	"crpipe/engine"
)

type dump struct {
	cli.Common
	guardian  *engine.Guardian
	view      *engine.View
	PIDs      []int         `arg:"" optional:"" name:"pid" help:"Dump each PID with all its descendants; without one, what the ticket on standard input names."`
	Input     string        `short:"i" placeholder:"FILE" help:"Read the ticket from FILE instead of standard input."`
	Output    string        `short:"o" placeholder:"FILE" help:"Write the image to FILE instead of standard output; it appears when it is complete."`
	Kill      bool          `help:"End the processes once the whole image has been written."`
	DryRun    bool          `short:"n" help:"Print what would be dumped, or why it cannot be, and write no image."`
	External  []string      `placeholder:"NAME" sep:"none" help:"Take what /proc shows under NAME (pipe:[4711], /dev/pts/3, or stdin, stdout, stderr) for something outside the tree, to be given back at restore. May be repeated."`
	Container bool          `help:"The tree is a whole container: refuse whatever it shares with the outside, by the counts in the kernel, unless --external names it."`
	IPC       []string      `name:"ipc" placeholder:"WHAT" sep:"none" help:"Also take a System V object of the shared IPC namespace: shm:, sem: or msg: with an id or 0xKEY, or all. May be repeated."`
	TCP       string        `name:"tcp" enum:"keep,drop,listen-only" default:"keep" help:"What becomes of TCP connections: keep (they go on in the restored processes), drop (they come back reset) or listen-only (refuse a tree that has one)."`
	Freezer   string        `enum:",v2,v1,sigstop" default:"" placeholder:"WAY" help:"Stop by v2 or v1 (the cgroup freezers) or sigstop instead of the best that works."`
	Source    string        `enum:",bpf,classical" default:"" placeholder:"SOURCE" help:"Learn what only the kernel knows by bpf (root; nothing is executed in the processes) or the classical way (as an ordinary user) instead of the best that works."`
	Timeout   time.Duration `default:"10s" help:"Give up and let everything go on when it does not stand still in time (10s)."`
	Verbose   bool          `short:"v" help:"Say what is being done."`
	cli.ProgressFlags
}

func main() {
	engine.RunGuard()
	command := &dump{guardian: engine.StartGuard(os.Args[1:]), view: engine.StartView()}
	cli.Main("cr-dump", "Writes the image of a process tree and leaves the tree as it found it.", command)
}

func (c *dump) Run(app *cli.App) error {
	if err := cli.CheckPIDs(c.PIDs); err != nil {
		return err
	}
	if len(c.PIDs) > 0 && c.Input != "" {
		return cli.UsageError("name either processes or, with -i, a ticket", "")
	}
	if c.Kill && c.DryRun {
		return cli.UsageError("--kill and --dry-run exclude each other", "")
	}
	for _, name := range c.IPC {
		if err := engine.CheckIPC(name); err != nil {
			return cli.UsageError("--ipc: "+err.Error(), "")
		}
	}
	if err := engine.CheckLimits(); err != nil {
		return err
	}
	o := engine.DumpOptions{
		PIDs: c.PIDs, Kill: c.Kill, Freezer: c.Freezer, Source: c.Source, Timeout: c.Timeout, External: c.External, Container: c.Container, IPC: c.IPC, TCP: c.TCP,
		DryRun: c.DryRun, Guard: c.guardian, View: c.view, Warn: app.Warn, Progress: func(p engine.Progress) { app.Progress(p.Phase, p.Pages) },
	}
	content := cli.Binary
	if c.DryRun {
		content = cli.Text
	}
	out, err := app.Output(c.Output, content)
	if err != nil {
		return err
	}
	o.Plan = out
	if c.Kill { // otherwise the disk need not be waited for while the tree stands still
		o.Commit = out.Commit
	}
	app.Verbose = c.Verbose
	if err := app.StartProgress(c.ProgressFlags, out.Count); err != nil {
		return err
	}
	if len(c.PIDs) == 0 {
		in, err := app.Input(c.Input, cli.Binary)
		if err != nil {
			return err
		}
		if o.Ticket, err = engine.ReadTicket(in); err != nil {
			return err
		}
	}
	return engine.Dump(app.Context, out, o)
}
