// Cr-freeze stops process trees and says on standard output what it stopped.
package main

import (
	"errors"
	"os"
	"time"

	"crpipe/cmd/internal/cli"
	"crpipe/engine"
)

type freeze struct {
	cli.Common
	guardian *engine.Guardian
	PIDs     []int         `arg:"" optional:"" name:"pid" help:"Stop each PID with all its descendants."`
	Cgroup   string        `short:"g" placeholder:"CGROUP" help:"Stop everything in CGROUP, a directory of the cgroup file system."`
	Output   string        `short:"o" placeholder:"FILE" help:"Write the ticket to FILE instead of standard output."`
	Freezer  string        `enum:",v2,v1,sigstop" default:"" placeholder:"WAY" help:"Stop by v2 or v1 (the cgroup freezers) or sigstop instead of the best that works."`
	Timeout  time.Duration `default:"10s" help:"Give up and let everything go on when it does not stand still in time (10s)."`
}

func main() {
	engine.RunGuard()
	command := &freeze{guardian: engine.StartGuard(os.Args[1:])}
	cli.Main("cr-freeze", "Stops process trees and writes a ticket that says what it stopped.", command)
}

func (c *freeze) Run(app *cli.App) error {
	if (len(c.PIDs) == 0) == (c.Cgroup == "") {
		return cli.UsageError("name what to stop: either processes or, with -g, a cgroup", "")
	}
	if err := cli.CheckPIDs(c.PIDs); err != nil {
		return err
	}
	if err := engine.CheckLimits(); err != nil {
		return err
	}
	out, err := app.Output(c.Output, cli.Binary)
	if err != nil {
		return err
	}
	ticket, err := engine.Freeze(engine.FreezeOptions{
		PIDs: c.PIDs, Cgroup: c.Cgroup, Freezer: c.Freezer, Timeout: c.Timeout, Guard: c.guardian,
	})
	if err != nil {
		return err
	}
	if err = ticket.Write(out, cli.Producer(app.Name)); err == nil {
		err = out.Commit()
	}
	if err == nil {
		err = engine.Failpoint("freeze.committed")
	}
	if err != nil {
		// Nobody could let go what nobody has a ticket for.
		return errors.Join(err, engine.Thaw(ticket, engine.ThawOptions{Guard: c.guardian, Warn: app.Warn}))
	}
	return c.guardian.Clear()
}
