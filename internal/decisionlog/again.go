package decisionlog

import (
	"bytes"
	"context"
	"encoding/json"
	"runtime"
	"slices"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A Decider is a bundle. It is safe for concurrent use.
type Decider interface {
	Decide(ctx context.Context, question string, input any, at time.Time) sealed.Decision
}

// Again asks a bundle what was asked then. It is sealed.ErrInvalid when the
// input was not kept.
func (e Event) Again(ctx context.Context, by Decider) (sealed.Decision, error) {
	if e.vote != nil {
		return by.Decide(ctx, e.Question(), *e.vote, e.vote.Time), nil
	}
	in, err := e.Request()
	if err != nil {
		return sealed.Decision{}, err
	}
	return by.Decide(ctx, e.Question(), in, in.Time), nil
}

// Matches reports whether d is the recorded result, byte for byte, apart from
// messages that were masked.
func (e Event) Matches(d sealed.Decision) bool {
	if len(e.Masked) > 0 {
		d.Reasons = slices.Clone(d.Reasons)
		for i := range d.Reasons {
			d.Reasons[i].Msg = ""
		}
	}
	want, err1 := json.Marshal(plain(e.Result))
	got, err2 := json.Marshal(plain(d))
	return err1 == nil && err2 == nil && bytes.Equal(want, got)
}

// plain makes no reasons one thing: null and [] are the same decision.
func plain(d sealed.Decision) sealed.Decision {
	if len(d.Reasons) == 0 {
		d.Reasons = nil
	}
	return d
}

// A Verdict is one event that was decided again. Err says why it could not be.
type Verdict struct {
	Event Event
	Got   []sealed.Decision // by each of the deciders
	Err   error
}

// Redecide asks deciders about every event, several at a time, and calls f with
// each verdict in the order of events. deciders returns the ones for an event;
// its error becomes that of the verdict. It stops when ctx is done.
func Redecide(ctx context.Context, events []Event, deciders func(Event) ([]Decider, error), f func(Verdict)) error {
	for from := 0; from < len(events); from += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := events[from:min(from+chunk, len(events))]
		out := make([]Verdict, len(part))
		each(len(part), func(i int) { out[i] = verdict(ctx, part[i], deciders) })
		for _, v := range out {
			f(v)
		}
	}
	return ctx.Err()
}

// chunk is how many events are worked on at a time.
const chunk = 512

// each calls f for 0 to n-1, on all processors.
func each(n int, f func(int)) {
	workers := min(n, runtime.GOMAXPROCS(0))
	var working sync.WaitGroup
	for w := range workers {
		working.Go(func() {
			for i := w; i < n; i += workers {
				f(i)
			}
		})
	}
	working.Wait()
}

func verdict(ctx context.Context, e Event, deciders func(Event) ([]Decider, error)) Verdict {
	v := Verdict{Event: e}
	by, err := deciders(e)
	if err != nil {
		v.Err = err
		return v
	}
	for _, d := range by {
		got, err := e.Again(ctx, d)
		if err != nil {
			v.Err = err
			return v
		}
		v.Got = append(v.Got, got)
	}
	return v
}
