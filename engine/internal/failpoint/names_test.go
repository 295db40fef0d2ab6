package failpoint

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestNames: every name of the table stands in the code just once, and no other does.
func TestNames(t *testing.T) {
	call := regexp.MustCompile(`(?i)(?:failpoint(?:\.Hit|\.After)?|\bphase)\("([^"]*)"`)
	met := map[string][]string{}
	root := filepath.Join("..", "..", "..")
	for _, top := range []string{"engine", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range call.FindAllSubmatch(data, -1) {
				met[string(m[1])] = append(met[string(m[1])], path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, places := range met {
		if !slices.Contains(Names, name) {
			t.Errorf("%q in %v is not in the table", name, places)
		}
		if len(places) > 1 {
			t.Errorf("%q stands in %v", name, places)
		}
	}
	for _, name := range Names {
		if met[name] == nil {
			t.Errorf("%q stands nowhere", name)
		}
	}
}
