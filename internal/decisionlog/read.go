package decisionlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// Member is the member of an entry's body that holds its events.
const Member = "decisions"

// TypeDecided is the type of the entries that hold the events which another
// entry of the same write had no room for.
const TypeDecided = "policy.decided"

// labelShadow is the label of what is no verdict, for tools that group by labels.
const labelShadow = "shadow"

// maxLine bounds one line of an exported file, in bytes.
const maxLine = 4 * MaxEvent

// A line is an event as it is read: the request is parsed in the same pass.
type line struct {
	Labels     map[string]string `json:"labels"`
	DecisionID string            `json:"decision_id"`
	Bundles    map[string]Bundle `json:"bundles"`
	Path       string            `json:"path"`
	Input      *sealed.Input     `json:"input"`
	Result     sealed.Decision   `json:"result"`
	Erased     []string          `json:"erased"`
	Masked     []string          `json:"masked"`
	Shadow     bool              `json:"shadow"`
	Beside     string            `json:"beside"`
	Timestamp  time.Time         `json:"timestamp"`
}

// Parse reads one event and checks it. Errors wrap sealed.ErrInvalid.
func Parse(text []byte) (Event, error) {
	var l line
	if err := sealed.Decode(text, maxLine, &l); err != nil {
		return Event{}, fmt.Errorf("parsing decision: %w", err)
	}
	return l.event()
}

func (l line) event() (Event, error) {
	e := Event{
		Labels: l.Labels, DecisionID: l.DecisionID, Bundles: l.Bundles, Path: l.Path, Result: l.Result,
		Erased: l.Erased, Masked: l.Masked, Shadow: l.Shadow, Beside: l.Beside, Timestamp: l.Timestamp, in: l.Input,
	}
	if l.Input != nil {
		var err error
		if e.Input, err = json.Marshal(l.Input); err != nil {
			return Event{}, fmt.Errorf("parsing decision: the input: %w", sealed.ErrInvalid)
		}
	}
	return e, e.check()
}

func (e Event) check() error {
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
	if e.Shadow != (e.Beside != "") || len(e.Beside) > 64 || e.Beside == e.DecisionID {
		return bad("a shadow, and nothing else, names the decision beside it")
	}
	switch e.Result.Effect {
	case sealed.EffectDeny, sealed.EffectRequireApproval, sealed.EffectAllow:
	default:
		return bad("the result is no decision")
	}
	switch erased := slices.Contains(e.Erased, erasedInput); {
	case erased != (e.in == nil):
		return bad("wants an input, or that it was erased")
	case !erased && !e.in.Time.Equal(e.Timestamp):
		return bad("the timestamp is not the time of the input")
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
	var lines []line
	if err := sealed.Decode(members[Member], len(body), &lines); err != nil {
		return nil, fmt.Errorf("reading decisions: %w", err)
	}
	events := make([]Event, len(lines))
	for i, l := range lines {
		if l.Labels = labels; l.Shadow {
			l.Labels = maps.Clone(labels)
			if l.Labels == nil {
				l.Labels = map[string]string{}
			}
			l.Labels[labelShadow] = "true"
		}
		var err error
		if events[i], err = l.event(); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// Read calls f for each event of an exported file, in order, until f fails. It
// parses several lines at a time. Errors of the file name the line and wrap
// sealed.ErrInvalid.
func Read(r io.Reader, f func(Event) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	var batch [][]byte
	n := 0 // lines before the batch
	for in.Scan() {
		batch = append(batch, bytes.Clone(in.Bytes()))
		if len(batch) == chunk {
			if err := parseAll(batch, n, f); err != nil {
				return err
			}
			n, batch = n+len(batch), batch[:0]
		}
	}
	if err := parseAll(batch, n, f); err != nil {
		return err
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("reading decisions: %w: %w", sealed.ErrInvalid, err)
	}
	return nil
}

func parseAll(batch [][]byte, before int, f func(Event) error) error {
	events, errs := make([]Event, len(batch)), make([]error, len(batch))
	each(len(batch), func(i int) {
		if batch[i] = bytes.TrimSpace(batch[i]); len(batch[i]) > 0 {
			events[i], errs[i] = Parse(batch[i])
		}
	})
	for i, e := range events {
		if errs[i] != nil {
			return fmt.Errorf("line %d: %w", before+i+1, errs[i])
		}
		if len(batch[i]) == 0 {
			continue
		}
		if err := f(e); err != nil {
			return err
		}
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

// WithoutInputs returns copies of events without the requests, for when there are
// too many to keep.
func WithoutInputs(events []Event) []Event {
	out := slices.Clone(events)
	for i := range out {
		out[i].Input, out[i].in, out[i].Erased = nil, nil, []string{erasedInput}
	}
	return out
}
