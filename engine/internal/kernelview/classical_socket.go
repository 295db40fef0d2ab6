package kernelview

// Socket is documented with View. What waits in the queues of a socket can be seen from outside only by taking it, or by a look
// (MSG_PEEK, SO_PEEK_OFF) that changes the socket for its owner too.
func (v *classicalView) Socket(id ID) (Socket, error) {
	if _, err := v.held(id, KindSocket); err != nil {
		return Socket{}, err
	}
	return Socket{}, missingSockets
}

var missingSockets = &MissingError{What: "the queues of sockets, which only the kernel's memory tells",
	Fix: "run as root on a kernel with BTF"}
