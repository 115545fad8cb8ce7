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

// A line is an event as it is read: the request, sealed.Input or
// sealed.ApprovalInput, is parsed in the same pass.
type line[In any] struct {
	Labels     map[string]string `json:"labels"`
	DecisionID string            `json:"decision_id"`
	Bundles    map[string]Bundle `json:"bundles"`
	Path       string            `json:"path"`
	Input      *In               `json:"input"`
	Result     sealed.Decision   `json:"result"`
	Erased     []string          `json:"erased"`
	Masked     []string          `json:"masked"`
	Shadow     bool              `json:"shadow"`
	Beside     string            `json:"beside"`
	Timestamp  time.Time         `json:"timestamp"`
}

// Parse reads one event and checks it. Errors wrap sealed.ErrInvalid.
func Parse(text []byte) (Event, error) {
	if aboutVotes(text, true) {
		return parse[sealed.ApprovalInput](text)
	}
	return parse[sealed.Input](text)
}

// aboutVotes reports whether an event, or the first of a list of them, is about votes.
// Nearly all are not, and have the path nowhere; a claim of a requester may be called
// path, too.
func aboutVotes(text []byte, one bool) bool {
	path := pathOf(sealed.QuestionApproval)
	if !bytes.Contains(text, []byte(path)) {
		return false
	}
	events := make([]struct {
		Path string `json:"path"`
	}, 1)
	var err error
	if one {
		err = json.Unmarshal(text, &events[0])
	} else {
		err = json.Unmarshal(text, &events)
	}
	return err == nil && len(events) > 0 && events[0].Path == path
}

func parse[In any](text []byte) (Event, error) {
	var l line[In]
	if err := sealed.Decode(text, maxLine, &l); err != nil {
		return Event{}, fmt.Errorf("parsing decision: %w", err)
	}
	return l.event()
}

func (l line[In]) event() (Event, error) {
	e := Event{
		Labels: l.Labels, DecisionID: l.DecisionID, Bundles: l.Bundles, Path: l.Path, Result: l.Result,
		Erased: l.Erased, Masked: l.Masked, Shadow: l.Shadow, Beside: l.Beside, Timestamp: l.Timestamp,
	}
	switch in := any(l.Input).(type) {
	case *sealed.Input:
		e.in = in
	case *sealed.ApprovalInput:
		e.vote = in
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
		return bad("wants one bundle, sealed or overlay, with its digest")
	}
	if q := e.Question(); q != sealed.QuestionAuthz && q != sealed.QuestionApproval {
		return bad("another path than sealed/authz/decision and sealed/approval/decision")
	} else if e.in != nil && q != sealed.QuestionAuthz || e.vote != nil && q != sealed.QuestionApproval {
		return bad("the input is of another question")
	}
	if e.DecisionID == "" || len(e.DecisionID) > 64 || e.Timestamp.IsZero() {
		return bad("wants a decision_id and a timestamp")
	}
	if e.Shadow && e.Overlay() {
		return bad("an overlay is no shadow")
	}
	if (e.Shadow || e.Overlay()) != (e.Beside != "") || len(e.Beside) > 64 || e.Beside == e.DecisionID {
		return bad("a shadow, or an overlay, and nothing else, names the decision beside it")
	}
	switch e.Result.Effect {
	case sealed.EffectDeny, sealed.EffectRequireApproval, sealed.EffectAllow:
	default:
		return bad("the result is no decision")
	}
	switch erased := slices.Contains(e.Erased, erasedInput); {
	case erased == e.kept():
		return bad("wants an input, or that it was erased")
	case !erased && !e.asked().Equal(e.Timestamp):
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
	if aboutVotes(members[Member], false) { // an entry's events are all about votes, or none
		return fromList[sealed.ApprovalInput](members[Member], labels)
	}
	return fromList[sealed.Input](members[Member], labels)
}

func fromList[In any](list []byte, labels map[string]string) ([]Event, error) {
	var lines []line[In]
	if err := sealed.Decode(list, len(list), &lines); err != nil {
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
		out[i].forget()
	}
	return out
}
