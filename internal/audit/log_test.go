package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// history collects every checkpoint that a log has handed out and every event
// that it has acknowledged, over all its lives.
type history struct {
	heads  [][]byte
	acked  map[string]uint64 // event → entry
	reader func() *Log       // another reader of the storage, which comes after a failure
}

func (h *history) saw(head []byte) {
	if n := len(h.heads); n == 0 || !bytes.Equal(h.heads[n-1], head) {
		h.heads = append(h.heads, head)
	}
}

// check demands that final, a reopened log, holds all of it: the log has not
// forked and has lost nothing.
func (h *history) check(final *Log, v note.Verifier) error {
	ctx := context.Background()
	now, err := final.Checkpoint(ctx)
	if err != nil {
		return err
	}
	c, err := checkpointText(now)
	if err != nil {
		return err
	}
	for _, head := range h.heads {
		old, err := OpenCheckpoint(head, v)
		if err != nil {
			return err
		}
		if old.Size > c.Size {
			return fmt.Errorf("%w: a head had %d entries, the log has %d", ErrInconsistent, old.Size, c.Size)
		}
		proof, err := final.ConsistencyProof(ctx, old.Size, c.Size)
		if err != nil {
			return err
		}
		if err := CheckConsistency(head, now, proof, v); err != nil {
			return err
		}
	}
	var entries []Entry
	for uint64(len(entries)) < c.Size {
		more, err := final.Entries(ctx, uint64(len(entries)), maxEntries)
		if err != nil {
			return err
		}
		entries = append(entries, more...)
	}
	for name, seq := range h.acked {
		if e := entries[seq]; !e.Erased && !bytes.Contains(e.Side.Body, []byte(`"`+name+`"`)) {
			return fmt.Errorf("entry %d is not %s", seq, name)
		}
	}
	return nil
}

// live drives one life of a log in storage that may fail: single appends, batches,
// an erasure, reads. kill ends the life at the first error.
func (h *history) live(l *Log, name string, kill bool) {
	ctx := context.Background()
	for i := range 12 {
		events := make([]Event, 1+i*5%9)
		for k := range events {
			events[k] = Event{Type: "test.event", Body: map[string]string{"name": fmt.Sprintf("%s-%d-%d", name, i, k)}}
		}
		receipts, err := l.Append(ctx, events...)
		for k, r := range receipts {
			h.acked[fmt.Sprintf("%s-%d-%d", name, i, k)] = r.Seq
			h.saw(r.Head)
		}
		if i == 5 && err == nil {
			err = l.Erase(ctx, receipts[0].Seq)
		}
		if err != nil && h.reader != nil {
			if head, err := h.reader().Checkpoint(ctx); err == nil {
				h.saw(head)
			}
		}
		if err != nil && kill {
			return
		}
		if head, err := l.Checkpoint(ctx); err == nil {
			h.saw(head)
		}
	}
}

// G13, R21: the storage fails before or after any single write, and the process
// then dies or goes on. Around 240 entries, so that a fold is part of it.
func TestNoForkNoLoss(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	v := verifierOf(t, vkey)
	base := newMemory()
	appendN(t, openLog(t, base, signer), 220)
	for _, kind := range []fault{before, after} {
		for _, kill := range []bool{true, false} {
			for at := 0; ; at++ {
				s := base.clone()
				s.fail = func(write int) fault {
					if write == at {
						return kind
					}
					return ok
				}
				h := &history{acked: map[string]uint64{}, reader: func() *Log { return openLog(t, s, signer) }}
				h.live(openLog(t, s, signer), "first", kill)
				done := s.writes <= at
				s.fail = nil
				h.live(openLog(t, s, signer), "second", false)
				if err := h.check(openLog(t, s, signer), v); err != nil {
					t.Fatalf("fault %d at write %d, kill %v: %v", kind, at, kill, err)
				}
				if done {
					t.Logf("fault %d, kill %v: %d write points", kind, kill, at)
					break
				}
			}
		}
	}
}

