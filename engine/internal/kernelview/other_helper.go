//go:build !amd64

package kernelview

// helperImage: there is no helper for this architecture, so what calibration
// would find is unknown.
func helperImage() []byte { return nil }
