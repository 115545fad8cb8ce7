package sandboxinit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

// reported returns the events that reached the double, by request.
func reported(t *testing.T, d *engineDouble) (batches [][]sealed.RunEvent) {
	t.Helper()
	for _, c := range d.of("events") {
		var req sealed.EventsRequest
		if err := json.Unmarshal([]byte(c.payload), &req); err != nil {
			t.Fatal(err)
		}
		batches = append(batches, req.Events)
	}
	return batches
}

// A loop that prints a value a million times is one event with a count (R23).
func TestEventsAreAggregated(t *testing.T) {
	d := newDouble(t)
	l := newEventLog(d.session())
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100_000 {
				l.add(sealed.RunEvent{Type: "redact.hit", Key: "API_KEY", Detail: "raw", Stream: "stdout"})
			}
		})
	}
	wg.Wait()
	l.add(sealed.RunEvent{Type: "redact.hit", Key: "API_KEY", Detail: "raw", Stream: "stdout", Count: 5})
	for range 2 { // the second reports nothing
		if err := l.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := [][]sealed.RunEvent{{{Type: "redact.hit", Key: "API_KEY", Detail: "raw", Stream: "stdout", Count: 1_000_005}}}
	if diff := cmp.Diff(want, reported(t, d)); diff != "" {
		t.Error(diff)
	}
}

func sum(batches [][]sealed.RunEvent) (n int) {
	for _, b := range batches {
		for _, e := range b {
			n += e.Count
		}
	}
	return n
}

// However many different events there are, memory and requests are bounded,
// and no count is lost.
func TestPendingEventsAreBounded(t *testing.T) {
	d := newDouble(t)
	l := newEventLog(d.session())
	const n = 5000
	for i := range n {
		l.add(sealed.RunEvent{Type: "egress.denied", Key: sealed.KeyName(fmt.Sprintf("K%d", i)), Detail: fmt.Sprintf("h%d.test", i)})
	}
	if len(l.pending) > 2*maxPending+len(sealed.RunEvents) {
		t.Errorf("%d events are pending", len(l.pending))
	}
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	batches := reported(t, d)
	for _, b := range batches {
		if len(b) == 0 || len(b) > 100 { // the engine's limit
			t.Errorf("a request with %d events", len(b))
		}
	}
	if got := sum(batches); got != n {
		t.Errorf("%d events were counted, want %d", got, n)
	}
}

// A report that fails keeps its counts; one that succeeded is not repeated.
func TestFailedReportKeepsCounts(t *testing.T) {
	d := newDouble(t)
	l := newEventLog(d.session())
	for i := range 150 {
		l.add(sealed.RunEvent{Type: "egress.denied", Key: sealed.KeyName(fmt.Sprintf("K%d", i)), Count: 2})
	}
	d.before = func(w http.ResponseWriter, _ *http.Request, verb string, n int) bool {
		return verb == "events" && (n == 1 || n == 3) && refuse(w, 503)
	}
	for range 2 { // the first report fails whole, the second in its second half
		if err := l.flush(t.Context()); !errors.Is(err, sealed.ErrUnavailable) {
			t.Fatalf("flush: %v", err)
		}
	}
	l.add(sealed.RunEvent{Type: "proxy.frozen"})
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	batches := reported(t, d)
	if len(batches) != 4 {
		t.Fatalf("%d requests", len(batches))
	}
	if got := sum([][]sealed.RunEvent{batches[1], batches[3]}); got != 301 {
		t.Errorf("the engine counted %d", got)
	}
}

// A lease that is renewed every half a minute is an entry an hour, and one at
// the end; no renewal is lost.
func TestRareEventsAreHourly(t *testing.T) {
	d := newDouble(t)
	s := d.session()
	var l *eventLog
	synctest.Test(t, func(t *testing.T) {
		l = newEventLog(s)
		c := &contact{session: s, dead: func([]sealed.GrantID) {}, renewed: func(k sealed.KeyName) {
			l.addRare(sealed.RunEvent{Type: "lease.renewed", Key: k})
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Minute)
		defer cancel()
		go c.keepLease(ctx, &grant{id: "G", key: "API_KEY", lease: "L", ttl: time.Minute})
		l.run(ctx)
	})
	l.settle()
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	batches := reported(t, d)
	// The run may end while the last renewal is on its way.
	if n := len(d.of("renew")); len(batches) != 3 || sum(batches) < n-1 || sum(batches) > n || n < 295 {
		t.Errorf("%d renewals in reports %v", n, batches)
	}
	for _, b := range batches {
		if len(b) != 1 || b[0].Type != "lease.renewed" || b[0].Key != "API_KEY" || !slices.Contains(sealed.RunEvents, b[0].Type) {
			t.Errorf("reported %v", b)
		}
	}
}
