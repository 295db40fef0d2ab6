// Package cmd_test tests the five commands as a user runs them, and what holds
// for the source tree as a whole.
package cmd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "crpipe"

type pkg struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

// imports lists the packages of this module with what they import, tests left
// out, as goos sees them.
func imports(t *testing.T, goos string) []pkg {
	t.Helper()
	command := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,Standard", "./...")
	command.Dir = ".."
	command.Env = append(command.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var list []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// within reports whether an import path is a package or below it.
func within(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

// rules say what the packages below From must not import: the same as
// .golangci.yaml says, for those who have only the go command.
var rules = []struct {
	from   []string // packages, or "" for all
	except []string
	deny   []string
}{
	{[]string{module + "/stream"}, nil, []string{module + "/arch", module + "/engine", module + "/cmd", "golang.org/x/sys", "unsafe"}},
	{[]string{module + "/arch"}, nil, []string{module + "/engine", module + "/cmd", "golang.org/x/sys", "unsafe"}},
	{[]string{module + "/engine"}, nil, []string{module + "/cmd", "github.com/alecthomas/kong"}},
	{[]string{module}, []string{module + "/stream"}, []string{"github.com/vmihailenco/msgpack", "github.com/pierrec/lz4"}},
	{[]string{module + "/cmd/cr-filter", module + "/cmd/internal/cli"}, nil, []string{module + "/engine", module + "/arch"}},
	{[]string{module + "/cmd"}, []string{module + "/cmd/internal/cli"}, []string{"golang.org/x/sys", "syscall", "unsafe"}},
	{[]string{module}, []string{module + "/engine"}, []string{"github.com/cilium/ebpf", "github.com/moby/sys"}},
	{[]string{module}, []string{module + "/cmd/cr-filter"}, []string{"github.com/itchyny/gojq"}},
}

func TestLayers(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		for _, p := range imports(t, goos) {
			for _, rule := range rules {
				in := func(roots []string) bool {
					return slices.ContainsFunc(roots, func(root string) bool { return within(p.ImportPath, root) })
				}
				if !in(rule.from) || in(rule.except) {
					continue
				}
				for _, path := range p.Imports {
					for _, deny := range rule.deny {
						if within(path, deny) {
							t.Errorf("%s: %s imports %s", goos, p.ImportPath, path)
						}
					}
				}
			}
		}
	}
}

// unsafe belongs in files that say so by their name, and no file is named so
// that the go command drops it on other machines than the author's: arch must
// hold every CPU everywhere.
func TestFiles(t *testing.T) {
	cpus := []string{"386", "amd64", "arm", "arm64", "ppc64le", "s390x", "riscv64", "loong64"}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return fs.SkipDir
		}
		name, isGo := strings.CutSuffix(d.Name(), ".go")
		if d.IsDir() || !isGo {
			return nil
		}
		name = strings.TrimSuffix(name, "_test")
		if i := strings.LastIndex(name, "_"); i > 0 && slices.Contains(cpus, name[i+1:]) {
			t.Errorf("%s is built for one CPU only: name it %s_%s.go", path, name[i+1:], name[:i])
		}
		if strings.HasSuffix(name, "_unsafe") || strings.Contains(path, "testdata") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			if p, _ := strconv.Unquote(spec.Path.Value); p == "unsafe" {
				t.Errorf("%s imports unsafe: its name must end in _unsafe.go", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
