package vaultclient

import (
	"errors"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

func TestSeen(t *testing.T) {
	const hash = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	answer := map[string]any{"checkpoint": "a note", "proof": `["` + hash + `","` + hash + `"]`}
	e, got := answering(t, answer)
	head, proof, err := e.Seen(t.Context(), []byte("what I saw"))
	if err != nil || string(head) != "a note" || len(proof) != 2 {
		t.Errorf("%q, %d hashes: %v", head, len(proof), err)
	}
	if r := (*got)[0]; !strings.HasSuffix(r.URL.Path, "/log/seen") {
		t.Errorf("asked %s", r.URL.Path)
	}
	for _, bad := range []any{1, "", "{}", `["AAAA"]`, `["%"]`, `[1]`} {
		answer["proof"] = bad
		if _, _, err := e.Seen(t.Context(), []byte("x")); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("proof %v: %v", bad, err)
		}
	}
}

func TestRollback(t *testing.T) {
	answer := map[string]any{"rolled_back": true, "lost": "a note", "lost_size": "12", "restored_size": "7", "aborted": 3}
	e, _ := answering(t, answer)
	r, err := e.Rollback(t.Context())
	if err != nil || !r.RolledBack || r.LostSize != 12 || r.RestoredSize != 7 || r.Lost != "a note" {
		t.Errorf("%+v: %v", r, err)
	}
	if n, err := e.AttestRollback(t.Context(), 12, 1, 0, "meant"); err != nil || n != 3 {
		t.Errorf("%d: %v", n, err)
	}
	answer["lost_size"], answer["aborted"] = "many", "many"
	if _, err := e.Rollback(t.Context()); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a size that is no number: %v", err)
	}
	if _, err := e.AttestRollback(t.Context(), 12, 1, 0, "meant"); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a count that is no number: %v", err)
	}
}
