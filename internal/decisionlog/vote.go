package decisionlog

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// erasedApproval is where the object that a person votes on has the agent's words.
const erasedApproval = "/input/approval"

// NewVote makes the event of an answer to sealed.QuestionApproval: may this person
// vote on this approval? The input's time is the event's. What the agent said is
// erased from the approval, and with it what the policy said to people after it had
// heard that. Errors wrap sealed.ErrInvalid when the approval is malformed.
func NewVote(id string, ref sealed.BundleRef, in sealed.ApprovalInput, answer sealed.Decision) (Event, error) {
	e := Event{
		DecisionID: id, Bundles: map[string]Bundle{bundleName: {Revision: ref.Digest, Sequence: ref.Sequence}},
		Path: pathOf(sealed.QuestionApproval), Result: answer, Timestamp: in.Time,
	}
	var o sealed.ApprovalObject
	if err := sealed.Decode(in.Approval, len(in.Approval), &o); err != nil {
		return Event{}, fmt.Errorf("recording decision: %w", err)
	}
	if o.Reason != "" {
		o.Reason, e.Erased = "", []string{erasedApproval + "/reason"}
		for i := range o.Reasons { // decoded here, and nobody else's
			o.Reasons[i].Msg = ""
			e.Erased = append(e.Erased, erasedApproval+"/reasons/"+strconv.Itoa(i)+"/msg")
		}
		e.mask()
		raw, _, err := o.Marshal()
		if err != nil {
			return Event{}, fmt.Errorf("recording decision: %w", err)
		}
		in.Approval = raw
	}
	doc, err := json.Marshal(in)
	if err != nil {
		return Event{}, fmt.Errorf("recording decision: %w", err)
	}
	e.Input, e.vote = doc, &in
	e.fit()
	return e, nil
}

// About returns the run and the key that was decided about, also of a vote; both are
// empty when the input was not kept, or does not say.
func (e Event) About() (run sealed.RunID, key sealed.KeyName) {
	switch {
	case e.in != nil:
		return e.in.Run.ID, e.in.Key.Name
	case e.vote != nil:
		var o struct {
			Run sealed.RunID   `json:"run"`
			Key sealed.KeyName `json:"key"`
		}
		if json.Unmarshal(e.vote.Approval, &o) == nil {
			return o.Run, o.Key
		}
	}
	return "", ""
}

// Vote reports whether it was about a vote.
func (e Event) Vote() bool { return e.Question() == sealed.QuestionApproval }

// asked is the time in the input, which was kept.
func (e Event) asked() time.Time {
	if e.vote != nil {
		return e.vote.Time
	}
	return e.in.Time
}
