package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func TestVerifySample(t *testing.T) {
	s := newSample(t)
	got, err := s.verify(s.files, 0, s.old)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := checkpointText(s.files[checkpointPath].Data)
	want := Report{Origin: "sealed.test/log", Size: 9, Root: c.Root, Unwitnessed: true, PinnedSize: 5,
		Records: []string{runA, runB}, Erased: []uint64{1}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(got.String(), "unwitnessed") {
		t.Errorf("report does not say that it is unwitnessed:\n%s", got)
	}
}

// G01: every bit of every file counts. A flip that goes unnoticed would mean that
// the format has bytes that nobody has signed.
func TestVerifyFindsEveryFlip(t *testing.T) {
	s := newSample(t)
	var flips int
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		data := s.files[path].Data
		for i := range data {
			for bit := range 8 {
				if testing.Short() && (i%4 != 0 || bit != i/4%8) {
					continue
				}
				data[i] ^= 1 << bit
				if _, err := s.verify(s.files, 0, nil); err == nil {
					t.Errorf("%s: byte %d, bit %d: not found", path, i, bit)
				}
				data[i] ^= 1 << bit
				flips++
			}
		}
	}
	t.Logf("%d flips", flips)
	if _, err := s.verify(s.files, 0, nil); err != nil {
		t.Fatal(err)
	}
}

// G01: a changed entry or body is named.
func TestVerifyNamesEntry(t *testing.T) {
	s := newSample(t)
	for seq := range int64(9) {
		t.Run(fmt.Sprint(seq), func(t *testing.T) {
			files := s.with(func(files fstest.MapFS) {
				data := files["tile/entries/000.p/9"].Data
				leaves, _ := ParseBundle(data)
				leaves[seq][len(leaves[seq])-5] ^= 1
			})
			_, err := s.verify(files, 0, nil)
			if got := failedAt(err); len(got) == 0 || got[0] != seq {
				t.Errorf("failed at %v, want %d: %v", got, seq, err)
			}
			if seq == 1 {
				return // erased
			}
			files = s.with(func(files fstest.MapFS) { files[sidePath(seq)].Data[30] ^= 1 })
			_, err = s.verify(files, 0, nil)
			if got := failedAt(err); len(got) == 0 || got[0] != seq {
				t.Errorf("side: failed at %v, want %d: %v", got, seq, err)
			}
		})
	}
}

