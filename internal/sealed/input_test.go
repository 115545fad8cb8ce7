package sealed

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func redactedInput() RedactedInput {
	d := DigestOf(DomainRedacted, nil)
	return RedactedInput{
		Salt: "AAAAAAAAAAAAAAAAAAAAAA==", Argv: []string{"codex", "exec"}, ArgvBytes: 10, ArgvDigest: d,
		HasInput: true, Input: "say [sealed:KEY]", InputBytes: 16, InputDigest: d,
	}
}

func TestParseRedactedInput(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*RedactedInput)
		bad    bool
	}{
		"good":               {func(*RedactedInput) {}, false},
		"no input":           {func(in *RedactedInput) { in.HasInput, in.Input, in.InputBytes, in.InputDigest = false, "", 0, "" }, false},
		"empty input":        {func(in *RedactedInput) { in.Input, in.InputBytes = "", 0 }, false},
		"an empty argument":  {func(in *RedactedInput) { in.Argv = []string{""} }, false},
		"as long as allowed": {func(in *RedactedInput) { in.Input = strings.Repeat("\x01", MaxInputText) }, false},
		"no salt":            {func(in *RedactedInput) { in.Salt = "" }, true},
		"short salt":         {func(in *RedactedInput) { in.Salt = "AAAA" }, true},
		"no command":         {func(in *RedactedInput) { in.Argv = nil }, true},
		"long command":       {func(in *RedactedInput) { in.Argv = []string{strings.Repeat("x", MaxArgvText), "y"} }, true},
		"long input":         {func(in *RedactedInput) { in.Input = strings.Repeat("x", MaxInputText+1) }, true},
		"negative length":    {func(in *RedactedInput) { in.InputBytes = -1 }, true},
		"no argv digest":     {func(in *RedactedInput) { in.ArgvDigest = "" }, true},
		"no input digest":    {func(in *RedactedInput) { in.InputDigest = "" }, true},
		"input beside none":  {func(in *RedactedInput) { in.HasInput = false }, true},
	} {
		in := redactedInput()
		tt.change(&in)
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRedactedInput(string(text)); (err != nil) != tt.bad || tt.bad && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "{}", "null", "[]", `{"salt":1}`, `{"more":1}`} {
		if _, err := ParseRedactedInput(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseRedactedInput(f *testing.F) {
	text, err := json.Marshal(redactedInput())
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(text), "{}", `{"argv":[""]}`, `{"salt":"AAAAAAAAAAAAAAAAAAAAAA=="}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		in, err := ParseRedactedInput(s)
		if err != nil {
			return
		}
		if len(in.Input) > MaxInputText || len(strings.Join(in.Argv, "")) > MaxArgvText {
			t.Errorf("took more than may be kept")
		}
	})
}
