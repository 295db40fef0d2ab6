package test

import (
	"os"
	"testing"

	"crpipe/test/harness"
)

func TestMain(m *testing.M) {
	os.Exit(harness.Main(m))
}
