package main

import (
	"crpipe/cmd/internal/cli"
	"crpipe/stream"
)

// fromJSON writes the stream that JSON made by toJSON describes, edited or not.
type fromJSON struct {
	streams
}

func (v *fromJSON) Run(app *cli.App) error {
	in, out, err := v.open(app, cli.Text, cli.Binary)
	if err != nil {
		return err
	}
	return stream.FromJSON(in, out)
}
