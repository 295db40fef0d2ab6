// Package object says what a kind of checkpointed object is, and what a dump and a restore offer to the kinds.
//
// A dump has two halves. In the first every kind looks at its objects and remembers their state with
// [Dumper.Add]; nothing is written, and whatever cannot be kept is refused with [Dumper.Refuse], so that all
// refusals of a tree are known before the first byte of the image. In the second half the remembered records are
// written in the order in which they were added, which is the order that objrefs demand, and after them the bulk:
// contents of memory, pipes and deleted files.
//
// A restore reads all records up to the first bulk record into a [Plan], a pure value; then it opens every open
// file, makes the tasks, streams the bulk into what it made, and lets the tasks go once the stream's end has been
// verified.
//
// Families (engine/files, engine/memory, ...) import this package and engine imports the families, so there is no
// cycle. The table of kinds is handed over as a field (see [Dumper.Kinds]): a package-level table that the kinds
// themselves refer to would be an initialization cycle.
package object
