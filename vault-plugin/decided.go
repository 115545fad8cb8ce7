package vaultplugin

import (
	"fmt"
	"slices"

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
	decided []decisionlog.Event // at most one, then one of the overlay and one of the shadow
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
//
// Shadows take room that verdicts leave: what is kept of verdicts, and where, does
// not depend on them.
func withDecided(entry audit.Event, body map[string]any, events []decisionlog.Event) []audit.Event {
	verdicts, shadows := decisionlog.Verdicts(events)
	var inline []decisionlog.Event
	var parts [][]decisionlog.Event
	if len(verdicts) > 0 && sizeOf(verdicts) <= maxInline {
		inline = verdicts
	} else if parts = decisionlog.Split(verdicts); len(parts) > maxDecided {
		parts = decisionlog.Split(decisionlog.WithoutInputs(verdicts))
	}
	if len(shadows) > 0 {
		room := 0
		if entry.Essential { // another entry would count against what the run may write
			room = maxDecided - len(parts)
		}
		beside, more, dropped := packShadows(shadows, room)
		inline, parts = append(slices.Clip(inline), beside...), append(parts, more...)
		if dropped > 0 {
			body["shadow_dropped"] = dropped
		}
	}
	if entry.Body = body; len(inline) > 0 {
		body[decisionlog.Member] = inline
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

// packShadows packs shadows into an entry or, if that has no room for them, into
// at most so many entries of their own. Of too many, the later half is dropped, and
// so is any that is too large by itself.
func packShadows(shadows []decisionlog.Event, entries int) (inline []decisionlog.Event, parts [][]decisionlog.Event, dropped int) {
	kept := slices.DeleteFunc(slices.Clone(shadows), func(e decisionlog.Event) bool { return e.Size() > decisionlog.MaxEvent })
	for ; len(kept) > 0; kept = kept[:len(kept)/2] {
		if sizeOf(kept) <= maxInline {
			return kept, nil, len(shadows) - len(kept)
		}
		if parts := decisionlog.Split(kept); len(parts) <= entries {
			return nil, parts, len(shadows) - len(kept)
		}
	}
	return nil, nil, len(shadows)
}

func sizeOf(events []decisionlog.Event) int {
	n := 0
	for _, e := range events {
		n += e.Size()
	}
	return n
}
