package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"crpipe/cmd/internal/cli"
	"crpipe/stream"
)

// check reads a stream to its end and checks everything that needs no knowledge
// of what the records mean: checksums, structure, references, compressed
// payloads, the end record and that nothing follows it.
type check struct {
	streams
	Verbose bool `short:"v" help:"Print what the stream holds."`
}

func (v *check) Run(app *cli.App) error {
	in, out, err := v.open(app, cli.Binary, cli.Text)
	if err != nil {
		return err
	}
	sum, err := stream.Check(in)
	if !v.Verbose {
		return err
	}
	w := bufio.NewWriter(out)
	summarize(w, &sum)
	return errors.Join(err, w.Flush())
}

// summarize prints totals. Its writer keeps the first error for Flush.
func summarize(w io.Writer, s *stream.Summary) {
	h := &s.Header
	if h.Content == "" {
		return // not even a header was read
	}
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-10s %s\n", name, stream.Printable(value))
		}
	}
	field("content", h.Content)
	field("arch", h.Arch)
	if h.PageSize != 0 {
		field("page size", fmt.Sprint(h.PageSize))
	}
	field("kernel", h.Kernel)
	field("producer", h.Producer)
	field("requires", strings.Join(h.Requires, " "))
	field("records", fmt.Sprint(s.Records))
	field("objects", fmt.Sprint(s.Objects))
	field("bytes", fmt.Sprint(s.Size))
	if s.Raw != s.Size {
		field("raw bytes", fmt.Sprint(s.Raw))
	}
	if len(s.Types) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%-20s %10s %14s %14s %14s\n", "TYPE", "RECORDS", "METADATA", "PAYLOAD", "RAW")
	for _, t := range s.Types {
		fmt.Fprintf(w, "%-20s %10d %14d %14d %14d\n", t.Type, t.Records, t.Meta, t.Payload, t.Raw)
	}
}
