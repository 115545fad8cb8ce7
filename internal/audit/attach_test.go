package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
)

// A keeper is an owner of attachments: it settles them in the log's own storage,
// under rows/, one write each.
type keeper struct {
	s   *memory
	due []func() // housekeeping, for whoever drives the test
	err error    // of Settle
}

func (k *keeper) settle(ctx context.Context, rows []Attachment) error {
	if k.err != nil {
		return k.err
	}
	for _, a := range rows {
		if there, err := k.s.Get(ctx, "rows/"+a.Key); err != nil || there != nil {
			continue
		}
		if err := k.s.Put(ctx, "rows/"+a.Key, a.Value); err != nil {
			return err
		}
	}
	return nil
}

func (k *keeper) config() Config {
	return Config{Clock: ticking(), Settle: k.settle, Later: func(f func()) { k.due = append(k.due, f) }}
}

// house does the housekeeping that is due.
func (k *keeper) house() {
	for len(k.due) > 0 {
		f := k.due[0]
		k.due = k.due[1:]
		f()
	}
}

// row is an event with an attachment; both have its name.
func row(name string) Event {
	return Event{Type: "test.row", Body: map[string]string{"name": name}, Essential: true, Attach: &Attachment{Key: name, Value: []byte("row " + name)}}
}

// everywhere returns how often each attachment is in the journal, and which are
// rows.
func (k *keeper) everywhere(t *testing.T, l *Log) (journal map[string]int, rows map[string]bool) {
	t.Helper()
	attached, err := l.Attached(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	journal, rows = map[string]int{}, map[string]bool{}
	for _, a := range attached {
		if string(a.Value) != "row "+a.Key {
			t.Errorf("%s has the value %q", a.Key, a.Value)
		}
		journal[a.Key]++
	}
	for key := range k.s.data {
		if name, ok := strings.CutPrefix(key, "rows/"); ok {
			rows[name] = true
		}
	}
	return journal, rows
}

// named returns the names that entries have.
func named(t *testing.T, l *Log) map[string]int {
	t.Helper()
	names := map[string]int{}
	for from := uint64(0); ; from += maxEntries {
		entries, err := l.Entries(t.Context(), from, maxEntries)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Leaf.Type == "test.row" {
				name, _ := member(e.Side.Body, "name")
				names[name]++
			}
		}
		if len(entries) < maxEntries {
			return names
		}
	}
}

// G13: storage fails before or after any single write of appends with
// attachments, folds and settling, and the process dies or goes on. What was
// acknowledged is in the journal or settled; nothing is there without its entry,
// and no entry without it; nothing is there twice.
func TestAttachmentsAtEveryWrite(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	base := newMemory()
	appendN(t, openLog(t, base, signer), 247)
	for _, kind := range []fault{before, after} {
		for _, kill := range []bool{true, false} {
			for at := 0; ; at++ {
				k := &keeper{s: base.clone()}
				k.s.fail = func(write int) fault {
					if write == at {
						return kind
					}
					return ok
				}
				acked := k.live(t, signer, "first", kill)
				done := k.s.writes <= at
				k.s.fail = nil
				acked = append(acked, k.live(t, signer, "second", false)...)
				l, err := Open(t.Context(), k.s, signer, k.config())
				if err != nil {
					t.Fatal(err)
				}
				name := fmt.Sprintf("fault %d at write %d, kill %v", kind, at, kill)
				journal, rows := k.everywhere(t, l)
				logged := named(t, l)
				for _, name := range acked {
					if logged[name] != 1 {
						t.Fatalf("%s: %d entries of %s", name, logged[name], name)
					}
				}
				for n := range logged {
					if journal[n] == 0 && !rows[n] {
						t.Fatalf("%s: the attachment of %s is lost", name, n)
					}
				}
				for n, times := range journal {
					if times != 1 || logged[n] != 1 {
						t.Fatalf("%s: %s is attached %d times, logged %d times", name, n, times, logged[n])
					}
				}
				for n := range rows {
					if logged[n] != 1 {
						t.Fatalf("%s: %s was settled, and logged %d times", name, n, logged[n])
					}
				}
				if err := (&history{}).check(l, verifierOf(t, vkey)); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if done {
					t.Logf("fault %d, kill %v: %d write points; %d rows at the end", kind, kill, at, len(rows))
					break
				}
			}
		}
	}
}

