// Package memory keeps and rebuilds address spaces.
//
// Dump adds to the image, before anything that uses them: one record a mapped file ("mapfile"), one a piece of
// anonymous memory that is mapped shared ("shm"), one a layout of the vdso ("vdso"), then the address space ("mm") and
// its mappings in ascending order ("mm.areas"), and asks for the contents to be written behind all records: "pages"
// records for the memory, "data" records for a mapped file that has no name any more.
// Pages that processes share since a fork are found when all have been looked at, and are one more object ("cow", "cow.ranges").
//
// Only pages that differ from what a fresh mapping shows are kept: anonymous pages that are not zero, and pages of a
// private file mapping that were written (copied) since. PAGEMAP_SCAN finds them by walking only page tables that
// exist, so that a reservation of terabytes costs nothing.
//
// A restore reads the records into Spaces, pure values whose every number has been checked, lets each task lay out its
// own mappings in batches of system calls (Space.Layout), streams pages into them from outside (Filler), and gives the
// mappings their final protection and the address space its marks (Space.Finish, Space.Settle). restore.go says in
// which order the engine calls these.
package memory
