package engine

import "crpipe/engine/internal/kernelview"

// A View is the kernel view of a command, which opens it while it still looks at its arguments.
type View struct {
	opened chan struct{} // closed when the fields below are set
	view   kernelview.View
	err    error
}

// StartView begins to open the best kernel view there is, and does not wait for it.
func StartView() *View {
	v := &View{opened: make(chan struct{})}
	go func() {
		defer close(v.opened)
		v.view, v.err = kernelview.Open(kernelview.Options{})
	}()
	return v
}

// take returns a view of the source, "" for the best; it belongs to the caller.
func (v *View) take(source string) (kernelview.View, error) {
	if v == nil || source != "" {
		return kernelview.Open(kernelview.Options{Source: source})
	}
	<-v.opened
	return v.view, v.err
}