// G02: no file can go missing, and none can be added.
func TestVerifyFindsMissingAndAdded(t *testing.T) {
	s := newSample(t)
	for path := range s.files {
		files := s.with(func(files fstest.MapFS) { delete(files, path) })
		report, err := s.verify(files, 0, nil)
		if filepath.Ext(path) == ".log" { // optional, and reported
			if err != nil || !slices.Contains(report.Missing, path) {
				t.Errorf("%s: %v, %v", path, report.Missing, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: its absence was not found", path)
		}
	}
	for _, path := range []string{"x", "tile/0/001", "tile/0/000", "tile/0/000.p/8", "tile/entries/000.p/3", "tile/1/000.p/1", "sides/9.json",
		"sides/01.json", "sides/1.json", "records/x", "records/" + runA + "/other.log", "records/01J00000000000000000000009.dsse.json", "records/01J00000000000000000000009/stdout.log"} {
		files := s.with(func(files fstest.MapFS) { files[path] = &fstest.MapFile{Data: []byte("{}")} })
		if _, err := s.verify(files, 0, nil); err == nil {
			t.Errorf("%s: was not found", path)
		}
	}
}

// resign returns the sample's files with other leaves, consistently rebuilt and
// signed with key: what an attacker with that key could make.
func (s *sample) resign(t *testing.T, key note.Signer, change func([][]byte) [][]byte) fstest.MapFS {
	t.Helper()
	leaves, err := ParseBundle(bytes.Clone(s.files["tile/entries/000.p/9"].Data))
	if err != nil {
		t.Fatal(err)
	}
	leaves = change(leaves)
	var hashes []Hash
	var peaks frontier
	for i, leaf := range leaves {
		hashes = append(hashes, tlog.RecordHash(leaf))
		peaks = peaks.add(int64(i), hashes[i])
	}
	head, err := signCheckpoint(key, int64(len(leaves)), peaks.root())
	if err != nil {
		t.Fatal(err)
	}
	return s.with(func(files fstest.MapFS) {
		delete(files, "tile/entries/000.p/9")
		delete(files, "tile/0/000.p/9")
		files[fmt.Sprintf("tile/entries/000.p/%d", len(leaves))] = &fstest.MapFile{Data: marshalBundle(leaves)}
		files[fmt.Sprintf("tile/0/000.p/%d", len(leaves))] = &fstest.MapFile{Data: marshalHashes(hashes)}
		files[checkpointPath] = &fstest.MapFile{Data: head}
	})
}

// G02, G03, G06, G07: what is left to find when the tree has been rebuilt around
// the change. The negative control shows which check finds it.
func TestVerifyRebuiltTree(t *testing.T) {
	s := newSample(t)
	other, _ := testKey(t, "sealed.test/log")
	retime := func(raw []byte, year int) []byte {
		leaf, _ := ParseLeaf(raw)
		leaf.Time = leaf.Time.AddDate(year, 0, 0)
		return leaf.Marshal()
	}
	for _, tt := range []struct {
		name   string
		key    note.Signer
		change func([][]byte) [][]byte
		at     int64
		off    checks // with these off it goes unnoticed; 0 if that cannot be shown
	}{
		{"nothing", s.signer, func(l [][]byte) [][]byte { return l }, -2, 0},
		{"without the key", other, func(l [][]byte) [][]byte { return l }, -1, 0},
		{"deleted", s.signer, func(l [][]byte) [][]byte { return slices.Delete(l, 0, 1) }, 0, 0},
		{"swapped", s.signer, func(l [][]byte) [][]byte { l[3], l[0] = l[0], l[3]; return l }, 0, checkSeq | checkTime | checkSide},
		{"duplicated", s.signer, func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[2]) }, 3, 0},
		{"back in time", s.signer, func(l [][]byte) [][]byte { l[8] = retime(l[8], -1); return l }, 8, checkTime | checkPin},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := s.resign(t, tt.key, tt.change)
			// Records rest on checkpoints of the true log; leave them out of the way.
			for path := range files {
				if _, is := recordOf(path); is {
					delete(files, path)
				}
			}
			check := func(off checks) error {
				v := &verifier{fsys: files, opts: Options{VerifierKey: s.vkey, Partial: true}, off: off}
				_, err := v.verify()
				return err
			}
			err := check(0)
			if tt.at == -2 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if got := failedAt(err); len(got) == 0 || !slices.Contains(got, tt.at) {
				t.Errorf("failed at %v, want %d: %v", got, tt.at, err)
			}
			if tt.off != 0 {
				if err := check(tt.off); err != nil {
					t.Errorf("with the control off: %v", err)
				}
			}
		})
	}
}

// Negative controls: a change that only the named check finds.
func TestVerifyNegativeControls(t *testing.T) {
	s := newSample(t)
	other := newSample(t)
	for _, tt := range []struct {
		name  string
		files fstest.MapFS
		pin   []byte
		off   checks
	}{
		{"hash", s.with(func(f fstest.MapFS) { f["tile/0/000.p/9"].Data[0] ^= 1 }), nil, checkHash | checkRecordKey},
		{"side of another entry", s.with(func(f fstest.MapFS) { f[sidePath(3)] = f[sidePath(0)] }), nil, checkSide},
		{"missing side", s.with(func(f fstest.MapFS) { delete(f, sidePath(0)) }), nil, checkSide},
		{"extra file", s.with(func(f fstest.MapFS) { f["x"] = &fstest.MapFile{} }), nil, checkExtra},
		{"pin of another log", s.files, other.old, checkPin},
		{"record of another log", s.with(func(f fstest.MapFS) {
			f[recordPath(runA)] = other.files[recordPath(runA)]
			delete(f, transcriptPath(runA, "stdout"))
			delete(f, transcriptPath(runA, "stderr"))
		}), nil, checkRecordDigest | checkRecordKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := s.verify(tt.files, 0, tt.pin); err == nil {
				t.Error("not found")
			}
			if _, err := s.verify(tt.files, tt.off, tt.pin); err != nil {
				t.Errorf("found with the control off: %v", err)
			}
		})
	}
}

