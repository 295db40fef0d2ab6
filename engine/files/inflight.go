package files

import "crpipe/engine/object"

// Enter notes an open file that no descriptor of the tree leads to but something else in it holds: one that is in flight in a unix
// socket. h is a descriptor through which it can be looked at. It comes before anything else asks what the tree holds.
func Enter(d *object.Dumper, h Holder) error {
	ix, err := indexOf(d)
	if err != nil {
		return err
	}
	return ix.enter(h)
}

// EachFile calls f for every open file that descriptors of the tree lead to, once, with the first of them.
func EachFile(d *object.Dumper, f func(h Holder) error) error {
	ix, err := indexOf(d)
	if err != nil {
		return err
	}
	for _, h := range ix.order {
		if err := f(h); err != nil {
			return err
		}
	}
	return nil
}
