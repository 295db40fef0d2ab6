// Package stream reads, writes, checks and edits the stream that the crpipe
// commands pass through pipes. The format is specified in cr-stream(5).
package stream
