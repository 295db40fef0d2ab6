package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const stream = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:5: no root here\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`

func TestRun(t *testing.T) {
	dir := t.TempDir()
	allow := func(text string) string {
		path := filepath.Join(dir, "allow")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct {
		name, in, allow string
		ok              bool
		want            []string
		not             string
	}{
		{"skip is only listed", stream, "", true, []string{"p.TestA: no root here", "ok  \tp\t0.1s\n"}, "noise"},
		{"skip is allowed", stream, "# c\np[.]TestA  why\n", true, []string{"p.TestA: no root here"}, "MUST RUN"},
		{"skip must run", stream, "p[.]TestB why\n", false, []string{"MUST RUN: p.TestA", "FAIL\n"}, "noise"},
		{"prefix is no match", stream, "p[.]Test why\n", false, []string{"MUST RUN: p.TestA"}, "noise"},
		{"failure is shown", `{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"TestC","Output":"it broke\n"}
{"Action":"fail","Package":"p","Test":"TestC"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}`, "", false, []string{"it broke", "FAIL\tp\t0.1s"}, "skipped"},
		{"build failure", `{"Action":"build-output","ImportPath":"p","Output":"x.go:1: bad\n"}
{"Action":"build-fail","ImportPath":"p"}
{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p"}`, "", false, []string{"x.go:1: bad", "[build failed]"}, "skipped"},
		{"cut short", `{"Action":"start","Package":"p"}`, "", false, []string{"never ended"}, "skipped"},
	} {
		path := ""
		if test.allow != "" {
			path = allow(test.allow)
		}
		var out strings.Builder
		ok, err := run(strings.NewReader(test.in), &out, false, path, "")
		if err != nil || ok != test.ok {
			t.Errorf("%s: %v, %v\n%s", test.name, ok, err, out.String())
		}
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", test.name, want, out.String())
			}
		}
		if strings.Contains(out.String(), test.not) {
			t.Errorf("%s: %q in\n%s", test.name, test.not, out.String())
		}
	}
	if ok, err := run(strings.NewReader(""), &strings.Builder{}, false, "", ""); ok || err == nil {
		t.Error("an empty run passed")
	}
	if _, err := run(strings.NewReader(stream), &strings.Builder{}, false, allow("p.TestA\n"), ""); err == nil {
		t.Error("an allowance without a reason was taken")
	}
}

func TestFailed(t *testing.T) {
	const run1, fail = `{"Action":"run","Package":"p","Test":"%"}` + "\n", `{"Action":"fail","Package":"p","Test":"%"}` + "\n"
	begin, end := `{"Action":"start","Package":"p"}`+"\n", `{"Action":"fail","Package":"p"}`+"\n"
	test := func(names ...string) string {
		s := ""
		for _, n := range names {
			s += strings.Replace(run1, "%", n, 1)
		}
		for _, n := range names {
			s += strings.Replace(fail, "%", n, 1)
		}
		return s
	}
	for _, c := range []struct{ name, in, want string }{
		{"nothing", stream, ""},
		{"a test", begin + test("TestA") + end, "p ^TestA$\n"},
		{"a subtest, not its parents", begin + test("TestA/x.y/z", "TestA/x.y", "TestA", "TestAB") + end, "p ^TestA$/^x\\.y$/^z$\np ^TestAB$\n"},
		{"the package itself", begin + end, "p .\n"},
		{"never ended", begin + test("TestA"), "p .\n"},
		{"cut short by a panic", begin + test("TestA") + `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: x\n"}` + "\n" + end, "p .\n"},
		{"with a test that did not end", begin + test("TestA") + strings.Replace(run1, "%", "TestB", 1) + end, "p .\n"},
	} {
		path := filepath.Join(t.TempDir(), "failed")
		if _, err := run(strings.NewReader(c.in), &strings.Builder{}, false, "", path); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}
