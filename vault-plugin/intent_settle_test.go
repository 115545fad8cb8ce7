package vaultplugin

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// fill appends entries until the log can fold everything that is in it now.
func (w *world) fill() {
	w.t.Helper()
	for range 2 {
		events := make([]audit.Event, 200)
		for i := range events {
			events[i] = audit.Event{Type: "test.event", Essential: true}
		}
		if _, err := w.b.record(context.Background(), w.s, events...); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) fold() error {
	l, err := w.b.auditLog(context.Background(), w.s)
	if err != nil {
		return err
	}
	return l.Fold(context.Background())
}

// attached are the ids of the grants that the log's journal holds.
func (w *world) attached() []sealed.GrantID {
	w.t.Helper()
	rows, _, err := w.b.attached(context.Background(), w.s)
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []sealed.GrantID
	for _, g := range rows {
		ids = append(ids, g.ID)
	}
	return ids
}

func (w *world) grantOf(g *guest, id sealed.GrantID) grantRow {
	w.t.Helper()
	row, _, err := w.b.grant(context.Background(), w.s, g.run, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return row
}

// TestIntentAcrossAFold follows one grant through a fold that comes at each step
// of it, and a restart before the fold, between its two halves, and after it.
func TestIntentAcrossAFold(t *testing.T) {
	ctx := context.Background()
	steps := []struct {
		name  string
		do    func(*world, *guest, sealed.CredsAnswer) error
		state string // after a restart
	}{
		{"answered", func(*world, *guest, sealed.CredsAnswer) error { return nil }, grantIntent},
		{"asked again", func(_ *world, g *guest, _ sealed.CredsAnswer) error {
			_, _, err := g.creds("HIGH", idem(3))
			return err
		}, grantReturned},
		{"confirmed", func(_ *world, g *guest, a sealed.CredsAnswer) error { return g.confirm(a) }, grantConfirmed},
		{"ended", func(w *world, _ *guest, _ sealed.CredsAnswer) error {
			w.clock.add(11 * time.Second)
			w.b.worker.tick(ctx, w.s)
			return nil
		}, grantDead},
	}
	restarts := []string{"before the fold", "after settling", "after the fold", "twice"}
	for _, step := range steps {
		for _, restart := range restarts {
			t.Run(step.name+", restarted "+restart, func(t *testing.T) {
				w, g, id := approved(t)
				a, _, err := g.creds("HIGH", idem(3))
				if err != nil {
					t.Fatal(err)
				}
				if err := step.do(w, g, a); err != nil {
					t.Fatal(err)
				}
				if got := w.attached(); !slices.Contains(got, sealed.GrantID(id)) {
					t.Fatalf("control: the journal holds %v", got)
				}
				if restart == "before the fold" || restart == "twice" {
					w.open()
				}
				if restart == "after settling" { // the rows are written, the fold is not
					w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog+"tile/"), false })
				}
				w.fill()
				if err := w.fold(); (err != nil) != (restart == "after settling") {
					t.Fatal(err)
				}
				w.s.setFail(nil)
				if rows := g.rows(); !slices.Contains(rows, string(id)) {
					t.Fatalf("no row after the fold: %v", rows)
				}
				if restart != "before the fold" {
					w.open()
				}
				if restart == "after the fold" && slices.Contains(w.attached(), sealed.GrantID(id)) {
					t.Error("the journal holds it still")
				}
				if got := w.grantOf(g, sealed.GrantID(id)); got.State != step.state || got.Idempotency != idem(3) {
					t.Errorf("grant is %s, want %s", got.State, step.state)
				}
				if v := w.view(id); v.State != sealed.ApprovalConsumed {
					t.Errorf("approval is %s", v.State)
				}
				if next := g.pendingID("HIGH", idem(4)); next == id {
					t.Error("the approval was used twice")
				}
			})
		}
	}
}