// Many failures in one life, and the same with the controls off, which forks.
func TestNoForkUnderManyFaults(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	v := verifierOf(t, vkey)
	lives := func(off controls) (err error) {
		for seed := range 12 {
			s := newMemory()
			h := &history{acked: map[string]uint64{}, reader: func() *Log { return openLog(t, s, signer) }}
			l := openLog(t, s, signer)
			l.off = off
			s.fail = func(write int) fault { return fault((write*7 + seed*13 + write*write%11) % 5 % 3) }
			for range 3 {
				h.live(l, fmt.Sprint("life", seed), false)
			}
			s.fail = nil
			again, openErr := Open(context.Background(), s, signer, Config{})
			if openErr != nil {
				return openErr
			}
			if err := h.check(again, v); err != nil {
				return err
			}
		}
		return nil
	}
	if err := lives(controls{}); err != nil {
		t.Error(err)
	}
	t.Run("control off", func(t *testing.T) {
		if err := lives(controls{reload: true, occupied: true, replay: true}); err == nil {
			t.Error("without reloading nothing forked: the test shows nothing")
		} else {
			t.Log(err)
		}
	})
}

// A write that was reported as failed and lands much later changes nothing.
func TestLateWrite(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	ctx := t.Context()
	for _, off := range []bool{false, true} {
		s := newMemory()
		l := openLog(t, s, signer)
		appendN(t, l, 3)
		l.off.replay = off
		h := &history{acked: map[string]uint64{}}
		s.fail = func(int) fault { return before }
		if _, err := l.Append(ctx, Event{Type: "test.lost"}); !errors.Is(err, errStorage) {
			t.Fatal(err)
		}
		lost := l.pending.value
		s.fail = nil
		r, err := l.Append(ctx, Event{Type: "test.next"})
		if err != nil {
			t.Fatal(err)
		}
		h.saw(r[0].Head)
		s.data[journalKey(3)] = lost
		again, err := Open(ctx, s, signer, Config{})
		if err == nil {
			err = h.check(again, verifierOf(t, vkey))
		}
		if (err == nil) == off {
			t.Errorf("control off %v: %v", off, err)
		}
	}
}

