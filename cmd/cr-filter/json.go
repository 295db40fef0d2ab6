package main

import (
	"crpipe/cmd/internal/cli"
	"crpipe/stream"
)

// toJSON writes a stream as JSON: what jq and people read, and what unjson turns
// back into the same bytes.
type toJSON struct {
	streams
}

func (v *toJSON) Run(app *cli.App) error {
	in, out, err := v.open(app, cli.Binary, cli.Text)
	if err != nil {
		return err
	}
	return stream.ToJSON(in, out)
}
