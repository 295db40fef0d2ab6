//go:build !amd64

package stream

func canFold() bool { return false }

func foldBlocks(*[foldWidth]byte, []byte, *[8]uint64) { panic("unreachable") }
