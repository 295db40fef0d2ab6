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

// TCPEnds is documented with View.
func (v *classicalView) TCPEnds(id ID) (TCPEnds, error) {
	if _, err := v.held(id, KindSocket); err != nil {
		return TCPEnds{}, err
	}
	return TCPEnds{}, missingSockets
}

// TCPWaitingEnds is documented with View.
func (v *classicalView) TCPWaitingEnds(id ID) ([]TCPEnds, error) {
	if _, err := v.held(id, KindSocket); err != nil {
		return nil, err
	}
	return nil, missingSockets
}

// TCPWaiting is documented with View.
func (v *classicalView) TCPWaiting(id ID) ([]TCP, error) {
	if _, err := v.held(id, KindSocket); err != nil {
		return nil, err
	}
	return nil, missingSockets
}

// TCP is documented with View.
func (v *classicalView) TCP(id ID) (TCP, error) {
	if _, err := v.held(id, KindSocket); err != nil {
		return TCP{}, err
	}
	return TCP{}, missingSockets
}
