package vaultplugin

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// inputDocument is what init makes of a command that holds a value.
func (w *world) inputDocument(word string) (string, sealed.Digest) {
	d := sealed.DigestOf(sealed.DomainRedacted, []byte(word))
	text := w.json(sealed.RedactedInput{
		Salt: base64.StdEncoding.EncodeToString(make([]byte, 16)), Argv: []string{"claude", "-p", word}, ArgvBytes: len(word) + 10, ArgvDigest: d,
		HasInput: true, Input: "use " + word, InputBytes: len(word) + 4, InputDigest: d,
	})
	return text, sealed.DigestOf(sealed.DomainRedacted, []byte(text))
}

func (g *guest) hand(document string, events ...sealed.RunEvent) error {
	_, err := g.call("events", sealed.EventsRequest{Run: g.run, Path: g.path("events"), Events: events, Input: document})
	return err
}

// shown is what runs/<id> says about the input.
func (g *guest) shown() (document, digest any) {
	g.w.t.Helper()
	resp, err := g.w.do("op", "", logical.ReadOperation, "runs/"+string(g.run), nil)
	if err != nil {
		g.w.t.Fatal(err)
	}
	return resp.Data["redacted_input"], resp.Data["redacted_input_digest"]
}

// entries counts the entries of a type.
func (w *world) entries(typ string) (n int) {
	for _, line := range w.logged() {
		if strings.HasPrefix(line, typ+" ") {
			n++
		}
	}
	return n
}

// The document is kept once, apart from the run's row, and its digest is
// logged; what the text says is not.
func TestRedactedInput(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	if document, _ := g.shown(); document != nil {
		t.Fatalf("before it was handed in: %v", document)
	}
	text, digest := w.inputDocument("[sealed:LOW]")
	if err := g.hand(text); err != nil {
		t.Fatal(err)
	}
	if document, d := g.shown(); document != text || d != string(digest) {
		t.Fatalf("runs/<id> shows %v, %v", document, d)
	}
	w.wantEntry(typeInputRedacted+" ", string(digest), `"input_bytes":16`)
	for _, line := range w.logged() {
		if strings.Contains(line, "[sealed:LOW]") {
			t.Errorf("the log has the text: %s", line)
		}
	}
	if err := g.hand(text); err != nil || w.entries(typeInputRedacted) != 2 {
		t.Errorf("the same again: %v, %d entries", err, w.entries(typeInputRedacted))
	}
	other, _ := w.inputDocument("other")
	wantCode(t, g.hand(other), 409)
	wantCode(t, g.hand(`{"argv":["x"]}`), 400)
	if document, _ := g.shown(); document != text {
		t.Errorf("it was replaced by %v", document)
	}

	wantCode(t, g.finish(g.record(nil)), 400) // the record has to name it
	named := func(s *audit.Statement) { s.Predicate.RedactedInput = string(digest) }
	_, err := w.do("op", "", logical.DeleteOperation, g.path("input"), nil)
	wantCode(t, err, 409) // not while it runs
	if err := g.finish(g.record(named)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, g.hand(text), 403)
	if _, err := w.do("op", "", logical.DeleteOperation, g.path("input"), nil); err != nil {
		t.Fatal(err)
	}
	if document, d := g.shown(); document != nil || d != nil {
		t.Errorf("after it was erased: %v, %v", document, d)
	}
	w.wantEntry(typeInputErased+" ", string(g.run), "op")
}

// The entry comes with the document or the call fails; what is tried again
// after a failure at any write is kept and logged once more.
func TestRedactedInputFailures(t *testing.T) {
	const far = 100
	for n := 1; n < far; n++ {
		for _, after := range []bool{false, true} {
			w := newWorld(t)
			g := w.claimed(idem(1))
			text, _ := w.inputDocument("x")
			w.s.setFail(func(i int, _ string) (bool, bool) { return i == n && !after, i == n && after })
			err := g.hand(text)
			writes := w.s.count()
			w.s.setFail(nil)
			if writes < n {
				if err != nil || n < 3 {
					t.Fatalf("%d writes: %v", writes, err)
				}
				n = far
				break
			}
			if err == nil {
				t.Fatalf("write %d failed, the call did not", n)
			}
			w.open()
			if err := g.hand(text); err != nil {
				t.Fatalf("again after write %d: %v", n, err)
			}
			if document, _ := g.shown(); document != text || w.entries(typeInputRedacted) == 0 {
				t.Errorf("after write %d: %v, %d entries", n, document, w.entries(typeInputRedacted))
			}
		}
	}
}

// What init hands in at once with events does not come without them being
// checked first, and a run that was ordered to stop hands in nothing.
func TestRedactedInputOrder(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	text, _ := w.inputDocument("x")
	wantCode(t, g.hand(text, sealed.RunEvent{Type: "run.finished", Count: 1}), 400)
	if document, _ := g.shown(); document != nil {
		t.Errorf("kept beside a bad event: %v", document)
	}
	if _, err := w.b.endRun(context.Background(), w.s, g.run, sealed.RunAborted, "op", "test", nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, g.hand(text), 403)
}
