// Package redact holds no code: it runs the vectors of this folder against the redactor. make.py wrote them, with encoders of its own.
package redact

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/redact"
)

type vectorFile struct {
	About  string            `json:"about"`
	Values map[string]string `json:"values"`
	Cases  []vector          `json:"cases"`
}

type vector struct {
	Name   string `json:"name"`
	Lane   string `json:"lane"`
	Key    string `json:"key"`
	In     []byte `json:"in"`
	Wire   []byte `json:"wire"`
	Masked bool   `json:"masked"`
}

func load(t *testing.T) vectorFile {
	t.Helper()
	raw, err := os.ReadFile("vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var f vectorFile
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		t.Fatal(err)
	}
	return f
}

// redacted returns the output of the lane, for writes of n bytes.
func (v vector) redacted(t *testing.T, set *redact.Set, n int) string {
	t.Helper()
	if v.Lane == "stored" {
		out, _, err := redact.Deep{}.Redact(v.In, set, "stored")
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	var out bytes.Buffer
	w := redact.NewWriter(&out, set, "vector")
	for rest := v.In; len(rest) > 0; {
		k := min(n, len(rest))
		if _, err := w.Write(rest[:k]); err != nil {
			t.Fatal(err)
		}
		rest = rest[k:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// leak says why out is wrong, or nothing.
func (v vector) leak(out string) string {
	if !v.Masked {
		if out != string(v.In) {
			return "changed"
		}
		return ""
	}
	if !strings.Contains(out, "[sealed:"+v.Key+"]") {
		return "no mask"
	}
	if bytes.HasPrefix(v.In, []byte("before\n")) && !strings.HasPrefix(out, "before\n") {
		return "neighbor changed"
	}
	for i := 0; i+12 <= len(v.Wire); i++ {
		p := string(v.Wire[i : i+12])
		if alnums(p) >= 4 && strings.Contains(out, p) && !public(p) {
			return "shows " + p
		}
	}
	return ""
}

func alnums(s string) int {
	return len(strings.FieldsFunc(strings.Join(strings.Split(s, ""), " "), func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}))
}

// public reports whether p is part of what anybody may see.
func public(p string) bool {
	for _, s := range []string{"-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----", "https://x:", "@host/", strings.Repeat("&#x2d;", 5) + "&#xa;", strings.Repeat("&#45;", 5)} {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}

func TestVectors(t *testing.T) {
	f := load(t)
	set := redact.NewSet()
	for key, value := range f.Values {
		if err := set.Add(key, []byte(value), redact.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	masked := 0
	for _, v := range f.Cases {
		want := v.redacted(t, set, 1<<30)
		if why := v.leak(want); why != "" {
			t.Errorf("%s %s: %s: %.300q", v.Name, v.Key, why, want)
		}
		for _, n := range []int{1, 7} {
			if got := v.redacted(t, set, n); got != want {
				t.Errorf("%s %s: by %d bytes %.200q, else %.200q", v.Name, v.Key, n, got, want)
			}
		}
		if v.Masked {
			masked++
		}
	}
	if masked < 100 || len(f.Cases)-masked < 10 {
		t.Errorf("%d of %d cases are masked", masked, len(f.Cases))
	}
	t.Run("control off", func(t *testing.T) {
		for _, v := range f.Cases {
			if out := v.redacted(t, redact.NewSet(), 1<<30); v.Masked && v.leak(out) == "" {
				t.Errorf("%s %s: an empty set passes, so the case proves nothing", v.Name, v.Key)
			}
		}
	})
}
