// Package cli holds what the five commands share: streams in and out, exit
// statuses, messages and hints, progress, signals and the version.
//
// A command is a struct of kong flags with a method Run(*App) error, or with
// verbs that have one. Its main is one call of [Main], which parses the arguments, runs it, and turns its
// error into messages and an exit status. The rules that every command keeps:
//
//   - standard output carries only the stream; words go to standard error,
//     one line each, prefixed with the command's name;
//   - a binary stream is never written to or read from a terminal
//     (-o - insists on writing it);
//   - an output file appears under its name only when it is complete, and a
//     run that fails leaves nothing behind;
//   - the exit status says what kind of failure it was (see [Statuses]).
//
// The package builds wherever cr-filter does; what needs Linux stands in files
// ending in _linux.go.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/alecthomas/kong"
)

// App is one run of a command.
type App struct {
	// Name is the command's name, the prefix of all its messages.
	Name string
	// Context ends when the command is told to stop by SIGINT, SIGTERM or
	// SIGHUP. Its cause is then a [*SignalError].
	Context context.Context
	// Verbose says that the user wants to read what is being done.
	Verbose bool

	inputs   []*Input
	outputs  []*Output
	messages io.Writer
	progress progress
	waker    *waker
	forward  forward
}

// Common holds the flags of every command.
type Common struct {
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// Main parses the arguments of the process, runs the command and ends the
// process. The description is one sentence for --help.
func Main(name, description string, command any) {
	parsed, status := parse(name, description, command, os.Args[1:])
	if parsed == nil {
		os.Exit(status)
	}
	status, signal := run(context.Background(), name, parsed)
	if signal != nil {
		dieOf(signal) // returns only where signals cannot be raised
	}
	os.Exit(status)
}

// parse returns nil and the exit status if there is nothing to run.
func parse(name, description string, command any, args []string) (*kong.Context, int) {
	parser, err := kong.New(command,
		kong.Name(name),
		kong.Description(description),
		kong.Vars{"version": Producer(name)},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
	if err != nil {
		panic("cli: internal error: " + err.Error()) // a wrong struct tag
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		app := &App{Name: name, messages: os.Stderr}
		app.report(WithHint(err, name+" --help lists what it takes"))
		return nil, StatusUsage
	}
	return parsed, StatusDone
}

// run carries out a parsed command. If a signal ended it, the process should die
// of that.
func run(ctx context.Context, name string, parsed *kong.Context) (status int, signal os.Signal) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	app := &App{Name: name, Context: ctx, messages: os.Stderr}
	app.progress.name, app.progress.start, app.progress.began = name, time.Now(), time.Now()
	app.catchSignals(cancel)
	app.waker = newWaker(ctx)
	err := parsed.Run(app)
	var copied exitError
	if errors.As(err, &copied) {
		err = nil
	}
	err = app.finish(err)
	if err == nil {
		return int(copied), nil
	}
	app.report(err)
	var bySignal *SignalError
	if errors.As(err, &bySignal) {
		signal = bySignal.Signal
	}
	return Status(err), signal
}

// finish ends progress and closes the streams: outputs are completed after a
// success and thrown away after a failure.
func (a *App) finish(err error) error {
	for _, o := range a.outputs {
		if err == nil {
			err = o.finish()
		}
	}
	for _, o := range a.outputs {
		o.abort() // no effect on one that is complete
	}
	for _, in := range a.inputs {
		in.close()
	}
	a.progress.stop(err)
	return err
}

// Warn prints a warning: something the user should know that is no failure.
func (a *App) Warn(text string) { a.say("warning: ", text) }

// Info prints what the user asked for by -v.
func (a *App) Info(text string) { a.say("", text) }

// CheckPIDs refuses numbers that are no process ids: kill(2) and its kin take 0
// and negative ones for whole groups.
func CheckPIDs(pids []int) error {
	for i, pid := range pids {
		if pid <= 0 || pid > 1<<22 { // PID_MAX_LIMIT, linux/threads.h
			return UsageError(fmt.Sprintf("%d is no process id", pid), "")
		}
		if slices.Contains(pids[:i], pid) {
			return UsageError(fmt.Sprintf("process %d is named twice", pid), "")
		}
	}
	return nil
}
