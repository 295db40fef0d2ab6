// Cr-filter lists, checks, converts and rewrites the streams of crpipe.
package main

import "crpipe/cmd/internal/cli"

// filter is the table of verbs: a line here, a file beside it.
type filter struct {
	cli.Common
	List   list       `cmd:"" help:"Print a line about each record."`
	Check  check      `cmd:"" help:"Check a whole stream; the exit status tells."`
	JSON   toJSON     `cmd:"" name:"json" help:"Write the stream as JSON, a record a line, without loss."`
	Unjson fromJSON   `cmd:"" help:"Write the stream that such JSON describes."`
	LZ4    compress   `cmd:"" name:"lz4" help:"Compress the content of pages, queues and files, record by record."`
	Unlz4  decompress `cmd:"" name:"unlz4" help:"Undo lz4."`
}

func main() {
	cli.Main("cr-filter", "Lists, checks, converts and rewrites the streams of crpipe.", &filter{})
}

// streams are the flags that every verb has.
type streams struct {
	Input  string `short:"i" placeholder:"FILE" help:"Read FILE instead of standard input."`
	Output string `short:"o" placeholder:"FILE" help:"Write FILE instead of standard output; it appears when it is complete."`
	cli.ProgressFlags
}

// open opens both ends.
func (s *streams) open(app *cli.App, from, to cli.Content) (*cli.Input, *cli.Output, error) {
	in, err := app.Input(s.Input, from)
	if err != nil {
		return nil, nil, err
	}
	out, err := app.Output(s.Output, to)
	if err != nil {
		return nil, nil, err
	}
	if err := app.StartProgress(s.ProgressFlags, in.Count); err != nil {
		return nil, nil, err
	}
	app.Progress("reading", 0)
	return in, out, nil
}
