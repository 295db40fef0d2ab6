package stream

// For the tests in package stream_test.
type (
	ErrorState = errorState
	EndState   = endState
)

const (
	HeadSize     = headSize
	PrologueSize = prologueSize
	MaxErrorText = maxErrorText
	MaxKey       = maxKey
	MaxSparse    = maxSparse
)
