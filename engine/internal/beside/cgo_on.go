//go:build cgo

package beside

// withC: this program may have C's runtime in it, which keeps what every thread needs at any moment where only it knows.
const withC = true
