package vaultplugin

import (
	"fmt"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// What policies were asked and what they said is logged with what came of it, so
// that it can be derived again offline. It never decides anything.

const (
	// maxInline is how much of it fits beside what else an entry says, in bytes.
	maxInline = 8 << 10
	// maxDecided bounds the entries that one call adds: with those of a run and
	// its approvals they fit one batch of the log.
	maxDecided = 50
)

// A ruling about a key is the policy's answer and, if a policy was asked, the event
// for the log.
type ruling struct {
	sealed.Decision
	decided []decisionlog.Event // at most one
}

// event records one answer of a bundle.
func (b *backend) event(bundle Bundle, in sealed.Input, d sealed.Decision) ([]decisionlog.Event, error) {
	id, err := sealed.NewULID(in.Time, b.rand)
	if err != nil {
		return nil, fmt.Errorf("making decision id: %w", err)
	}
	e, err := decisionlog.New(id, bundle.Ref(), in, d)
	if err != nil {
		return nil, err
	}
	return []decisionlog.Event{e}, nil
}

// withDecided returns the entry with the events in its body or, where they have
// no room, followed by entries of their own. All go into one write.
func withDecided(entry audit.Event, body map[string]any, events []decisionlog.Event) []audit.Event {
	size := 0
	for _, e := range events {
		size += e.Size()
	}
	if entry.Body = body; len(events) > 0 && size <= maxInline {
		body[decisionlog.Member] = events
		return []audit.Event{entry}
	}
	parts := decisionlog.Split(events)
	if len(parts) > maxDecided {
		parts = decisionlog.Split(decisionlog.WithoutInputs(events))
	}
	out := []audit.Event{entry}
	for _, part := range parts {
		out = append(out, audit.Event{
			Type: decisionlog.TypeDecided, Run: entry.Run, Essential: entry.Essential,
			Body: map[string]any{"of": entry.Type, decisionlog.Member: part},
		})
	}
	return out
}
