package main

import (
	"runtime"

	"crpipe/cmd/internal/cli"
	"crpipe/stream"
)

// compress compresses the payload of each record that gets smaller by it. The
// stream stays a stream: records can be listed, and cr-restore reads it as it is.
type compress struct {
	streams
}

func (v *compress) Run(app *cli.App) error {
	return v.transform(app, stream.CompressStep(runtime.GOMAXPROCS(0)))
}

// transform passes a stream through steps.
func (s *streams) transform(app *cli.App, steps ...stream.Step) error {
	in, out, err := s.open(app, cli.Binary, cli.Binary)
	if err != nil {
		return err
	}
	return stream.Filter(in, out, steps...)
}