// TestUsedApprovalNeedsTheJournal is the control of what is said about approvals
// above: an engine that reads rows alone uses one twice.
func TestUsedApprovalNeedsTheJournal(t *testing.T) { // E21
	w, g, id := approved(t)
	if _, _, err := g.creds("HIGH", idem(3)); err != nil {
		t.Fatal(err)
	}
	w.open()
	x := newGrantIndex()
	none := func(context.Context, logical.Storage) ([]grantRow, bool, error) { return nil, true, nil }
	if err := x.load(context.Background(), w.s, none); err != nil {
		t.Fatal(err)
	}
	w.b.live = x
	if a, _, err := g.creds("HIGH", idem(4)); err != nil || string(a.Grant) != string(id) {
		t.Errorf("%+v %v: the tests of one use show nothing", a, err)
	}
}

// TestArchivedBeforeTheFold: a grant that was archived with its run does not
// come back, neither by the fold nor by a restart, and the approval is shown as
// used.
func TestArchivedBeforeTheFold(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w, g, id := approved(t)
		if _, _, err := g.creds("HIGH", idem(3)); err != nil {
			t.Fatal(err)
		}
		if restart {
			w.open()
		}
		w.must("op", g.path("close"), map[string]any{"reason": "test"})
		w.clock.add(time.Minute)
		w.b.worker.tick(context.Background(), w.s)
		if rows, err := w.s.List(context.Background(), storeRunsLive); err != nil || len(rows) != 0 {
			t.Fatalf("control: not archived: %v %v", rows, err)
		}
		if restart {
			w.open()
		}
		w.fill()
		if err := w.fold(); err != nil {
			t.Fatal(err)
		}
		if rows := g.rows(); len(rows) != 0 {
			t.Errorf("restart %v: came back: %v", restart, rows)
		}
		w.open()
		if _, _, err := w.b.grant(context.Background(), w.s, g.run, sealed.GrantID(id)); !isNotFound(err) {
			t.Errorf("restart %v: %v", restart, err)
		}
		if v := w.view(id); v.State != sealed.ApprovalConsumed {
			t.Errorf("restart %v: approval is %s", restart, v.State)
		}
	}
}

// TestCrashWhileArchiving kills the process at each write of archiving a run
// whose grants are in the log's journal only, and archives it in the next one.
// The log says of each grant what it says without a crash, once.
func TestCrashWhileArchiving(t *testing.T) {
	ctx := context.Background()
	setup := func() (*world, *guest, sealed.ApprovalID) {
		w, g, id := approved(t)
		a, _, err := g.creds("HIGH", idem(3))
		if err == nil {
			err = g.confirm(a)
		}
		if err == nil {
			_, _, err = g.creds("LOW", idem(4))
		}
		if err != nil {
			t.Fatal(err)
		}
		w.must("op", g.path("close"), map[string]any{"reason": "test"})
		w.clock.add(time.Minute)
		return w, g, id
	}
	entries := func(w *world) (failed int) {
		for _, line := range w.logged() {
			if strings.HasPrefix(line, "issue.failed ") {
				failed++
			}
		}
		return failed
	}
	w, _, _ := setup()
	w.s.setFail(nil)
	w.b.worker.tick(ctx, w.s)
	writes, want := w.s.count(), entries(w)
	for n := 1; n <= writes; n++ {
		for _, after := range []bool{false, true} {
			w, g, id := setup()
			w.s.setFail(func(i int, _ string) (bool, bool) { return i > n || (i == n && !after), i == n && after })
			w.b.worker.tick(ctx, w.s)
			w.s.setFail(nil)
			w.open()
			w.b.worker.tick(ctx, w.s)
			if rows, err := w.s.List(ctx, storeRunsLive); err != nil || len(rows) != 0 || len(g.rows()) != 0 {
				t.Errorf("write %d after=%v: left %v %v %v", n, after, rows, g.rows(), err)
			}
			// After the restart the one that nobody confirmed is an intent, and
			// ends with an entry unless it was archived before.
			if got := entries(w); got < want || got > want+1 {
				t.Errorf("write %d after=%v: %d entries about failures, want %d or one more", n, after, got, want)
			}
			for _, line := range w.logged() {
				if strings.HasPrefix(line, "issue.failed ") && strings.Contains(line, string(id)) {
					t.Errorf("write %d after=%v: of a grant that was confirmed: %s", n, after, line)
				}
			}
			if v := w.view(id); v.State != sealed.ApprovalConsumed {
				t.Errorf("write %d after=%v: approval is %s", n, after, v.State)
			}
		}
	}
	t.Logf("crashed at %d writes, before and after each", writes)
}

