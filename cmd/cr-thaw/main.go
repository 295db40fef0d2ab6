// Cr-thaw lets stopped process trees go on, or ends them.
package main

import (
	"crpipe/cmd/internal/cli"
	"crpipe/engine"
)

type thaw struct {
	cli.Common
	guardian *engine.Guardian
	Input    string `short:"i" placeholder:"FILE" help:"Read the ticket from FILE instead of standard input."`
	Kill     bool   `help:"End the processes instead of letting them go on."`
}

func main() {
	engine.RunGuard()
	command := &thaw{guardian: engine.StartGuard(nil)}
	cli.Main("cr-thaw", "Lets the processes that a ticket names go on as they were before the freeze.", command)
}

func (c *thaw) Run(app *cli.App) error {
	if err := engine.CheckLimits(); err != nil {
		return err
	}
	in, err := app.Input(c.Input, cli.Binary)
	if err != nil {
		return err
	}
	ticket, err := engine.ReadTicket(in)
	if err != nil {
		return err
	}
	return engine.Thaw(ticket, engine.ThawOptions{Kill: c.Kill, Guard: c.guardian, Warn: app.Warn})
}
