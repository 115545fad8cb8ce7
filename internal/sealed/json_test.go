package sealed

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A document with every shape that Decode has to walk through.
type sample struct {
	embedded
	Name   string               `json:"name"`
	N      int                  `json:"n"`
	TTL    Duration             `json:"ttl"`
	At     time.Time            `json:"at"`
	Digest []byte               `json:"digest"`
	Inner  *sample              `json:"inner"`
	List   []sample             `json:"list"`
	Map    map[string]string    `json:"map"`
	Deep   map[string][]sample  `json:"deep"`
	Raw    json.RawMessage      `json:"raw"`
	Any    any                  `json:"any"`
	Pair   [2]int               `json:"pair"`
	Keys   map[KeyName]struct{} `json:"keys"`
	Plain  string
}

type embedded struct {
	Extra string `json:"extra"`
}

func TestDecodeAccepts(t *testing.T) {
	for _, doc := range []string{
		`{}`, ` {"name":"a","n":1} `, `{"ttl":"15m"}`, `{"inner":{"inner":{"name":"x"}}}`, `{"list":[{"name":"a"},{"name":"a"}]}`,
		`{"map":{"https_proxy":"a","HTTPS_PROXY":"b"}}`, `{"deep":{"a":[{"name":"x"}],"A":[{"name":"x"}]}}`, `{"raw":{"Name":1,"x":[{"y":1e999}]}}`,
		`{"any":{"Name":1,"name":2}}`, `{"pair":[1,2]}`, `{"extra":"x"}`, `{"Plain":"x"}`, `{"at":"2026-01-01T00:00:00Z"}`, `{"digest":"AAAA"}`, `{"inner":null,"list":null}`, `null`,
	} {
		var v sample
		if err := Decode([]byte(doc), 1<<10, &v); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	const canary = "hunter2-swordfish"
	cases := map[string]struct{ doc, field string }{
		"unknown":                     {`{"nmae":"` + canary + `"}`, "nmae"},
		"unknown in a list":           {`{"list":[{"x":"` + canary + `"}]}`, "x"},
		"twice":                       {`{"name":"a","name":"` + canary + `"}`, "name"},
		"twice by an escape":          {`{"name":"a","\u006eame":"` + canary + `"}`, "name"},
		"twice, nested":               {`{"inner":{"list":[{"n":1,"n":2}]}}`, "n"},
		"twice in a map":              {`{"map":{"a":"1","a":"2"}}`, "a"},
		"twice in a map of lists":     {`{"deep":{"a":[],"a":[]}}`, "a"},
		"twice where shape is free":   {`{"any":{"a":1,"a":2}}`, "a"},
		"twice in raw JSON":           {`{"raw":[{"a":1,"a":2}]}`, "a"},
		"twice, key names":            {`{"keys":{"A":{},"A":{}}}`, "A"},
		"twice, lone surrogates":      {`{"map":{"\ud800":"1","\udfff":"2"}}`, `\ufffd`},
		"other case":                  {`{"Name":"` + canary + `"}`, "Name"},
		"other case beside the right": {`{"name":"a","NAME":"` + canary + `"}`, "NAME"},
		"other case by folding":       {`{"\u212aeys":{}}`, `\u212aeys`}, // KELVIN SIGN folds to k
		"other case, embedded":        {`{"EXTRA":"x"}`, "EXTRA"},
		"other case, untagged":        {`{"plain":"x"}`, "plain"},
		"other case in a map's value": {`{"deep":{"a":[{"Name":"x"}]}}`, "Name"},
		"string for a number":         {`{"n":"` + canary + `"}`, "n"},
		"number for a string":         {`{"name":31337001}`, "name"},
		"number too large":            {`{"n":31337001313370013133700131337001}`, "n"},
		"fraction":                    {`{"n":31337001.5}`, "n"},
		"object for a string":         {`{"name":{"a":"` + canary + `"}}`, "name"},
		"list for an object":          {`{"inner":["` + canary + `"]}`, "inner"},
		"duration":                    {`{"ttl":"` + canary + `"}`, "duration"},
		"negative duration":           {`{"ttl":"-1s"}`, "duration"},
		"control characters in name":  {`{"\u001b[31m\u0000":1}`, `\x1b[31m\x00`},
		"long name":                   {`{"` + strings.Repeat("n", 4000) + `":1}`, strings.Repeat("n", 160) + "..."},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var v sample
			err := Decode([]byte(c.doc), 1<<20, &v)
			var fe *FieldError
			if !errors.As(err, &fe) || !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want a FieldError", err)
			}
			if fe.Field != c.field {
				t.Errorf("field %q, want %q", fe.Field, c.field)
			}
			if s := err.Error(); strings.Contains(s, canary) || strings.Contains(s, "31337001") {
				t.Errorf("the error quotes the value: %s", s)
			}
		})
	}
	whole := map[string]string{
		"empty": "", "blank": " \n", "cut off": `{"name":"` + canary, "no quotes": `{name:1}`, "two documents": `{}{}`, "text after": `{} x`, "bracket after": `{}]`,
		"comment": `{}//x`, "comma": `{"n":1,}`, "not UTF-8": "{\"name\":\"\xff\"}", "byte order mark": "\ufeff{}", "time": `{"at":"` + canary + `"}`, "base64": `{"digest":"` + canary + `"}`,
		"too deep": strings.Repeat(`{"any":`, 20000) + "1" + strings.Repeat("}", 20000), "NaN": `{"n":NaN}`, "too large": `{"name":"` + strings.Repeat("a", 1<<20) + `"}`,
	}
	for name, doc := range whole {
		t.Run(name, func(t *testing.T) {
			var v sample
			err := Decode([]byte(doc), 1<<20, &v)
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			} else if strings.Contains(err.Error(), canary) {
				t.Errorf("the error quotes the value: %v", err)
			}
		})
	}
}

