package sandboxinit

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/canary"
)

// armed is a set that knows a canary as API_KEY.
func armed(t *testing.T, c *canary.Canary) *redact.Set {
	t.Helper()
	set := redact.NewSet()
	if err := set.Add("API_KEY", []byte(c.Value), redact.Options{}); err != nil {
		t.Fatal(err)
	}
	return set
}

func zeros() *bytes.Reader { return bytes.NewReader(make([]byte, 16)) }

func parsed(t *testing.T, h handedInput) sealed.RedactedInput {
	t.Helper()
	in, err := sealed.ParseRedactedInput(h.document)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// A value in arguments and input, whole, encoded or over several arguments, is
// masked in the document, and the oracle finds it when redaction is off.
func TestRedactInput(t *testing.T) {
	c, err := canary.New("API_KEY")
	if err != nil {
		t.Fatal(err)
	}
	half := len(c.Value) / 2
	boot := sealed.Boot{
		Argv:     []string{"tool", "--token=" + c.Value, "", c.Value[:half], c.Value[half:], "end"},
		Input:    []byte("say " + c.Value + " now\n\xff"),
		HasInput: true,
	}
	h, err := redactInput(boot, scrubWith(armed(t, c)), zeros())
	if err != nil {
		t.Fatal(err)
	}
	in := parsed(t, h)
	want := []string{"tool", "--token=[sealed:API_KEY]", "", "[sealed:API_KEY]", "end"}
	if diff := cmp.Diff(want, in.Argv); diff != "" {
		t.Error(diff)
	}
	if in.Input != "say [sealed:API_KEY] now\n\uFFFD" || !in.HasInput || in.InputBytes != len("say [sealed:API_KEY] now\n\xff") {
		t.Errorf("input %q of %d bytes", in.Input, in.InputBytes)
	}
	if h.digest != sealed.DigestOf(sealed.DomainRedacted, []byte(h.document)) {
		t.Error("the digest is of something else")
	}
	streams := map[string]int{}
	for _, n := range h.counts {
		streams[n.Stream] += n.N
	}
	if diff := cmp.Diff(map[string]int{"command": 2, "input": 1}, streams); diff != "" {
		t.Error(diff)
	}
	if hits := canary.Scan("document", []byte(h.document), c); len(hits) > 0 {
		t.Error(hits)
	}
	t.Run("control off", func(t *testing.T) {
		h, err := redactInput(boot, func(_ string, text []byte) ([]byte, []redact.Count, error) { return text, nil, nil }, zeros())
		if err != nil || len(canary.Scan("document", []byte(h.document), c)) == 0 {
			t.Errorf("the oracle does not find the value: %v", err)
		}
	})
}

// What is kept is bounded, cut between characters, and was redacted before it
// was cut: no piece of a value is left at the cut.
func TestRedactInputIsBounded(t *testing.T) {
	c, err := canary.New("API_KEY")
	if err != nil {
		t.Fatal(err)
	}
	scrub := scrubWith(armed(t, c))
	for pad := sealed.MaxInputText - 50; pad <= sealed.MaxInputText; pad += 7 {
		boot := sealed.Boot{Argv: []string{strings.Repeat("é", sealed.MaxArgvText/2+1), "more"}, HasInput: true,
			Input: []byte(strings.Repeat(".", pad) + c.Value + strings.Repeat("é", 100))}
		h, err := redactInput(boot, scrub, zeros())
		if err != nil {
			t.Fatal(err)
		}
		in := parsed(t, h)
		if len(in.Argv) != 1 || len(in.Argv[0]) != sealed.MaxArgvText || in.ArgvBytes != sealed.MaxArgvText+7 {
			t.Errorf("kept %d bytes of a command of %d", len(in.Argv[0]), in.ArgvBytes)
		}
		if len(in.Input) > sealed.MaxInputText || len(in.Input) < sealed.MaxInputText-1 || strings.Contains(in.Input, c.Value[:8]) {
			t.Errorf("padding %d: kept %d bytes, %q", pad, len(in.Input), in.Input[pad:])
		}
	}
	t.Run("live input", func(t *testing.T) {
		h, err := redactInput(sealed.Boot{Argv: []string{"x"}, Interactive: true}, scrub, zeros())
		if in := parsed(t, h); err != nil || in.HasInput {
			t.Errorf("%+v, %v", in, err)
		}
	})
	t.Run("no redactor", func(t *testing.T) {
		set := armed(t, c)
		set.Wipe()
		if _, err := redactInput(sealed.Boot{Argv: []string{"x"}}, scrubWith(set), zeros()); !errors.Is(err, redact.ErrWiped) {
			t.Errorf("a document without a redactor: %v", err)
		}
	})
}

// Handing in is asked for again once, with the same document, and its failure
// is the caller's: deliver starts no agent then.
func TestHandInput(t *testing.T) {
	for name, tt := range map[string]struct {
		refusals, status, calls int
		err                     error
	}{
		"taken":        {0, 0, 1, nil},
		"answer lost":  {1, 500, 2, nil},
		"out of reach": {9, 503, 2, sealed.ErrUnavailable},
		"refused":      {9, 403, 1, sealed.ErrDenied},
		"another":      {9, 409, 1, sealed.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			r := &runner{session: d.session(), set: redact.NewSet(), boot: testBoot()}
			r.armOwn("ticket", ticket)
			r.boot.Argv = append(r.boot.Argv, "with "+ticket)
			d.before = onVerbUntil("events", tt.status, tt.refusals)
			if err := r.handInput(t.Context()); !errors.Is(err, tt.err) {
				t.Fatalf("handing in: %v, want %v", err, tt.err)
			}
			calls := d.of("events")
			if len(calls) != tt.calls {
				t.Fatalf("%d calls", len(calls))
			}
			for _, call := range calls {
				var req sealed.EventsRequest
				if err := json.Unmarshal([]byte(call.payload), &req); err != nil || req.Input != r.input.document || len(req.Events) != 0 {
					t.Errorf("sent %+v: %v", req, err)
				}
				noLeak(t, "the document", req.Input)
			}
		})
	}
}

// onVerbUntil refuses the first calls of a verb.
func onVerbUntil(verb string, status, times int) func(http.ResponseWriter, *http.Request, string, int) bool {
	return func(w http.ResponseWriter, _ *http.Request, got string, n int) bool {
		return got == verb && n <= times && refuse(w, status)
	}
}
