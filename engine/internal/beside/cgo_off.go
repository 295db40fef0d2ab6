//go:build !cgo

package beside

const withC = false
