package files

// SetTimes sets the times of last access and modification, in ns since 1970, of the inode that fd leads to.
func SetTimes(fd int, access, modify int64) error {
	a := attributes{Access: access, Modify: modify}
	return a.setTimes(fd)
}