// TestSettlingWaitsForARun: who holds a run's lock may wait for the log, so the
// log does not wait for who wants the lock.
func TestSettlingWaitsForARun(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	unlock := w.b.lockRun(g.run)
	w.fill() // folding begins apart, and waits for the lock
	folded := make(chan error)
	go func() { folded <- w.fold() }()
	for range 3 {
		time.Sleep(20 * time.Millisecond) // until it waits; without it the test shows less
		if _, err := w.b.record(context.Background(), w.s, audit.Event{Type: "test.event"}); err != nil {
			t.Errorf("the log waits for the run: %v", err)
		}
	}
	select {
	case err := <-folded:
		t.Errorf("folded without the run's lock: %v", err)
	default:
	}
	unlock()
	if err := <-folded; err != nil {
		t.Fatal(err)
	}
	if rows := g.rows(); len(rows) != 1 {
		t.Errorf("rows %v", rows)
	}
}

// TestSettlingFails: as long as no row can be written, nothing leaves the
// journal; issuing goes on until it is full, and nothing is lost.
func TestSettlingFails(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	a, _, err := g.creds("LOW", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeGrants), false })
	w.fill()
	if err := w.fold(); err == nil {
		t.Fatal("folded without a row")
	}
	b, _, err := g.creds("LOW", idem(3))
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err = w.b.record(context.Background(), w.s, slices.Repeat([]audit.Event{{Type: "test.event"}}, 200)...); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("the journal has no bound")
	}
	_, _, err = g.creds("LOW", idem(4))
	wantCode(t, err, 503)
	w.open()
	if got := w.attached(); !slices.Equal(got, []sealed.GrantID{a.Grant, b.Grant}) {
		t.Errorf("the journal holds %v, want %v", got, []sealed.GrantID{a.Grant, b.Grant})
	}
	w.s.setFail(nil)
	if err := w.fold(); err != nil {
		t.Fatal(err)
	}
	if rows := g.rows(); len(rows) != 2 {
		t.Errorf("rows %v", rows)
	}
	if _, _, err := g.creds("LOW", idem(5)); err != nil {
		t.Errorf("with storage back: %v", err)
	}
}

// TestFoldWhileIssuing issues, confirms and folds at the same time: every grant
// that was answered is there after a restart, as far as it had come.
func TestFoldWhileIssuing(t *testing.T) {
	w := newWorld(t)
	const runs, each = 4, 60
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		want = map[sealed.GrantID]string{}
		of   = map[sealed.GrantID]*guest{}
	)
	for r := range runs {
		g := w.claimed(idem(1000 * r))
		all.Go(func() {
			for i := range each {
				a, _, err := g.creds([]string{"LOW", "DYN"}[i%2], idem(1000*r+i+1))
				if err != nil {
					t.Error(err)
					return
				}
				state := []string{grantIntent, grantReturned}[i%2]
				if i%3 == 0 {
					if err := g.confirm(a); err != nil {
						t.Error(err)
					}
					state = grantConfirmed
				}
				mu.Lock()
				want[a.Grant], of[a.Grant] = state, g
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	var folds sync.WaitGroup
	folds.Go(func() {
		for {
			if err := w.fold(); err != nil {
				t.Error(err)
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	all.Wait()
	close(done)
	folds.Wait()
	w.open()
	for id, state := range want {
		if got := w.grantOf(of[id], id); got.State != state {
			t.Errorf("grant %s is %s, want %s", id, got.State, state)
		}
	}
	if folded := runs*each - len(w.attached()); folded == 0 {
		t.Error("control: nothing was folded")
	}
}