func TestDecodeLimit(t *testing.T) {
	var v sample
	doc := []byte(`{"n":1}`)
	if err := Decode(doc, len(doc), &v); err != nil {
		t.Error(err)
	}
	if err := Decode(doc, len(doc)-1, &v); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// Without the walk the document below has two readings.
func TestDecodeNegativeControl(t *testing.T) {
	const doc = `{"effect":"deny","Effect":"allow","reasons":[],"obligations":{}}`
	var loose Decision
	if err := json.Unmarshal([]byte(doc), &loose); err != nil || loose.Effect != EffectAllow {
		t.Fatalf("the attack does not work without the control: %v, %v", loose.Effect, err)
	}
	if d, err := ParseDecision([]byte(doc)); err == nil {
		t.Errorf("accepted as %s", d.Effect)
	}
}

func TestFieldErrorIsPrintable(t *testing.T) {
	for _, field := range []string{"a\nb", "a\x1b[2Jb", "a\u202eb", "a\xffb", `a"b`, "é"} {
		for _, r := range fieldErr(field, "bad").Error() {
			if r < 0x20 || r > 0x7e {
				t.Errorf("%q prints as %q", field, fieldErr(field, "bad").Error())
			}
		}
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"0": 0, "15m": 15 * time.Minute, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err != nil || d.Std() != want {
			t.Errorf("%q: %v, %v", in, d.Std(), err)
		}
		text, err := d.MarshalText()
		var back Duration
		if err != nil || back.UnmarshalText(text) != nil || back != d {
			t.Errorf("%q comes back as %v, %v", in, back.Std(), err)
		}
	}
	for _, in := range []string{"", "15", "-1s", "-0.5h", "15 m", "1d", "forever", "9999999999h", "15m\n", "NaN", "0x10s"} {
		d := Duration(7)
		if err := d.UnmarshalText([]byte(in)); !errors.Is(err, ErrInvalid) || d != 7 {
			t.Errorf("%q: got %v and %v, want ErrInvalid and no change", in, err, d.Std())
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	p := Profile{Name: "team/release", Level: LevelWorkflow, Keys: map[KeyName]KeySpec{}}
	for i := range 8 {
		p.Keys[KeyName(fmt.Sprintf("KEY_%d", i))] = KeySpec{Source: "kv", Ref: KeyRef{Path: "ci/x"}, Bindings: []Binding{{Host: "api.example.com", Methods: []string{"GET"}, Paths: []string{"/x/**"}}}}
	}
	doc, _ := json.Marshal(p)
	b.Run("one reading", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		for b.Loop() {
			var out Profile
			if err := Decode(doc, MaxProfile, &out); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		for b.Loop() {
			var out Profile
			if err := json.Unmarshal(doc, &out); err != nil {
				b.Fatal(err)
			}
		}
	})
}
