package stream

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func toText(t *testing.T, data []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := ToJSON(bytes.NewReader(data), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestJSONText(t *testing.T) {
	in := newBuild(t).rec("file.regular", 0, 1, Map{
		{"s", "a\"\\\n\x01\u0080é"}, {"max", uint64(math.MaxUint64)}, {"min", int64(math.MinInt64)}, {"bin", []byte{0, 1}}, {"bad", "\xff"},
		{"f", 0.1}, {"g", float32(-0.5)}, {"inf", math.Inf(-1)}, {"zero", math.Copysign(0, -1)}, {"nan", math.Float64frombits(0x7ff8000000000123)},
		{"nil", nil}, {"yes", true}, {"empty", Map{}}, {"list", []any{1, []any{}}},
	}, nil).rec("note", FlagOptional, 0, Map{{"r", Ref{1, "file"}}}, []byte("hi")).rec("x", 0, 0, Raw{0xcc, 1}, nil).end()
	got := toText(t, in)
	want := `{"version":1,"type":"header","meta":{"content":"image","arch":"amd64","pagesize":4096}}
{"type":"file.regular","ref":1,"meta":{"s":"a\"\\\n\u0001\u0080é","max":18446744073709551615,"min":-9223372036854775808,"bin":{"$bytes":"AAE="},"bad":{"$string":"/w=="},"f":{"$float64":"0.1"},"g":{"$float32":"-0.5"},"inf":{"$float64":"-Inf"},"zero":{"$float64":"-0"},"nan":{"$float64":"nan:7ff8000000000123"},"nil":null,"yes":true,"empty":{},"list":[1,[]]}}
{"type":"note","optional":true,"meta":{"r":{"$ref":[1,"file"]}},"payload":"aGk="}
{"type":"x","meta":1,"raw":"zAE="}
{"type":"end","meta":{"count":4,"sum":`
	if !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, line := range strings.Split(strings.TrimSpace(got), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	var back bytes.Buffer
	if err := FromJSON(strings.NewReader(got), &back); err != nil || !bytes.Equal(back.Bytes(), in) {
		t.Errorf("back: %v", err)
	}
	// Blank lines, spaces and another order of members change nothing.
	loose := strings.ReplaceAll(strings.ReplaceAll(got, "\n", "\n\n \t\r\n"), `{"type":"x","meta":1,`, ` { "meta" : 1 , "type" : "x" , `)
	back.Reset()
	if err := FromJSON(strings.NewReader(loose), &back); err != nil || !bytes.Equal(back.Bytes(), in) {
		t.Errorf("loosely written: %v", err)
	}
}

// The form is made to be edited: with jq, for one.
func TestJSONEdited(t *testing.T) {
	text := toText(t, smallImage(t))
	edited := strings.Replace(text, `"/etc/passwd"`, `"/etc/group"`, 1)
	edited = strings.Join(append(strings.SplitAfter(edited, "\n")[:3], strings.SplitAfter(edited, "\n")[4:]...), "") // no note
	var out bytes.Buffer
	if err := FromJSON(strings.NewReader(edited), &out); err != nil {
		t.Fatal(err)
	}
	s, err := Check(bytes.NewReader(out.Bytes()))
	if err != nil || s.Records != 7 || !bytes.Contains(out.Bytes(), []byte("/etc/group")) {
		t.Errorf("%+v %v", s, err)
	}
	// Edited metadata wins over its old raw form.
	wide := `{"type":"x","meta":2,"raw":"` + base64.StdEncoding.EncodeToString([]byte{0xcc, 1}) + `"}`
	head, end := strings.SplitAfter(text, "\n")[0], `{"type":"end","meta":{}}`
	out.Reset()
	if err := FromJSON(strings.NewReader(head+wide+"\n"+end), &out); err != nil {
		t.Fatal(err)
	}
	if got := records(out.Bytes())[1][headSize:]; !bytes.Equal(got, []byte{2}) {
		t.Errorf("metadata %x", got)
	}
}

func TestJSONThroughJQ(t *testing.T) {
	jq, err := exec.LookPath("jq")
	if err != nil {
		t.Skip("no jq here")
	}
	in := smallImage(t)
	cmd := exec.Command(jq, "-c", ".")
	cmd.Stdin = strings.NewReader(toText(t, in))
	text, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := FromJSON(bytes.NewReader(text), &out); err != nil || !bytes.Equal(out.Bytes(), in) {
		t.Errorf("the stream differs after jq: %v", err)
	}
}

func TestJSONErrors(t *testing.T) {
	head := `{"version":1,"type":"header","meta":{"content":"image"}}` + "\n"
	end := `{"type":"end","meta":{}}` + "\n"
	for _, c := range []struct {
		text string
		want error
		say  string
	}{
		{head + end, nil, ""},
		{head, ErrTruncated, "no line for the end record"},
		{"", ErrTruncated, "record 0"},
		{end, ErrOrder, "no header"},
		{head + end + end, ErrTrailing, "record 2"},
		{head + head + end, ErrOrder, "record 1"},
		{`{"type":"a","meta":{}}` + "\n", ErrOrder, `not "a"`},
		{head + "{", ErrJSON, "record 1"},
		{head + `{"type":"a","meta":{}} {}`, ErrJSON, "something follows"},
		{head + `[]`, ErrJSON, "not an object"},
		{head + "{\"type\":\"a\",\"meta\":\"\xff\"}", ErrJSON, "not UTF-8"},
		{head + `{"type":"a"}`, ErrJSON, "meta is missing"},
		{head + `{"type":1,"meta":{}}`, ErrJSON, "member type"},
		{head + `{"type":"a","meta":{},"mete":{}}`, ErrJSON, `"mete" is unknown`},
		{head + `{"type":"a","meta":{},"meta":{}}`, ErrJSON, "twice"},
		{head + `{"type":"a","meta":{"a":1,"a":1}}`, ErrJSON, "twice"},
		{head + `{"type":"a","meta":{"a":1.5}}`, ErrJSON, "1.5 is no 64-bit integer"},
		{head + `{"type":"a","meta":{"a":18446744073709551616}}`, ErrJSON, "no 64-bit integer"},
		{head + `{"type":"a","meta":{"a":1e3}}`, ErrJSON, "1e3 is no"},
		{head + `{"type":"a","ref":-1,"meta":{}}`, ErrJSON, "member ref"},
		{head + `{"type":"a","ref":2147483648,"meta":{}}`, ErrJSON, "member ref"},
		{head + `{"type":"a","lz4":1,"meta":{}}`, ErrJSON, "member lz4"},
		{head + `{"type":"a","meta":{},"payload":"!"}`, ErrJSON, "member payload"},
		{head + `{"type":"a","meta":{},"payload":"AA==","payload":"AA=="}`, ErrJSON, "twice"},
		{head + `{"type":"a","payload":"AA==","meta":{},"payload":"AA=="}`, ErrJSON, "twice"},
		{head + `{"type":"a","meta":{"b":1,"payload":"AA=="}`, ErrJSON, "unexpected EOF"},
		{head + `{"type":"a","meta":{},"payload":"A\u0041=="}` + "\n" + end, nil, ""},
		{head + `{"type":"a","meta":{"b":1,"payload":"AA=="}}` + "\n" + end, nil, ""},
		{head + `{"type":"a","meta":{"b":",\"payload\":\"AA=="}}` + "\n" + end, nil, ""},
		{head + `{"type":"a","meta":{},"payload":[]}`, ErrJSON, "member payload"},
		{head + `{"type":"a","version":1,"meta":{}}`, ErrJSON, "version belongs"},
		{strings.Replace(head, `"version":1,`, "", 1), ErrJSON, "version belongs"},
		{strings.Replace(head, `"version":1,`, `"version":2,`, 1), ErrJSON, "version 2 is unknown"},
		{head + `{"type":"a","meta":{"$ref":[1,"mm"]}}`, ErrForwardRef, "mm#1"},
		{head + `{"type":"a","meta":{"$ref":[0,"mm"]}}`, ErrZeroRef, ""},
		{head + `{"type":"a","meta":{"$ref":"x"}}`, ErrJSON, "$ref is not"},
		{head + `{"type":"a","meta":{"$what":"x"}}`, ErrJSON, `"$what" is unknown`},
		{head + `{"type":"a","meta":{"$bytes":7}}`, ErrJSON, "no string"},
		{head + `{"type":"a","meta":{"$float64":"x"}}`, ErrJSON, "invalid syntax"},
		{head + `{"type":"a","meta":{"$a":1,"b":2}}`, ErrMetadata, "$a"},
		{head + `{"type":"a","meta":` + strings.Repeat("[", 33) + strings.Repeat("]", 33) + `}`, ErrMetadata, "deeper"},
		{head + `{"type":"a","meta":` + strings.Repeat("[", 100000), ErrMetadata, "deeper"},
		{head + `{"type":"error","meta":{"text":"no","errno":5}}`, errRemote, "no"},
		{head + `{"type":"a","meta":{},"x":"` + strings.Repeat("x", maxLine), ErrLength, "a line has more"},
	} {
		var out bytes.Buffer
		err := FromJSON(strings.NewReader(c.text), &out)
		name := c.text
		if len(name) > 120 {
			name = name[:120]
		}
		if !expected(err, c.want) || c.want != nil && (!BadStream(err) || !strings.Contains(err.Error(), c.say)) {
			t.Errorf("%s: got %v, want %v, %q", name, err, c.want, c.say)
		}
		var remote *RemoteError
		if got := drain(out.Bytes(), ""); c.want != nil && !errors.As(got, &remote) {
			t.Errorf("%s: the output ends with %v", name, got)
		}
	}
	if err := ToJSON(bytes.NewReader(smallImage(t)), &limitWriter{new(bytes.Buffer), 10, syscall.EPIPE}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a broken pipe: %v", err)
	}
	if err := FromJSON(strings.NewReader(head+end), &limitWriter{new(bytes.Buffer), 10, syscall.EPIPE}); !errors.Is(err, syscall.EPIPE) || BadStream(err) {
		t.Errorf("a broken pipe: %v", err)
	}
}

// Metadata of a mebibyte of characters that all need escapes.
func TestJSONLargest(t *testing.T) {
	var in, back bytes.Buffer
	w := newTestWriter(t, &in)
	if err := w.Put("a", 0, strings.Repeat("\x01", MaxMeta-5), randomBytes(MaxPayload)); err != nil {
		t.Fatal(err)
	}
	if err := w.Put("a", 0, Raw(append([]byte{codeStr32, 0, 0x0f, 0xff, 0xfb}, strings.Repeat("\"", MaxMeta-5)...)), nil); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	if err := FromJSON(strings.NewReader(toText(t, in.Bytes())), &back); err != nil || !bytes.Equal(in.Bytes(), back.Bytes()) {
		t.Errorf("%v", err)
	}
}