// The control of the test above: whoever settles nothing loses what was folded.
func TestAttachmentsThatNobodyKeeps(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	k := &keeper{s: newMemory()}
	cfg := k.config()
	cfg.Settle = func(context.Context, []Attachment) error { return nil }
	l, err := Open(t.Context(), k.s, signer, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), row("a")); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, tileWidth)
	k.house()
	if journal, rows := k.everywhere(t, l); len(journal)+len(rows) != 0 {
		t.Errorf("journal %v, rows %v: the tests of what is lost show nothing", journal, rows)
	}
}

// live drives one life of a log with attachments, and returns which of them were
// acknowledged.
func (k *keeper) live(t *testing.T, signer note.Signer, life string, kill bool) (acked []string) {
	k.due = nil
	l, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		events := []Event{{Type: "test.event"}}
		var names []string
		for n := range 1 + i%2 {
			names = append(names, fmt.Sprintf("%s-%d-%d", life, i, n))
			events = append(events, row(names[n]))
		}
		_, err := l.Append(t.Context(), events...)
		if err == nil {
			acked = append(acked, names...)
		}
		if err != nil && kill {
			return acked
		}
		k.house()
	}
	return acked
}

// A commit of unknown outcome is among what Attached returns, also while nothing
// can be written; and what it shows then is what becomes durable.
func TestAttachedWithoutWriting(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	for _, kind := range []fault{before, after} {
		k := &keeper{s: newMemory()}
		l, err := Open(t.Context(), k.s, signer, k.config())
		if err != nil {
			t.Fatal(err)
		}
		appendN(t, l, 3)
		k.s.fail = func(int) fault { return kind }
		if _, err := l.Append(t.Context(), row("a")); !errors.Is(err, errStorage) {
			t.Fatal(err)
		}
		k.s.fail = func(int) fault { return before }
		for range 2 {
			if journal, _ := k.everywhere(t, l); journal["a"] != 1 {
				t.Errorf("fault %d: journal %v", kind, journal)
			}
		}
		k.s.fail = nil
		if _, err := l.Append(t.Context(), row("b")); err != nil {
			t.Fatal(err)
		}
		again, err := Open(t.Context(), k.s, signer, k.config())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range []*Log{l, again} {
			if journal, _ := k.everywhere(t, l); !cmp.Equal(journal, map[string]int{"a": 1, "b": 1}) {
				t.Errorf("fault %d: journal %v", kind, journal)
			}
		}
	}
	t.Run("nothing of a call that gave up", func(t *testing.T) {
		k := &keeper{s: newMemory()}
		l, err := Open(t.Context(), k.s, signer, k.config())
		if err != nil {
			t.Fatal(err)
		}
		l.turn <- struct{}{}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Append(ctx, row("a")); !errors.Is(err, ErrGaveUp) || !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		l.release()
		appendN(t, l, 1)
		if journal, _ := k.everywhere(t, l); len(journal) != 0 {
			t.Errorf("journal %v", journal)
		}
	})
}

// Settle fails: appends go on until the journal is full, then fail with a reason,
// and nothing is lost. When it works again, so does the log.
func TestSettleFails(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	k := &keeper{s: newMemory(), err: errors.New("no")}
	l, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; n < 2*maxTail; n++ {
		_, err = l.Append(t.Context(), row(fmt.Sprint(n)))
		k.house()
		if err != nil {
			break
		}
	}
	if n != maxTail || !errors.Is(err, errFull) {
		t.Fatalf("after %d appends: %v", n, err)
	}
	if v := l.view.Load(); v.folded != 0 || l.dirty {
		t.Errorf("folded %d, dirty %v", v.folded, l.dirty)
	}
	if err := l.Fold(t.Context()); !errors.Is(err, k.err) {
		t.Errorf("folding: %v", err)
	}
	if journal, rows := k.everywhere(t, l); len(journal) != n || len(rows) != 0 {
		t.Errorf("%d in the journal, %d settled", len(journal), len(rows))
	}
	k.err = nil
	if _, err := l.Append(t.Context(), row("on-the-way")); !errors.Is(err, errFull) {
		t.Errorf("before housekeeping: %v", err)
	}
	k.house()
	if _, err := l.Append(t.Context(), row("last")); err != nil {
		t.Fatal(err)
	}
	k.house()
	if err := l.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	journal, rows := k.everywhere(t, again)
	if len(rows) != n || len(journal) != 1 || journal["last"] != 1 {
		t.Errorf("%d settled, want %d; journal %v", len(rows), n, journal)
	}
	if err := (&history{}).check(again, verifierOf(t, vkey)); err != nil {
		t.Error(err)
	}
}