// A second writer, or a storage that went back, is noticed before anything is signed.
func TestConflictAndRollback(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	s := newMemory()
	a, b := openLog(t, s, signer), openLog(t, s, signer)
	appendN(t, a, 2)
	if _, err := b.Append(t.Context(), Event{Type: "test.event"}); !errors.Is(err, ErrConflict) {
		t.Fatalf("second writer: %v", err)
	}
	r, err := b.Append(t.Context(), Event{Type: "test.event"})
	if err != nil || r[0].Seq != 2 {
		t.Fatalf("after reload: %+v, %v", r, err)
	}
	a.Reload(t.Context())
	if e, err := a.Entry(t.Context(), 2); err != nil || e.Leaf.Seq != 2 {
		t.Fatalf("reader after Reload: %v", err)
	}
	appendN(t, a, 300)
	old := s.clone()
	appendN(t, a, 1)
	s.data = old.data
	a.Reload(t.Context())
	if _, err := a.Append(t.Context(), Event{Type: "test.event"}); !errors.Is(err, ErrRollback) {
		t.Errorf("rollback: %v", err)
	}
	for key := range old.data {
		if strings.HasPrefix(key, journalPrefix) {
			delete(s.data, key)
		}
	}
	if _, err := Open(t.Context(), s, signer, Config{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("journal gone: %v", err)
	}
}

// logTiles reads a log's tiles for x/mod's own client.
type logTiles struct{ l *Log }

func (logTiles) Height() int                         { return tileHeight }
func (logTiles) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (r logTiles) ReadTiles(tiles []tlog.Tile) (out [][]byte, err error) {
	for _, t := range tiles {
		data, err := r.l.ReadTile(context.Background(), tilePath(t))
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

// The tree is that of x/mod/sumdb/tlog, an independent implementation, at sizes
// around every edge of tiles, before and after folding and reopening.
func TestTreeAgainstTlog(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	v := verifierOf(t, vkey)
	ctx := t.Context()
	s := newMemory()
	l := openLog(t, s, signer)
	var stored []Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (out []Hash, err error) {
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	var heads [][]byte
	var size int64
	for _, next := range []int64{1, 2, 255, 256, 257, 511, 512, 513, 1000, 2048, 70_000} {
		if next > 3000 && testing.Short() {
			continue
		}
		appendN(t, l, int(next-size))
		for size < next {
			entries, err := l.Entries(ctx, uint64(size), tileWidth)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				hashes, err := tlog.StoredHashes(size, e.Raw, reader)
				if err != nil {
					t.Fatal(err)
				}
				stored = append(stored, hashes...)
				size++
			}
		}
		root, err := tlog.TreeHash(size, reader)
		if err != nil {
			t.Fatal(err)
		}
		want := tlog.Tree{N: size, Hash: root}
		for _, log := range []*Log{l, openLog(t, s, signer)} {
			head := checkHead(t, log, v, want, heads)
			checkInclusion(t, log, v, want, head)
			checkTiles(t, log, size, reader)
			heads = append(heads, head)
		}
	}
}

// checkHead compares the log's head with the tree that it must have, and with the
// heads before.
func checkHead(t *testing.T, log *Log, v note.Verifier, want tlog.Tree, heads [][]byte) []byte {
	t.Helper()
	head, err := log.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenCheckpoint(head, v)
	if err != nil || c.Root != want.Hash || c.Size != uint64(want.N) {
		t.Fatalf("size %d: %+v, want root %v (%v)", want.N, c, want.Hash, err)
	}
	for _, old := range heads {
		o, _ := checkpointText(old)
		proof, err := log.ConsistencyProof(t.Context(), o.Size, c.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckConsistency(old, head, proof, v); err != nil {
			t.Fatalf("size %d to %d: %v", o.Size, want.N, err)
		}
	}
	return head
}

// checkInclusion compares the log's proofs with those that tlog's own tile client makes.
func checkInclusion(t *testing.T, log *Log, v note.Verifier, tree tlog.Tree, head []byte) {
	t.Helper()
	client := tlog.TileHashReader(tree, logTiles{log})
	for _, n := range []int64{0, tree.N / 2, tree.N - 1} {
		want, err := tlog.ProveRecord(tree.N, n, client)
		if err != nil {
			t.Fatalf("size %d: client: %v", tree.N, err)
		}
		got, err := log.InclusionProof(t.Context(), uint64(n), uint64(tree.N))
		if err != nil || fmt.Sprint(got) != fmt.Sprint([]Hash(want)) {
			t.Fatalf("size %d, entry %d: %v, want %v (%v)", tree.N, n, got, want, err)
		}
		e, err := log.Entry(t.Context(), uint64(n))
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckInclusion(head, e.Raw, uint64(n), got, v); err != nil {
			t.Fatal(err)
		}
		if err := CheckInclusion(head, append(e.Raw, ' '), uint64(n), got, v); err == nil {
			t.Fatal("another leaf was accepted")
		}
	}
}

// checkTiles compares every tile with the one that tlog makes.
func checkTiles(t *testing.T, log *Log, size int64, reader tlog.HashReader) {
	t.Helper()
	for _, tile := range tlog.NewTiles(tileHeight, 0, size) {
		want, err := tlog.ReadTileData(tile, reader)
		if err != nil {
			t.Fatal(err)
		}
		got, err := log.ReadTile(t.Context(), tilePath(tile))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("size %d, %s: %v", size, tilePath(tile), err)
		}
	}
}

// The journal stays small, and what is folded leaves it.
func TestFoldBoundsJournal(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	s := newMemory()
	l := openLog(t, s, signer)
	big := strings.Repeat("x", MaxBody-100)
	for range 40 {
		var events []Event
		for range 30 {
			events = append(events, Event{Type: "test.big", Body: map[string]string{"b": big}})
		}
		if _, err := l.Append(t.Context(), events...); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.maxPut > maxJournal {
		t.Errorf("an object has %d bytes, at most %d are allowed", s.maxPut, maxJournal)
	}
	names, _ := s.List(t.Context(), journalPrefix)
	if first, _ := parseJournalKey(names[0]); first < 1024-tileWidth {
		t.Errorf("the journal still begins at %d", first)
	}
	again := openLog(t, s, signer)
	for from := uint64(0); from < 1200; from += 300 {
		entries, err := again.Entries(t.Context(), from, 300)
		if err != nil || len(entries) != 300 {
			t.Fatalf("from %d: %d entries, %v", from, len(entries), err)
		}
		for _, e := range entries {
			if len(e.Side.Body) != MaxBody-100+8 {
				t.Fatalf("entry %d: %d bytes", e.Leaf.Seq, len(e.Side.Body))
			}
		}
	}
}

// Concurrent appends share Puts, every caller gets its own entries, in order.
func TestAppendsShareBatches(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	const writers, each = 64, 20
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memory: newMemory()}
		l := openLog(t, s, signer)
		var wg sync.WaitGroup
		var mu sync.Mutex
		h := &history{acked: map[string]uint64{}}
		seen := map[uint64]bool{}
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					name := fmt.Sprintf("%d-%d", w, i)
					r, err := l.Append(t.Context(), Event{Type: "test.event", Body: map[string]string{"name": name}})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if seen[r[0].Seq] {
						t.Errorf("entry %d twice", r[0].Seq)
					}
					seen[r[0].Seq], h.acked[name] = true, r[0].Seq
					h.saw(r[0].Head)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(seen) != writers*each {
			t.Errorf("%d entries, want %d", len(seen), writers*each)
		}
		if puts := s.puts; puts > writers*each/10 {
			t.Errorf("%d Puts for %d entries", puts, writers*each)
		}
		if err := h.check(openLog(t, s, signer), verifierOf(t, vkey)); err != nil {
			t.Error(err)
		}
	})
}

// slow is a storage whose writes take a while.
type slow struct{ *memory }

func (s *slow) Put(ctx context.Context, key string, value []byte) error {
	time.Sleep(time.Millisecond)
	return s.memory.Put(ctx, key, value)
}

// A caller that gives up while others write leaves nothing behind.
func TestAppendGivesUp(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memory: newMemory()}
		l := openLog(t, s, signer)
		ctx, cancel := context.WithCancel(t.Context())
		go l.Append(t.Context(), Event{Type: "test.first"})
		synctest.Wait() // it sleeps in Put
		failed := make(chan error)
		go func() {
			_, err := l.Append(ctx, Event{Type: "test.second"})
			failed <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		appendN(t, l, 1)
		if e, err := l.Entry(t.Context(), 1); err != nil || e.Leaf.Type != "test.event" {
			t.Errorf("%s, %v", e.Leaf.Type, err)
		}
	})
}

