package main

import (
	"runtime"

	"crpipe/cmd/internal/cli"
	"crpipe/stream"
)

// decompress gives every record the payload that its producer wrote.
type decompress struct {
	streams
}

func (v *decompress) Run(app *cli.App) error {
	return v.transform(app, stream.DecompressStep(runtime.GOMAXPROCS(0)))
}