// Room waits for a fold where Append would soon fail (TestSettleFails), makes
// sure that there will be one, and has an end when Settle fails.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer, _ := testKey(t, "sealed.test/log")
		k := &keeper{s: newMemory()}
		l, err := Open(t.Context(), k.s, signer, k.config())
		if err != nil {
			t.Fatal(err)
		}
		fill := func(n int) {
			t.Helper()
			for i := range n {
				if _, err := l.Append(t.Context(), row(fmt.Sprint(l.view.Load().size, "-", i))); err != nil {
					t.Fatal(err)
				}
			}
		}
		wait := func() (took time.Duration) {
			start := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				l.Room(t.Context(), time.Minute)
			}()
			synctest.Wait()
			for range 8 {
				k.house()
				synctest.Wait()
			}
			<-done
			return time.Since(start)
		}
		fill(1)
		fill(maxTail*3/4 - 2)
		l.tidying.Store(true) // nobody is asked, and nobody waits
		if took := wait(); took != 0 {
			t.Errorf("waited %s with room", took)
		}
		l.tidying.Store(false)
		k.due = nil
		fill(1)
		if took := wait(); took != 0 || l.view.Load().folded == 0 {
			t.Errorf("waited %s, folded %d", took, l.view.Load().folded)
		}
		fill(int(maxTail*3/4 - (l.view.Load().size - l.view.Load().folded)))
		k.err = errors.New("no")
		if took := wait(); took != time.Minute || len(k.due) != 0 {
			t.Errorf("waited %s for what does not come; asks for %d more", took, len(k.due))
		}
		k.err, l.dirty = nil, true // only an append mends that
		if took := wait(); took != time.Minute || len(k.due) != 0 {
			t.Errorf("waited %s for an append; asks for %d more", took, len(k.due))
		}
	})
}

