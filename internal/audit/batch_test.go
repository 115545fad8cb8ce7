package audit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counting counts the reads of a Storage.
type counting struct {
	*memory
	gets atomic.Int64
}

func (c *counting) Get(ctx context.Context, key string) ([]byte, error) {
	c.gets.Add(1)
	return c.memory.Get(ctx, key)
}

// The next key is looked at by a log that has not committed within a second, or
// has loaded since, and by no other.
func TestLookBeforeCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer, _ := testKey(t, "sealed.test/log")
		s := &counting{memory: newMemory()}
		l, err := Open(t.Context(), s, signer, Config{})
		if err != nil {
			t.Fatal(err)
		}
		appended := func(want int64) {
			t.Helper()
			before := s.gets.Load()
			if _, err := l.Append(t.Context(), Event{Type: "test.event"}); err != nil {
				t.Fatal(err)
			}
			if got := s.gets.Load() - before; got != want {
				t.Errorf("%d reads, want %d", got, want)
			}
		}
		appended(1) // the first one
		appended(0)
		time.Sleep(soleFor - time.Millisecond)
		appended(0) // the second begins again
		time.Sleep(soleFor)
		appended(1)
		for _, off := range []bool{false, true} {
			l.Reload(t.Context())
			appendN(t, l, 1)
			appendN(t, openLog(t, s.memory, signer), 1)
			time.Sleep(soleFor)
			l.off.occupied = off
			_, err := l.Append(t.Context(), Event{Type: "test.event"})
			if errors.Is(err, ErrConflict) == off {
				t.Errorf("another writer before a pause, control off %v: %v", off, err)
			}
		}
	})
}

// Appends that are on their way share the write of the one that is there, and
// nobody waits longer than Linger for those that do not come. Where there was
// company, as many are waited for again; a call that is alone waits once.
func TestComing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer, _ := testKey(t, "sealed.test/log")
		var coming atomic.Int64
		l, err := Open(t.Context(), newMemory(), signer, Config{Coming: func() int { return int(coming.Load()) }})
		if err != nil {
			t.Fatal(err)
		}
		const callers = 12
		coming.Store(callers)
		var all sync.WaitGroup
		for i := range callers {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond)
				coming.Add(-1)
				if _, err := l.Append(t.Context(), Event{Type: "test.event"}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := l.Commits(); n != 1 {
			t.Errorf("%d commits of %d callers", n, callers)
		}
		for i := range callers { // nobody announces these, but the batch before had company
			all.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond)
				if _, err := l.Append(t.Context(), Event{Type: "test.event"}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := l.Commits(); n != 2 {
			t.Errorf("%d commits of twice %d callers", n, callers)
		}
		for i, n := range []int64{0, 0, 1} {
			coming.Store(n)
			start := time.Now()
			if _, err := l.Append(t.Context(), Event{Type: "test.event"}); err != nil {
				t.Fatal(err)
			}
			want := time.Duration(n) * l.cfg.Linger
			if i == 0 { // the company has gone
				want = l.cfg.Linger
			}
			if took := time.Since(start); took != want {
				t.Errorf("call %d alone, %d on their way: took %v", i, n, took)
			}
		}
	})
}

// Housekeeping that runs apart does what is due, and no append pays for it.
func TestLater(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	s := newMemory()
	var due []func()
	l, err := Open(t.Context(), s, signer, Config{Later: func(f func()) { due = append(due, f) }})
	if err != nil {
		t.Fatal(err)
	}
	for range 2*tileWidth + 3 {
		writes := s.writes
		appendN(t, l, 1)
		if s.writes != writes+1 {
			t.Fatalf("an append made %d writes", s.writes-writes)
		}
		for _, f := range due {
			f()
		}
		due = nil
	}
	if v := l.view.Load(); v.folded != 2*tileWidth {
		t.Errorf("folded %d", v.folded)
	}
	h := &history{acked: map[string]uint64{}}
	if err := h.check(openLog(t, s, signer), verifierOf(t, vkey)); err != nil {
		t.Error(err)
	}
}
