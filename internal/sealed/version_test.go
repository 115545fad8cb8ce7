package sealed

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestSourceVersion(t *testing.T) {
	for in, want := range map[string]struct {
		version SourceVersion
		out     string
	}{
		`3`: {"3", `3`}, `"3"`: {"3", `3`}, `0`: {"", `""`}, `""`: {"", `""`}, `null`: {"", `""`},
		`"03"`: {"03", `"03"`}, `"9e2f-01"`: {"9e2f-01", `"9e2f-01"`}, `"2147483648"`: {"2147483648", `"2147483648"`},
		`"2024-01-02T03:04:05.6Z"`: {"2024-01-02T03:04:05.6Z", `"2024-01-02T03:04:05.6Z"`},
	} {
		var v SourceVersion
		if err := json.Unmarshal([]byte(in), &v); err != nil || v != want.version || v.Validate("f") != nil {
			t.Errorf("%s: %q %v", in, v, err)
		}
		if out, err := json.Marshal(v); err != nil || string(out) != want.out {
			t.Errorf("%s: written as %s %v", in, out, err)
		}
	}
	for _, in := range []string{`1.5`, `1e3`, `{}`, `[]`, `true`} {
		var v SourceVersion
		if err := json.Unmarshal([]byte(in), &v); err == nil {
			t.Errorf("%s: read as %q", in, v)
		}
	}
	for _, v := range []SourceVersion{"-1", VersionNumber(-1), " 1", "a b", "a\n", "ä", SourceVersion(strings.Repeat("a", 129))} {
		if err := v.Validate("ref.version"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", v, err)
		}
	}
	if n, ok := SourceVersion("7").Number(); n != 7 || !ok {
		t.Error(n, ok)
	}
	for _, v := range []SourceVersion{"", "0", "07", "+7", "-7", "7a", "2147483648"} {
		if n, ok := v.Number(); ok {
			t.Errorf("%q is a number: %d", v, n)
		}
	}
}
