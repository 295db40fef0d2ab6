// Package failpoint lets tests stop a command at every step that could leave something behind. In an ordinary build its calls are
// nothing. A build with the tag failpoints looks at the environment variable CRPIPE_FAILPOINT:
//
//	NAME          the step fails with an error that names it
//	NAME:kill     the process kills itself there by SIGKILL
//	NAME:sleep    it stands there for a second, for others to interfere
//	NAME@3:kill   not the first time that it comes there, but the third
//	trace         nothing fails, and each step is named on standard error: "failpoint NAME"
//
// The names are in the table of names.go. One test walks all of them, and another makes sure that each stands in the code just once.
package failpoint

// Env is the variable's name.
const Env = "CRPIPE_FAILPOINT"