// G04, G05: a log that was cut back or restarted is found by the pin, and only by it.
func TestVerifyPin(t *testing.T) {
	s := newSample(t)
	newest := s.files[checkpointPath].Data
	short := newMemory()
	l := openLog(t, short, s.signer)
	appendN(t, l, 3)
	again := &sample{vkey: s.vkey, signer: s.signer, log: l, storage: short}
	again.export(t)
	if _, err := s.verify(again.files, 0, nil); err != nil {
		t.Errorf("negative control: a restarted log is well-formed: %v", err)
	}
	for name, pin := range map[string][]byte{"longer": newest, "other": s.old} {
		if _, err := s.verify(again.files, 0, pin); !errors.Is(err, ErrInconsistent) {
			t.Errorf("%s pin: %v", name, err)
		}
	}
	// A restarted log that has grown past the pin.
	appendN(t, l, 30)
	again.export(t)
	if _, err := s.verify(again.files, 0, newest); !errors.Is(err, ErrInconsistent) {
		t.Errorf("grown: %v", err)
	}
}

// writeFiles puts a sample on disk.
func writeFiles(t *testing.T, files fstest.MapFS) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "x")
	if err := os.CopyFS(dir, files); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestVerifyDir(t *testing.T) {
	s := newSample(t)
	dir := writeFiles(t, s.files)
	pin := filepath.Join(t.TempDir(), "pin")
	o := Options{VerifierKey: s.vkey, PinFile: pin}
	report, err := VerifyDir(dir, o)
	if err != nil || !report.FirstSeen || !report.Unwitnessed {
		t.Fatalf("%+v, %v", report, err)
	}
	if report, err = VerifyDir(dir, o); err != nil || report.FirstSeen || report.PinnedSize != 9 {
		t.Fatalf("%+v, %v", report, err)
	}
	// A failure leaves the pin alone.
	pinned, _ := os.ReadFile(pin)
	if err := os.Remove(filepath.Join(dir, "sides/0.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "sides/0.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyDir(dir, o); err == nil {
		t.Error("a link was followed")
	}
	if now, _ := os.ReadFile(pin); !bytes.Equal(now, pinned) {
		t.Error("a failure changed the pin")
	}
	// An empty or damaged pin is not "no pin".
	for _, bad := range [][]byte{{}, []byte("x"), pinned[:len(pinned)-9]} {
		if err := os.WriteFile(pin, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyDir(writeFiles(t, s.files), o); err == nil {
			t.Errorf("pin %q was accepted", bad)
		}
	}
	if _, err := VerifyDir(t.TempDir(), Options{VerifierKey: s.vkey}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty directory: %v", err)
	}
}

// G09: rotation. The old key is good for what it signed then, for nothing new.
func TestVerifyKeys(t *testing.T) {
	s := newSample(t)
	next, nextKey := testKey(t, "sealed.test/log")
	_, foreign := testKey(t, "sealed.test/other")
	s.log = openLog(t, s.storage, next)
	appendN(t, s.log, 1)
	old := s.files
	s.export(t)
	for _, tt := range []struct {
		name  string
		files fstest.MapFS
		o     Options
		ok    bool
	}{
		{"new key", s.files, Options{VerifierKey: nextKey, PreviousKeys: []string{s.vkey}, Pinned: s.old}, true},
		{"previous key not given", s.files, Options{VerifierKey: nextKey, Pinned: s.old}, false},
		{"old head under the new key", old, Options{VerifierKey: nextKey, PreviousKeys: []string{s.vkey}}, false},
		{"new head under the old key", s.files, Options{VerifierKey: s.vkey}, false},
		{"unknown key", s.files, Options{VerifierKey: foreign, PreviousKeys: []string{s.vkey, nextKey}}, false},
		{"no key", s.files, Options{}, false},
	} {
		v := &verifier{fsys: tt.files, opts: tt.o}
		if _, err := v.verify(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestVerifyWitness(t *testing.T) {
	s := newSample(t)
	witness, wkey := testKey(t, "witness.test")
	n, err := note.Open(s.files[checkpointPath].Data, note.VerifierList(verifierOf(t, s.vkey)))
	if err != nil {
		t.Fatal(err)
	}
	both, err := note.Sign(n, witness)
	if err != nil {
		t.Fatal(err)
	}
	only, err := note.Sign(&note.Note{Text: n.Text}, witness)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(head []byte, witnesses ...note.Verifier) (Report, error) {
		files := s.with(func(f fstest.MapFS) { f[checkpointPath].Data = head })
		v := &verifier{fsys: files, opts: Options{VerifierKey: s.vkey, Witnesses: witnesses}}
		return v.verify()
	}
	if r, err := verify(both, verifierOf(t, wkey)); err != nil || r.Unwitnessed || !slices.Equal(r.Witnesses, []string{"witness.test"}) {
		t.Errorf("witnessed: %+v, %v", r, err)
	}
	if r, err := verify(both); err != nil || !r.Unwitnessed || r.UnknownSigs != 1 {
		t.Errorf("unknown witness: %+v, %v", r, err)
	}
	if _, err := verify(only, verifierOf(t, wkey)); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("signed by the witness alone: %v", err)
	}
	if _, err := verify(append(both, both[bytes.LastIndex(both, []byte("— ")):]...), verifierOf(t, wkey)); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("two signatures by one key: %v", err)
	}
}

// G20: a record belongs to one run of one log.
func TestVerifyRecord(t *testing.T) {
	s := newSample(t)
	swap := s.with(func(f fstest.MapFS) {
		f[recordPath(runA)], f[recordPath(runB)] = f[recordPath(runB)], f[recordPath(runA)]
	})
	if _, err := s.verify(swap, 0, nil); !slices.Contains(failedAt(err), int64(s.end[runA])) {
		t.Errorf("swapped: %v", err)
	}
	transcript := s.with(func(f fstest.MapFS) { f[transcriptPath(runA, "stdout")].Data = []byte("out of " + runB) })
	if _, err := s.verify(transcript, 0, nil); !slices.Contains(failedAt(err), int64(s.end[runA])) {
		t.Errorf("transcript: %v", err)
	}
	// An engine that finishes a run with a record of its own making.
	for name, forge := range map[string]func(run string, claim, mid []byte) []byte{
		"another key": func(run string, claim, mid []byte) []byte {
			_, key, _ := ed25519.GenerateKey(rand.Reader)
			e, _ := SignRecord(statement(run, claim, mid), key)
			return e
		},
		"another run": func(_ string, claim, mid []byte) []byte {
			e, _ := SignRecord(statement(runA, claim, mid), s.keys[runB])
			return e
		},
		"checkpoints in the wrong order": func(run string, claim, mid []byte) []byte {
			e, _ := SignRecord(statement(run, mid, claim), s.keys[runB])
			return e
		},
		"claim not in the checkpoint": func(run string, _, mid []byte) []byte {
			e, _ := SignRecord(statement(run, s.old, mid), s.keys[runB])
			return e
		},
		"checkpoint of a fork": func(run string, claim, _ []byte) []byte {
			fork := openLog(t, newMemory(), s.signer)
			appendN(t, fork, 7)
			head, _ := fork.Checkpoint(t.Context())
			e, _ := SignRecord(statement(run, claim, head), s.keys[runB])
			return e
		},
		"no checkpoint": func(run string, _, _ []byte) []byte {
			e, _ := SignRecord(statement(run, nil, nil), s.keys[runB])
			return e
		},
	} {
		var stmt Statement
		stmt, err := OpenRecord(s.envelopes[runB], s.keys[runB].Public().(ed25519.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		envelope := forge(runB, []byte(stmt.Predicate.ClaimCheckpoint), []byte(stmt.Predicate.FinishCheckpoint))
		f := &sample{vkey: s.vkey, signer: s.signer, envelopes: map[string][]byte{runA: s.envelopes[runA], runB: envelope}}
		f.log = openLog(t, s.storage.clone(), s.signer)
		f.must(t, Event{Type: TypeFinished, Run: runB, Body: map[string]string{"record_sha256": fmt.Sprintf("%x", sha256.Sum256(envelope))}})
		f.export(t)
		delete(f.files, transcriptPath(runB, "stdout"))
		if _, err := f.verify(f.files, 0, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := f.verify(f.files, checkRecordKey, nil); name == "another run" && err != nil {
			t.Errorf("%s: found with the control off: %v", name, err)
		}
	}
}

// Structural entries are never erased, whoever says so.
func TestEraseRefusesStructure(t *testing.T) {
	s := newSample(t)
	for _, seq := range []uint64{s.claim[runA], s.end[runA], 8} {
		if err := s.log.Erase(context.Background(), seq); !errors.Is(err, ErrEvent) {
			t.Errorf("entry %d: %v", seq, err)
		}
	}
	if _, err := s.log.Append(t.Context(), Event{Type: TypeErased, Body: map[string]int{"seq": 2}}); !errors.Is(err, ErrEvent) {
		t.Errorf("appending %s: %v", TypeErased, err)
	}
}
