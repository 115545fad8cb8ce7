package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
)

// memory is audit.Storage without persistence.
type memory struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (m *memory) Get(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data[key], nil
}

func (m *memory) Put(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[key] = append([]byte(nil), value...)
	return nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.data, key)
	return nil
}

func (m *memory) List(_ context.Context, prefix string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[string]bool{}
	for key := range m.data {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			name, _, folder := strings.Cut(rest, "/")
			if folder {
				name += "/"
			}
			seen[name] = true
		}
	}
	var out []string
	for name := range seen {
		out = append(out, name)
	}
	sort.Strings(out)
	return out, nil
}

// cmdExport: export PREFIX N… makes one log with a key of its own, and exports
// it into PREFIX.N each time it has N entries. PREFIX.key is its verifier key.
func cmdExport(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: export PREFIX N…")
	}
	private, public, err := note.GenerateKey(rand.Reader, "test.example/log")
	ts.Check(err)
	signer, err := note.NewSigner(private)
	ts.Check(err)
	ctx := context.Background()
	log, err := audit.Open(ctx, &memory{data: map[string][]byte{}}, signer, audit.Config{})
	ts.Check(err)
	prefix, n := ts.MkAbs(args[0]), 0
	for _, arg := range args[1:] {
		size, err := strconv.Atoi(arg)
		ts.Check(err)
		for ; n < size; n++ {
			_, err := log.Append(ctx, audit.Event{Type: "test.event", Body: map[string]any{"n": n}})
			ts.Check(err)
		}
		ts.Check(audit.WriteDir(ctx, log, fmt.Sprintf("%s.%d", prefix, size)))
	}
	ts.Check(os.WriteFile(filepath.Clean(prefix)+".key", []byte(public), 0o600))
	ts.Setenv("LOGKEY", public)
}
