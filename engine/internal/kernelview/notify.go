package kernelview

// Inotify is what fdinfo does not tell of an inotify(7) instance.
type Inotify struct {
	// Queued is the number of events that nobody has read.
	Queued int
	// Next is the least number that the next new watch may get, 0 or 1 when none
	// was ever made (inotify_add_watch(2) gives numbers out in a circle).
	Next Maybe[int32]
	// Names are, by watch number, the paths within its file system that the
	// kernel's memory has of what is watched, without a slash at the end; that of
	// the root is empty. A name that nobody has used for a while may be missing,
	// one of a removed file may be there: look what each leads to.
	Names map[int][]string
}

// Fanotify is what fdinfo does not tell of a fanotify(7) group.
type Fanotify struct {
	// Queued is the number of events that nobody has read.
	Queued int
	// Waiting: somebody waits for the answer to an event that was read.
	Waiting bool
	// Unprivileged: it was made without CAP_SYS_ADMIN, which it remembers for ever.
	Unprivileged bool
	// Nested: it was made in a user namespace that is not the initial one.
	Nested bool
	// Marks are its marks as fdinfo lists them, the latest first.
	Marks []FanotifyMark
}

// FanotifyMark is one mark.
type FanotifyMark struct {
	Mask, Ignored uint32
	// Names are of a marked inode, as those of Inotify.
	Names []string
	// Written: a marked inode is open for writing somewhere, which forbids a new
	// ignored mask that a modification would clear.
	Written bool
}
