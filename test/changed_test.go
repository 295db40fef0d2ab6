package test

import (
	"path/filepath"
	"strings"
	"testing"

	"crpipe/test/harness"
)

// TestChangedFiles: a file that has grown, was modified, or was replaced since the dump is not given to a program that
// expects the old one, unless --allow-changed says so; one that is too short never is.
func TestChangedFiles(t *testing.T) {
	harness.NeedRoot(t)
	for name, change := range map[string]struct {
		script string
		error  string // without --allow-changed
		never  bool
	}{
		"grown":     {`printf more >> "$DIR/read"`, "it has 5004 bytes, 5000 when it was dumped", false},
		"modified":  {`touch "$DIR/read"`, "it was modified ", false},
		"replaced":  {`cp "$DIR/read" "$DIR/new"; mv "$DIR/new" "$DIR/read"`, "it was modified ", false},
		"too short": {`truncate -s 10 "$DIR/read"`, "has 10 bytes now and was open at byte 1234 of 5000", true},
		"kept":      {`cp -p "$DIR/read" "$DIR/new"; mv "$DIR/new" "$DIR/read"`, "", false},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, "files", harness.Options{})
			j.DumpKill("cr-dump --kill $PID > image.cr")
			j.MustSh(change.script)
			path := filepath.Join(j.Dir, "read")
			if change.error != "" {
				for _, option := range []string{"", "--allow-changed '/nowhere/*'"} {
					r := j.Sh("cr-restore " + option + " < image.cr > ticket")
					if r.Status != 1 || !strings.Contains(r.Stderr, path) || !strings.Contains(r.Stderr, change.error) {
						t.Errorf("cr-restore %s: status %d, want 1 and %q: %s", option, r.Status, change.error, r.Stderr)
					}
					if !change.never && !strings.Contains(r.Stderr, "--allow-changed '"+path+"'") {
						t.Errorf("no hint: %s", r.Stderr)
					}
				}
			}
			if change.never {
				r := j.Sh("cr-restore --allow-changed '*' < image.cr > ticket")
				if r.Status != 1 || !strings.Contains(r.Stderr, change.error) {
					t.Errorf("cr-restore --allow-changed '*': status %d: %s", r.Status, r.Stderr)
				}
				return
			}
			j.RestoreSh("cr-restore --allow-changed '*/rea?' < image.cr > ticket")
			j.Finish()
		})
	}
}
