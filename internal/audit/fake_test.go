package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
)

const (
	runA = "01J00000000000000000000001"
	runB = "01J00000000000000000000002"
)

var errStorage = errors.New("storage failed")

// memory is a Storage in memory that can fail around any write.
type memory struct {
	mu     sync.Mutex
	data   map[string][]byte
	writes int // Put and Delete calls so far
	puts   int // acknowledged Puts
	fail   func(write int) fault
	maxPut int
}

type fault int

const (
	ok     fault = iota
	before       // fails without writing
	after        // writes and reports an error
)

func newMemory() *memory { return &memory{data: map[string][]byte{}} }

func (m *memory) clone() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{data: maps.Clone(m.data)}
}

func (m *memory) Get(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.data[key]), nil
}

func (m *memory) write(do func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := ok
	if m.fail != nil {
		f = m.fail(m.writes)
	}
	m.writes++
	if f != before {
		do()
	}
	if f != ok {
		return errStorage
	}
	return nil
}

func (m *memory) Put(_ context.Context, key string, value []byte) error {
	return m.write(func() {
		m.data[key] = bytes.Clone(value)
		m.puts++
		m.maxPut = max(m.maxPut, len(value))
	})
}

func (m *memory) Delete(_ context.Context, key string) error {
	return m.write(func() { delete(m.data, key) })
}

func (m *memory) List(_ context.Context, prefix string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := map[string]bool{}
	for key := range m.data {
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

// testKey returns a log key with its verifier key.
func testKey(t testing.TB, origin string) (note.Signer, string) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return signer, vkey
}

func verifierOf(t testing.TB, vkey string) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// ticking is a clock that goes a second forward at every look.
func ticking() func() time.Time {
	var mu sync.Mutex
	now := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Second)
		return now
	}
}

func openLog(t testing.TB, s Storage, signer note.Signer) *Log {
	t.Helper()
	l, err := Open(context.Background(), s, signer, Config{Clock: ticking()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func appendN(t testing.TB, l *Log, n int) {
	t.Helper()
	for n > 0 {
		events := make([]Event, min(n, tileWidth))
		for i := range events {
			events[i] = Event{Type: "test.event", Body: map[string]any{"n": i}, Essential: true}
		}
		if _, err := l.Append(context.Background(), events...); err != nil {
			t.Fatal(err)
		}
		n -= len(events)
	}
}

// A sample is a small export with all that one can have: two runs with records,
// transcripts, an erased entry.
type sample struct {
	files      fstest.MapFS
	vkey       string
	signer     note.Signer
	old        []byte // an earlier checkpoint
	storage    *memory
	log        *Log
	claim, end map[string]uint64
	keys       map[string]ed25519.PrivateKey
	envelopes  map[string][]byte
}

func newSample(t testing.TB) *sample {
	t.Helper()
	signer, vkey := testKey(t, "sealed.test/log")
	s := &sample{vkey: vkey, signer: signer, storage: newMemory(), claim: map[string]uint64{}, end: map[string]uint64{},
		keys: map[string]ed25519.PrivateKey{}, envelopes: map[string][]byte{}}
	s.log = openLog(t, s.storage, signer)
	appendN(t, s.log, 2)
	s.run(t, runA)
	s.old, _ = s.log.Checkpoint(t.Context())
	s.run(t, runB)
	if err := s.log.Erase(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	s.export(t)
	return s
}

// run logs one run and signs its record.
func (s *sample) run(t testing.TB, run string) {
	t.Helper()
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	s.keys[run] = key
	claim := s.must(t, Event{Type: TypeClaimed, Run: run, Body: map[string]string{"run_key": base64.StdEncoding.EncodeToString(pub)}})
	s.claim[run] = claim.Seq
	mid := s.must(t, Event{Type: "grant.issued", Run: run, Body: map[string]string{"key": "TOKEN"}})
	envelope, err := SignRecord(statement(run, claim.Head, mid.Head), key)
	if err != nil {
		t.Fatal(err)
	}
	s.envelopes[run] = envelope
	body := map[string]string{"record_sha256": fmt.Sprintf("%x", sha256.Sum256(envelope))}
	s.end[run] = s.must(t, Event{Type: TypeFinished, Run: run, Body: body}).Seq
}

func (s *sample) must(t testing.TB, e Event) Receipt {
	t.Helper()
	r, err := s.log.Append(context.Background(), e)
	if err != nil {
		t.Fatal(err)
	}
	return r[0]
}

func statement(run string, claim, finish []byte) Statement {
	digest := func(s string) Digest { return Digest{fmt.Sprintf("%x", sha256.Sum256([]byte(s)))} }
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("x", 3600))
	return Statement{
		Subject: []Subject{{"run", digest("manifest")}, {"stdout", digest("out of " + run)}, {"stderr", digest("")}, {"workspace", digest("w")}},
		Predicate: Predicate{
			Run: run, Tenant: "acme", ManifestDigest: digest("manifest").SHA256, ClaimCheckpoint: string(claim), FinishCheckpoint: string(finish),
			Grants: []Grant{{ID: "g", Key: "TOKEN", Delivery: "proxy", IssuedAt: at, Outcome: "revoked"}}, StartedAt: at, FinishedAt: at,
		},
	}
}

// export writes the sample's log into s.files, through the real thing.
func (s *sample) export(t testing.TB) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "export")
	if err := WriteDir(context.Background(), s.log, dir); err != nil {
		t.Fatal(err)
	}
	for run, envelope := range s.envelopes {
		if err := WriteRecord(dir, run, envelope); err != nil {
			t.Fatal(err)
		}
	}
	s.files = fstest.MapFS{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, path))
		s.files[path] = &fstest.MapFile{Data: data}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for run := range s.envelopes {
		s.files[transcriptPath(run, "stdout")] = &fstest.MapFile{Data: []byte("out of " + run)}
		s.files[transcriptPath(run, "stderr")] = &fstest.MapFile{}
	}
}

// verify verifies files with the sample's key.
func (s *sample) verify(files fs.FS, off checks, pin []byte) (Report, error) {
	v := &verifier{fsys: files, opts: Options{VerifierKey: s.vkey}, pin: pin, off: off}
	return v.verify()
}

// with returns a copy of the sample's files after change.
func (s *sample) with(change func(fstest.MapFS)) fstest.MapFS {
	files := fstest.MapFS{}
	for path, f := range s.files {
		files[path] = &fstest.MapFile{Data: bytes.Clone(f.Data)}
	}
	change(files)
	return files
}

// failedAt returns the entries that err names.
func failedAt(err error) []int64 {
	var seqs []int64
	if many, isMany := err.(interface{ Unwrap() []error }); isMany {
		for _, e := range many.Unwrap() {
			seqs = append(seqs, failedAt(e)...)
		}
		return seqs
	}
	var f *Failure
	if errors.As(err, &f) {
		return []int64{f.Seq}
	}
	return nil
}
