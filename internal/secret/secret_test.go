package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

const canary = "hunter2-swordfish"

// leaks reports whether out shows the canary: as text, quoted, in hex, or as
// the numbers that fmt makes of a byte slice.
func leaks(out string) bool {
	low := strings.ToLower(out)
	numbers := strings.Trim(fmt.Sprint([]byte(canary)), "[]")
	goSyntax := strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(canary)), "[]byte{"), "}")
	for _, form := range []string{canary, hex.EncodeToString([]byte(canary)), fmt.Sprintf("% x", canary), numbers, goSyntax, fmt.Sprintf("%o", []byte(canary)), fmt.Sprintf("%b", []byte(canary))} {
		if strings.Contains(low, strings.Trim(form, "[]")) {
			return true
		}
	}
	return false
}

var verbs = []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%c", "%U", "%e", "%t", "%10.3s", "%-8v", "%z"}

func TestPrintsRedacted(t *testing.T) {
	for _, v := range []*Value{New([]byte(canary)), New(nil), {}, nil} {
		for _, verb := range verbs {
			if got := fmt.Sprintf(verb, v); got != redacted {
				t.Errorf("%s: got %s", verb, got)
			}
		}
		if v.String() != redacted || v.GoString() != redacted || fmt.Sprint(v) != redacted {
			t.Error("String, GoString or Sprint differ")
		}
	}
}

// Whatever holds a Value, however: no verb shows its bytes.
func TestHoldersDoNotLeak(t *testing.T) {
	v := New([]byte(canary))
	type exported struct{ V *Value }
	type unexported struct{ v *Value }
	type embedded struct{ *Value }
	type byValue struct{ v Value } // a mistake, but not one that shows the value
	type deep struct{ m map[string][]unexported }
	held := &byValue{}
	held.v.bytes = New([]byte(canary)).bytes
	holders := map[string]any{
		"exported": exported{v}, "exported pointer": &exported{v}, "unexported": unexported{v}, "unexported pointer": &unexported{v}, "embedded": embedded{v}, "by value": held,
		"slice": []*Value{v}, "map": map[string]*Value{"k": v}, "any": []any{v}, "deep": deep{map[string][]unexported{"k": {{v}}}}, "pointer": &v, "error": fmt.Errorf("using %v: %w", v, errEncode),
	}
	holders["the value, as an error"] = v // %w: fmt passes by every method
	for name, h := range holders {
		for _, verb := range append(verbs, "%w", "%") {
			if out := fmt.Sprintf(verb, h); leaks(out) {
				t.Errorf("%s %s: %s", name, verb, out)
			}
		}
	}
	if got := fmt.Sprintf("%+v", exported{v}); got != "{V:"+redacted+"}" {
		t.Errorf("got %s", got)
	}
	t.Run("negative control: a byte slice leaks", func(t *testing.T) {
		for _, verb := range verbs[:8] {
			if out := fmt.Sprintf(verb, struct{ v []byte }{[]byte(canary)}); !leaks(out) {
				t.Errorf("%s is not recognized: %s", verb, out)
			}
		}
	})
}

func TestLogs(t *testing.T) {
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			log, v := slog.New(handler(&out)), New([]byte(canary))
			log.Info("one", "value", v)
			if !strings.Contains(out.String(), redacted) {
				t.Errorf("got %s", out.String())
			}
			type holder struct{ V *Value }
			log.With("value", v).WithGroup("g").Info("two", slog.Any("holder", holder{v}), slog.Group("h", "v", v), slog.Any("list", []*Value{v}), "err", fmt.Errorf("bad: %v", v))
			if leaks(out.String()) {
				t.Errorf("leaks: %s", out.String())
			}
			log.Info("three", "value", []byte(canary))
			if control := out.String(); !leaks(control) && !strings.Contains(control, "aHVudGVyMi1zd29yZGZpc2g") { // slog writes bytes as text or base64
				t.Error("negative control: a byte slice is not recognized in the log")
			}
		})
	}
}

func TestEncodersFail(t *testing.T) {
	v := New([]byte(canary))
	type holder struct{ V *Value }
	encoders := map[string]func(any) ([]byte, error){
		"json": json.Marshal, "xml": xml.Marshal,
		"gob": func(x any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(x)
			return b.Bytes(), err
		},
		"text": func(any) ([]byte, error) { return v.MarshalText() },
	}
	for name, encode := range encoders {
		for _, x := range []any{v, holder{v}, &holder{v}} {
			out, err := encode(x)
			if !errors.Is(err, errEncode) && err == nil || leaks(string(out)) || (err != nil && leaks(err.Error())) {
				t.Errorf("%s of %T: %q, %v", name, x, out, err)
			}
		}
	}
	if _, err := json.Marshal(map[string]*Value{"k": v}); err == nil {
		t.Error("a map of values was encoded")
	}
	if out, _ := json.Marshal(struct{ V Value }{}); leaks(string(out)) {
		t.Errorf("got %s", out)
	}
}

func reveal(t *testing.T, v *Value) (out []byte) {
	t.Helper()
	if err := v.Reveal(func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRevealAndDestroy(t *testing.T) {
	raw := []byte(canary)
	v := New(raw)
	if got := reveal(t, v); string(got) != canary {
		t.Fatalf("got %q", got)
	}
	want := errors.New("no")
	if err := v.Reveal(func([]byte) error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	v.Destroy()
	if !bytes.Equal(raw, make([]byte, len(canary))) {
		t.Errorf("not wiped: %q", raw)
	}
	v.Destroy()
	for name, v := range map[string]*Value{"destroyed": v, "nil": nil, "zero": {}, "of nothing": New(nil)} {
		if got := reveal(t, v); len(got) != 0 {
			t.Errorf("%s reveals %q", name, got)
		}
		v.Destroy()
	}
}

// With -race: use and destruction in parallel; a use sees all or nothing.
func TestConcurrentUse(t *testing.T) {
	v := New([]byte(canary))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 200 {
				_ = v.Reveal(func(b []byte) error {
					if len(b) != 0 && string(b) != canary {
						t.Errorf("half wiped: %q", b)
					}
					return nil
				})
				_ = fmt.Sprint(v)
			}
			if i%4 == 0 {
				v.Destroy()
			}
		})
	}
	wg.Wait()
}
