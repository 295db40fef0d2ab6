package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is the released version. It may be set at link time:
//
//	go build -ldflags "-X crpipe/cmd/internal/cli.Version=1.2.3"
//
// Otherwise it comes from what the go command recorded in the binary.
var Version string

// Producer names a program with its version, for --version and for the header of
// a stream.
func Producer(name string) string { return name + " " + VersionText() }

// VersionText describes this binary: version, commit, compiler, platform.
func VersionText() string {
	version, commit := Version, ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if version == "" && info.Main.Version != "" {
			version = info.Main.Version
		}
		modified := false
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value
			case "vcs.modified":
				modified = s.Value == "true"
			}
		}
		if len(commit) > 12 {
			commit = commit[:12]
		}
		if commit != "" && modified {
			commit += " modified"
		}
	}
	if version == "" {
		version = "(devel)"
	}
	if commit != "" {
		commit += ", "
	}
	return fmt.Sprintf("%s (%s%s %s/%s)", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
