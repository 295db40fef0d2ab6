// Package files holds the kinds of open files that lead to something in a file system or to a pipe, the descriptor
// tables that hold them, and the root, working directory and umask of a process.
//
// Every kind stands in a file of its own: what the kernel shows and what is lost, the state that goes into the image,
// and its dump and restore. What is open is looked at from outside only: nothing here runs code in a dumped process,
// changes a position or takes a byte out of a pipe.
//
// Paths are those that the kernel shows (d_path), seen from the root of the mount namespace of the tree. A path alone
// proves nothing: at dump it must lead to the very inode that is open, and at restore it is first opened with O_PATH,
// which neither blocks nor acts on anything, and looked at before it is really opened.
package files
