package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// A logCopy is what was read of the log before: every test looks into it, and it
// only grows. Entries, side objects and records do not change once they are
// there; what they prove is checked against the tree, which is read anew.
type logCopy struct {
	mu      sync.Mutex
	next    uint64 // number of the first entry that was not read
	entries []vaultclient.LogEntry
	sides   map[uint64]audit.Side
	records map[sealed.RunID][]byte
}

func newLogCopy() *logCopy {
	return &logCopy{sides: map[uint64]audit.Side{}, records: map[sealed.RunID][]byte{}}
}

// Entries returns the log entries of a run, oldest first, as the engine tells
// them; of the whole log if run is empty.
func (s *Stack) Entries(t testing.TB, run sealed.RunID) []vaultclient.LogEntry {
	t.Helper()
	e := s.Engine(t, "auditor")
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	for {
		page, next, err := e.LogEntries(t.Context(), vaultclient.LogFilter{From: s.log.next, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		s.log.entries = append(s.log.entries, page...)
		if next <= s.log.next {
			break
		}
		s.log.next = next
	}
	var out []vaultclient.LogEntry
	for _, entry := range s.log.entries {
		if run == "" || entry.Run == run {
			out = append(out, entry)
		}
	}
	return out
}

// Types returns the types of entries, in order.
func Types(entries []vaultclient.LogEntry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Type)
	}
	return out
}

// A sideReader asks for a side object once: there is one call for each.
type sideReader struct {
	audit.Reader
	log *logCopy
}

// Side implements audit.Reader.
func (r sideReader) Side(ctx context.Context, seq uint64) (audit.Side, error) {
	r.log.mu.Lock()
	side, ok := r.log.sides[seq]
	r.log.mu.Unlock()
	if ok {
		return side, nil
	}
	side, err := r.Reader.Side(ctx, seq)
	if err == nil {
		r.log.mu.Lock()
		r.log.sides[seq] = side
		r.log.mu.Unlock()
	}
	return side, err
}

// Pull takes the whole log and the records away into a new directory. Side
// objects and records come from what was read before: a test that changes them
// in Vault's storage, or erases them, exports with audit.WriteDir itself.
func (s *Stack) Pull(t testing.TB) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "log")
	e := s.Engine(t, "auditor")
	s.log.mu.Lock()
	seen := s.log.next
	s.log.mu.Unlock()
	if err := audit.WriteDir(t.Context(), sideReader{e.LogReader(), s.log}, dir); err != nil {
		t.Fatal(err)
	}
	head, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	var size uint64
	if lines := strings.SplitN(string(head), "\n", 3); len(lines) == 3 {
		if _, err := fmt.Sscanf(lines[1], "%d", &size); err != nil {
			t.Fatal(err)
		}
	}
	if size < seen {
		t.Fatalf("the log had %d entries, and now has %d", seen, size)
	}
	for _, x := range s.Entries(t, "") {
		if x.Type == audit.TypeFinished && x.Seq < size {
			s.pullRecord(t, e, dir, x.Run)
		}
	}
	return dir
}

func (s *Stack) pullRecord(t testing.TB, e *vaultclient.Engine, dir string, run sealed.RunID) {
	t.Helper()
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	record, ok := s.log.records[run]
	if !ok {
		var err error
		if record, err = e.Record(t.Context(), run); err != nil {
			t.Fatal(err)
		}
		s.log.records[run] = record
	}
	if err := audit.WriteRecord(dir, string(run), record); err != nil {
		t.Fatal(err)
	}
}

// LogKey is the log's verifier key, from the trust file.
func (s *Stack) LogKey(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(s.Status.TrustFile)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := sealed.ParseTrustFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return trust.LogKey
}

// Verify pulls the log and verifies it and every record from the files alone.
func (s *Stack) Verify(t testing.TB) audit.Report {
	t.Helper()
	r, err := audit.VerifyDir(s.Pull(t), audit.Options{VerifierKey: s.LogKey(t)})
	if err != nil {
		t.Fatalf("verifying: %v", err)
	}
	return r
}