// R23: a run that floods the log is stopped; essential events are not. The count
// survives a restart and a fold.
func TestRunBudget(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	s := newMemory()
	open := func() *Log {
		l, err := Open(t.Context(), s, signer, Config{RunBudget: 300})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open()
	hit := Event{Type: "redact.hit", Run: runA}
	for i := range 300 {
		if i == 290 {
			l = open()
		}
		if _, err := l.Append(t.Context(), hit); err != nil {
			t.Fatal(i, err)
		}
	}
	for restarted := range 2 {
		if restarted == 1 {
			l = open()
		}
		if _, err := l.Append(t.Context(), hit); !errors.Is(err, ErrBudget) {
			t.Errorf("over budget: %v", err)
		}
		if _, err := l.Append(t.Context(), Event{Type: "redact.hit", Run: runB}); err != nil {
			t.Errorf("another run: %v", err)
		}
		if _, err := l.Append(t.Context(), Event{Type: "lease.revoked", Run: runA, Essential: true}); err != nil {
			t.Errorf("essential: %v", err)
		}
		before, _ := l.Checkpoint(t.Context())
		if _, err := l.Append(t.Context(), Event{Type: "x", Run: runB}, hit); !errors.Is(err, ErrBudget) {
			t.Errorf("mixed: %v", err)
		}
		if now, _ := l.Checkpoint(t.Context()); !bytes.Equal(now, before) {
			t.Error("a refused call left an entry")
		}
	}
	t.Run("control off", func(t *testing.T) {
		l.Reload(t.Context())
		l.off.budget = true
		if _, err := l.Append(t.Context(), hit); err != nil {
			t.Error(err)
		}
	})
}

// G10: time never goes backwards, and the entry says that the clock did.
func TestClockGoesBackwards(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	now := time.Date(2026, 1, 1, 0, 0, 0, 5, time.UTC)
	s := newMemory()
	l, err := Open(t.Context(), s, signer, Config{Clock: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 1)
	now = now.Add(-time.Hour)
	for _, body := range []any{nil, map[string]int{"n": 1}} {
		if _, err := l.Append(t.Context(), Event{Type: "test.event", Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	for seq, want := range []string{`{"n":0}`, `{"skew":true}`, `{"n":1,"skew":true}`} {
		e, err := l.Entry(t.Context(), uint64(seq))
		if err != nil || string(e.Side.Body) != want || !e.Leaf.Time.Equal(now.Add(time.Hour)) {
			t.Errorf("entry %d: %s at %v, %v", seq, e.Side.Body, e.Leaf.Time, err)
		}
	}
	x := &sample{vkey: vkey, signer: signer, log: l, storage: s}
	x.export(t)
	if r, err := x.verify(x.files, 0, nil); err != nil || !cmp.Equal(r.Skewed, []uint64{1, 2}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// Erasing removes every copy from storage, wherever the entry is, whatever fails.
func TestErase(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	canary := "canary-5f1c"
	count := func(s *memory) (n int) {
		for _, value := range s.data {
			n += bytes.Count(value, []byte(canary)) + bytes.Count(value, []byte("Y2FuYXJ5LTVm")) // in base64
		}
		return n
	}
	for _, after := range []int{0, 100, 255, 256, 600} {
		base := newMemory()
		l := openLog(t, base, signer)
		appendN(t, l, 10)
		// The name puts the canary on a base64 boundary.
		r, err := l.Append(t.Context(), Event{Type: "test.event", Body: map[string]string{"name": canary}})
		if err != nil {
			t.Fatal(err)
		}
		appendN(t, l, after)
		if count(base) == 0 {
			t.Fatal("the canary is not found where it must be")
		}
		for at := 0; ; at++ {
			s := base.clone()
			l := openLog(t, s, signer)
			s.fail = func(write int) fault {
				if write == at {
					return before
				}
				return ok
			}
			err := l.Erase(t.Context(), r[0].Seq)
			s.fail = nil
			if err != nil {
				l = openLog(t, s, signer)
				if err := l.Erase(t.Context(), r[0].Seq); err != nil {
					t.Fatal(err)
				}
			}
			if n := count(s); n != 0 {
				t.Errorf("after %d, fault at %d: %d copies", after, at, n)
			}
			if _, err := l.Side(t.Context(), r[0].Seq); !errors.Is(err, ErrErased) {
				t.Errorf("after %d, fault at %d: %v", after, at, err)
			}
			if err := l.Fold(t.Context()); err != nil {
				t.Fatal(err)
			}
			x := &sample{vkey: vkey, signer: signer, log: openLog(t, s, signer), storage: s}
			x.export(t)
			if rep, err := x.verify(x.files, 0, nil); err != nil || !cmp.Equal(rep.Erased, []uint64{10}) {
				t.Errorf("after %d, fault at %d: %v, %v", after, at, rep.Erased, err)
			}
			if s.writes <= at {
				break
			}
		}
	}
}

// G14: names that try to be more than names.
func TestInjection(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	l := openLog(t, newMemory(), signer)
	for _, name := range []string{"a\nb", "\x1b[2J", "\u009b2J", "\u202e", "\u2028", `","v":2,"x":"`, "\x7f", "𝕏", "</script>", "\x00"} {
		r, err := l.Append(t.Context(), Event{Type: "test.event", Body: map[string]string{"name": name}})
		if err != nil {
			t.Fatal(err)
		}
		e, err := l.Entry(t.Context(), r[0].Seq)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range append(bytes.Clone(e.Side.Body), e.Raw...) {
			if c < 0x20 || c > 0x7e {
				t.Errorf("%q: byte %#x", name, c)
			}
		}
		if got, _ := member(e.Side.Body, "name"); got != name {
			t.Errorf("%q came back as %q", name, got)
		}
	}
	for _, e := range []Event{
		{Type: "a\nb"}, {Type: ""}, {Type: "A"}, {Type: "a..b"}, {Type: "a\x1b"}, {Type: `a"`}, {Type: strings.Repeat("a", 65)},
		{Type: "a", Run: "x"}, {Type: "a", Run: strings.ToLower(runA)}, {Type: "a", Run: runA + "\n"},
		{Type: "a", Body: "text"}, {Type: "a", Body: []int{1}}, {Type: "a", Body: map[string]int{"skew": 1}}, {Type: "a", Body: func() {}},
		{Type: "a", Body: raw(`{"a":1,"a":2}`)}, {Type: "a", Body: raw(`{"a":{"b":1,"\u0062":2}}`)},
		{Type: "a", Body: map[string]string{"a": strings.Repeat("x", MaxBody)}},
	} {
		if _, err := l.Append(t.Context(), e); !errors.Is(err, ErrEvent) {
			t.Errorf("%+.60v: %v", e, err)
		}
	}
}

type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }
