package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// A pinEngine answers for a log, and does not look at what it is shown: as an
// engine that somebody has tampered with.
type pinEngine struct {
	t        *testing.T
	verifier note.Verifier
	log      *audit.Log
	status   int // instead of an answer
}

func (p *pinEngine) add(n int) {
	p.t.Helper()
	for range n {
		if _, err := p.log.Append(context.Background(), audit.Event{Type: "test.event"}); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *pinEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.status != 0 {
		w.WriteHeader(p.status)
		_, _ = w.Write([]byte(`{"errors":["no"]}`))
		return
	}
	head, err := p.log.Checkpoint(r.Context())
	if err != nil {
		p.t.Error(err)
	}
	data := map[string]any{"checkpoint": string(head)}
	if strings.HasSuffix(r.URL.Path, "/log/seen") {
		var in struct{ Checkpoint string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			p.t.Error(err)
		}
		data["proof"] = p.prove(r.Context(), in.Checkpoint, head)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func (p *pinEngine) prove(ctx context.Context, seen string, head []byte) string {
	old, err := audit.OpenCheckpoint([]byte(seen), p.verifier)
	if err != nil {
		p.t.Error(err)
	}
	now, err := audit.OpenCheckpoint(head, p.verifier)
	if err != nil {
		p.t.Error(err)
	}
	proof, err := p.log.ConsistencyProof(ctx, min(old.Size, now.Size), now.Size)
	if err != nil {
		p.t.Error(err)
	}
	lines := []string{}
	for _, h := range proof {
		lines = append(lines, base64.StdEncoding.EncodeToString(h[:]))
	}
	doc, err := json.Marshal(lines)
	if err != nil {
		p.t.Error(err)
	}
	return string(doc)
}

func TestPin(t *testing.T) {
	private, public, err := note.GenerateKey(rand.Reader, "test.example/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	p := &pinEngine{t: t}
	if p.verifier, err = note.NewVerifier(public); err != nil {
		t.Fatal(err)
	}
	begin := func(n int) {
		t.Helper()
		if p.log, err = audit.Open(t.Context(), &memory{data: map[string][]byte{}}, signer, audit.Config{}); err != nil {
			t.Fatal(err)
		}
		p.add(n)
	}
	begin(3)
	srv := httptest.NewServer(p)
	defer srv.Close()
	c, err := vaultclient.New(srv.URL, nil, "token")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pin")
	present := func() error { return compare(t.Context(), c.Engine("sealed"), p.verifier, file) }
	pinned := func() string {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(b), "\n")[1]
	}
	for _, want := range []string{"3", "5", "5"} {
		if err := present(); err != nil || pinned() != want {
			t.Fatalf("remembered %s entries, want %s: %v", pinned(), want, err)
		}
		if want == "3" {
			p.add(2)
		}
	}
	// A log that began anew, behind an engine that says nothing of it.
	for _, n := range []int{2, 5, 9} {
		begin(n)
		if err := present(); !errors.Is(err, audit.ErrInconsistent) || pinned() != "5" {
			t.Errorf("another log of %d entries: %v, and %s are remembered", n, err, pinned())
		}
	}
	p.status = http.StatusServiceUnavailable
	if err := present(); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("a mount that was rolled back: %v", err)
	}
	p.status = http.StatusConflict
	var hint *hintError
	if err := present(); !errors.As(err, &hint) || !strings.Contains(hint.hint, file) {
		t.Errorf("a history that was given up: %v", err)
	}
}
