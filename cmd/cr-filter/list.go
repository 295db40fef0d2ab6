package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"crpipe/cmd/internal/cli"
	"crpipe/stream"
)

// list prints a line about each record: its number, where it begins, its size,
// and what it says. The end record, which says nothing, becomes the line of
// totals; a list without it is one of a stream that is damaged.
type list struct {
	streams
	Width int `short:"w" default:"120" placeholder:"COLUMNS" help:"Cut lines at COLUMNS (120); 0 cuts none."`
}

// Columns before the description.
const listPrefix = 8 + 1 + 14 + 1 + 10 + 2

func (v *list) Run(app *cli.App) error {
	width := 0
	switch {
	case v.Width < 0:
		return cli.UsageError("--width: less than no columns", "")
	case v.Width > 0:
		width = max(v.Width-listPrefix, 20)
	}
	in, out, err := v.open(app, cli.Binary, cli.Text)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	err = v.run(in, w, width)
	// What was read is shown even if the stream breaks off.
	return errors.Join(err, w.Flush())
}

func (v *list) run(in io.Reader, w io.Writer, width int) error {
	r, err := stream.NewReader(in)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "%8s %14s %10s  %s\n", "RECORD", "BYTE", "SIZE", "WHAT"); err != nil {
		return err
	}
	records := 1 // the end record
	for rec := r.HeaderRecord(); ; {
		records++
		_, err := fmt.Fprintf(w, "%8d %14d %10d  %s\n", rec.Index, rec.Offset, rec.Size(), rec.Describe(width))
		if err != nil {
			return err
		}
		rec, err = r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "%d records, %d bytes, complete\n", records, r.Offset())
	return err
}