// Settle waits for a lock that is held by those who append: the log goes on, and
// so does Settle when it gets the lock. A Settle that was called with the turn
// would stop both: the control.
func TestSettleWaitsForAnAppender(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	for _, turn := range []bool{false, true} {
		t.Run(fmt.Sprint("with the turn ", turn), func(t *testing.T) {
			var all sync.WaitGroup
			lock, entered := make(chan struct{}, 1), make(chan struct{}, 8)
			k := &keeper{s: newMemory()}
			cfg := k.config()
			cfg.Later = func(f func()) { all.Go(f) }
			cfg.WriteTimeout = 2 * time.Second
			var l *Log
			cfg.Settle = func(ctx context.Context, rows []Attachment) error {
				if turn {
					if err := l.take(ctx); err != nil {
						return err
					}
					defer l.release()
				}
				entered <- struct{}{}
				select {
				case lock <- struct{}{}:
					defer func() { <-lock }()
				case <-ctx.Done():
					return ctx.Err()
				}
				return k.settle(ctx, rows)
			}
			l, err := Open(t.Context(), k.s, signer, cfg)
			if err != nil {
				t.Fatal(err)
			}
			lock <- struct{}{} // this caller holds it while it appends
			for i := range tileWidth {
				if _, err := l.Append(t.Context(), row(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
			}
			<-entered
			limited, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err = l.Append(limited, row("more"))
			if stuck := errors.Is(err, context.DeadlineExceeded); stuck != turn {
				t.Errorf("appending while Settle waits: %v", err)
			}
			if _, aerr := l.Attached(limited); errors.Is(aerr, context.DeadlineExceeded) != turn {
				t.Errorf("reading while Settle waits: %v", aerr)
			}
			<-lock
			all.Wait()
			if _, rows := k.everywhere(t, l); !turn && (len(rows) != tileWidth || l.view.Load().folded != tileWidth) {
				t.Errorf("%d settled, %d folded", len(rows), l.view.Load().folded)
			}
		})
	}
}

// Many callers, with folds meanwhile: nothing is lost.
func TestSettleWhileAppending(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	k := &keeper{s: newMemory()}
	var later sync.WaitGroup
	cfg := k.config()
	cfg.Later = func(f func()) { later.Go(f) }
	l, err := Open(t.Context(), k.s, signer, cfg)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	const callers, each = 16, 60
	for c := range callers {
		all.Go(func() {
			for i := range each {
				for {
					_, err := l.Append(t.Context(), row(fmt.Sprintf("%d-%d", c, i)))
					if err == nil {
						break
					}
					if !errors.Is(err, errFull) {
						t.Error(err)
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	all.Wait()
	later.Wait()
	again, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	journal, rows := k.everywhere(t, again)
	for name := range journal {
		rows[name] = true
	}
	if len(rows) != callers*each || again.view.Load().folded == 0 {
		t.Errorf("%d of %d; %d folded", len(rows), callers*each, again.view.Load().folded)
	}
	if err := (&history{}).check(again, verifierOf(t, vkey)); err != nil {
		t.Error(err)
	}
}

// An attachment changes no byte of what a log publishes, and a journal without
// one has the form that it always had.
func TestAttachmentsAreNoPartOfTheLog(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	export := func(attach bool) (map[string]string, *keeper) {
		k := &keeper{s: newMemory()}
		cfg := k.config()
		cfg.Rand = rand.NewChaCha8([32]byte{1})
		l, err := Open(t.Context(), k.s, signer, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			e := row(fmt.Sprint("canary-", i))
			if !attach {
				e.Attach = nil
			}
			if _, err := l.Append(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		dir := t.TempDir()
		if err := WriteDir(t.Context(), l, dir+"/x"); err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		err = fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(dir + "/" + path)
			out[path] = string(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out, k
	}
	with, kw := export(true)
	without, ko := export(false)
	if diff := cmp.Diff(without, with); diff != "" {
		t.Error(diff)
	}
	in := func(k *keeper) (n int) {
		for key, value := range k.s.data {
			if strings.HasPrefix(key, journalPrefix) && bytes.Contains(value, []byte(`"attach"`)) {
				n++
			}
		}
		return n
	}
	if in(kw) != 300 || in(ko) != 0 {
		t.Errorf("%d and %d objects with attachments", in(kw), in(ko))
	}
}

// Erasing an entry takes its side out of the journal object, and not what is
// attached to it or to others.
func TestEraseKeepsAttachments(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	k := &keeper{s: newMemory()}
	l, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), row("a"), row("b")); err != nil {
		t.Fatal(err)
	}
	if err := l.Erase(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Side(t.Context(), 0); !errors.Is(err, ErrErased) {
		t.Error(err)
	}
	if journal, _ := k.everywhere(t, again); !cmp.Equal(journal, map[string]int{"a": 1, "b": 1}) {
		t.Errorf("journal %v", journal)
	}
}

// What Append refuses, and what counts against the size of a journal object.
func TestAttachmentLimits(t *testing.T) {
	signer, _ := testKey(t, "sealed.test/log")
	if _, err := Open(t.Context(), newMemory(), signer, Config{Settle: (&keeper{}).settle}); err == nil {
		t.Error("Settle without Later")
	}
	l := openLog(t, newMemory(), signer)
	if _, err := l.Append(t.Context(), row("a")); !errors.Is(err, ErrEvent) {
		t.Errorf("nobody settles: %v", err)
	}
	k := &keeper{s: newMemory()}
	l, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []Attachment{
		{}, {Key: "a"}, {Value: []byte("a")}, {Key: strings.Repeat("a", 257), Value: []byte("a")}, {Key: "a", Value: make([]byte, MaxAttachment+1)},
		{Key: "a\n", Value: []byte("a")}, {Key: `a"`, Value: []byte("a")}, {Key: "a b", Value: []byte("a")}, {Key: "\u00e9", Value: []byte("a")},
	} {
		if _, err := l.Append(t.Context(), Event{Type: "test.row", Attach: &a}); !errors.Is(err, ErrEvent) {
			t.Errorf("%.40q with %d bytes: %v", a.Key, len(a.Value), err)
		}
	}
	var events []Event
	for i := range 20 {
		events = append(events, Event{Type: "test.row", Body: map[string]string{"b": strings.Repeat("x", MaxBody-100)},
			Attach: &Attachment{Key: fmt.Sprint(i), Value: bytes.Repeat([]byte("x"), MaxAttachment)}})
	}
	if _, err := l.Append(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	if k.s.maxPut > maxJournal || l.Commits() != 20 {
		t.Errorf("an object of %d bytes, %d commits", k.s.maxPut, l.Commits())
	}
	again, err := Open(t.Context(), k.s, signer, k.config())
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := again.Attached(t.Context()); err != nil || len(rows) != 20 {
		t.Errorf("%d attachments, %v", len(rows), err)
	}
}
