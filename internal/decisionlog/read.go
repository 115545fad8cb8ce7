package decisionlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"sealed.dev/sealed/internal/sealed"
)

// Member is the member of an entry's body that holds its events.
const Member = "decisions"

// TypeDecided is the type of the entries that hold the events which another
// entry of the same write had no room for.
const TypeDecided = "policy.decided"

// maxLine bounds one line of an exported file, in bytes.
const maxLine = 4 * MaxEvent

// Parse reads one event and checks it. Errors wrap sealed.ErrInvalid.
func Parse(line []byte) (Event, error) {
	var e Event
	if err := sealed.Decode(line, maxLine, &e); err != nil {
		return Event{}, fmt.Errorf("parsing decision: %w", err)
	}
	return e, e.check()
}

// check also keeps the parsed input.
func (e *Event) check() error {
	bad := func(what string) error {
		return fmt.Errorf("parsing decision: %s: %w", what, sealed.ErrInvalid)
	}
	if len(e.Bundles) != 1 || e.Ref().Digest.Validate("bundles") != nil {
		return bad("wants one bundle, sealed, with its digest")
	}
	if e.Question() != sealed.QuestionAuthz {
		return bad("another path than sealed/authz/decision")
	}
	if e.DecisionID == "" || len(e.DecisionID) > 64 || e.Timestamp.IsZero() {
		return bad("wants a decision_id and a timestamp")
	}
	switch e.Result.Effect {
	case sealed.EffectDeny, sealed.EffectRequireApproval, sealed.EffectAllow:
	default:
		return bad("the result is no decision")
	}
	in, err := e.Request()
	switch {
	case err != nil && len(e.Input) > 0:
		return err
	case err == nil && !in.Time.Equal(e.Timestamp):
		return bad("the timestamp is not the time of the input")
	case err == nil:
		e.in = &in
	}
	return nil
}

// FromBody returns the events in the body of an entry; most have none. Labels
// are added to each. Errors wrap sealed.ErrInvalid.
func FromBody(body []byte, labels map[string]string) ([]Event, error) {
	if !bytes.Contains(body, []byte(`"`+Member+`"`)) {
		return nil, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		return nil, fmt.Errorf("reading decisions: malformed body: %w", sealed.ErrInvalid)
	}
	if members[Member] == nil {
		return nil, nil
	}
	var events []Event
	if err := sealed.Decode(members[Member], len(body), &events); err != nil {
		return nil, fmt.Errorf("reading decisions: %w", err)
	}
	for i := range events {
		events[i].Labels = labels
		if err := events[i].check(); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// Read calls f for each event of an exported file, in order, until f fails.
// Errors of the file name the line and wrap sealed.ErrInvalid.
func Read(r io.Reader, f func(Event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		e, err := Parse(lines.Bytes())
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading decisions: %w: %w", sealed.ErrInvalid, err)
	}
	return nil
}

// Split packs events, in order, into groups of which each fits in the body of
// one entry.
func Split(events []Event) [][]Event {
	var out [][]Event
	left := 0
	for _, e := range events {
		if n := e.Size(); len(out) == 0 || n > left {
			out, left = append(out, nil), MaxEvent
		}
		out[len(out)-1] = append(out[len(out)-1], e)
		left -= e.Size()
	}
	return out
}
