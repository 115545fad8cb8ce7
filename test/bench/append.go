package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/audit"
)

// An AuditLog is a log over a file that is synced at every write, as a
// server's storage is.
type AuditLog struct {
	*audit.Log
	store *synced
}

// OpenAuditLog opens an empty log in dir.
func OpenAuditLog(ctx context.Context, dir string) (*AuditLog, error) {
	s, err := openSynced(dir)
	if err != nil {
		return nil, err
	}
	private, _, err := note.GenerateKey(rand.Reader, "bench.sealed.test/log")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making log key: %w", err), s.close())
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making log key: %w", err), s.close())
	}
	l, err := audit.Open(ctx, s, signer, audit.Config{})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return &AuditLog{Log: l, store: s}, nil
}

// Close removes the log's file.
func (l *AuditLog) Close() error { return l.store.close() }

// Event is a typical entry.
func Event() audit.Event {
	return audit.Event{Type: "issue.intent", Body: map[string]any{
		"key": "GITHUB_TOKEN", "grant": "01JTSEALED0000000000000000", "delivery": "proxy", "source": "vault-kv", "profile": "team/release",
		"profile_version": 7, "effect": "allow", "reasons": []string{}, "pinned": strings.Repeat("ab", 32), "bundle": strings.Repeat("ab", 32), "epoch": 12, "ttl": 600,
	}}
}

// Sync makes the same number of bytes durable that the last append did, and
// nothing else.
func (l *AuditLog) Sync() error { return l.store.repeat() }

// synced is an audit.Storage: the state in memory, every change appended to a
// file and synced. Reads never touch the disk, as in a cached storage.
type synced struct {
	file *os.File

	mu   sync.Mutex
	data map[string][]byte
	last int // bytes of the last Put
}

func openSynced(dir string) (*synced, error) {
	f, err := os.CreateTemp(dir, "log-*")
	if err != nil {
		return nil, fmt.Errorf("making log file: %w", err)
	}
	return &synced{file: f, data: map[string][]byte{}}, nil
}

func (s *synced) close() error {
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}

// Get implements audit.Storage.
func (s *synced) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.data[key]), nil
}

// Put implements audit.Storage.
func (s *synced) Put(_ context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.append(key, value); err != nil {
		return err
	}
	s.data[key], s.last = bytes.Clone(value), len(key)+len(value)
	return nil
}

// Delete implements audit.Storage.
func (s *synced) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.append(key, nil); err != nil {
		return err
	}
	delete(s.data, key)
	return nil
}

// List implements audit.Storage.
func (s *synced) List(_ context.Context, prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for key := range s.data {
		if rest, found := strings.CutPrefix(key, prefix); found {
			if name, _, folder := strings.Cut(rest, "/"); folder {
				names[name+"/"] = true
			} else {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

func (s *synced) append(key string, value []byte) error {
	rec := binary.BigEndian.AppendUint32(nil, uint32(len(key)))
	rec = append(append(rec, key...), value...)
	if _, err := s.file.Write(rec); err != nil {
		return fmt.Errorf("writing log file: %w", err)
	}
	if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
		return fmt.Errorf("syncing log file: %w", err)
	}
	return nil
}

func (s *synced) repeat() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.append("", make([]byte, s.last))
}
