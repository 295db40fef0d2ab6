package test

import (
	"os"
	"testing"

	"crpipe/test/harness"
)

func TestMain(m *testing.M) {
	if name := os.Getenv("CR_TEST_CLIENTS"); name != "" {
		os.Exit(clientsMain(name))
	}
	os.Exit(harness.Main(m))
}
