package files

import "testing"

// SetSearch is how many names a search for hard links looks at, until the test ends.
func SetSearch(t *testing.T, n int) {
	was := searchEntries
	searchEntries = n
	t.Cleanup(func() { searchEntries = was })
}
