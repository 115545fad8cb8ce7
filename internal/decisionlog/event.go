// Package decisionlog is the form in which the log keeps what a policy decided,
// so that each decision can be derived again offline.
//
// The idea: a decision of a bundle depends on the question, the input document
// and the time alone. Keep these beside the bundle's digest, and whoever has the
// bundle can prove every verdict, ask what another bundle would have said, and
// see why.
//
// # Guarantee
//
// An event that New or NewVote made holds names only. The input of a policy has no field
// for a value (a test lists its fields); the one field that is free text of the
// agent, reason, is erased, and what the policy says to people is masked where
// it could quote it. Again gives the recorded result for the same bundle, byte
// for byte, except in what was erased or masked.
//
// # What it does not guarantee
//
// An event says nothing about who wrote it. Inside the log it is covered by the
// log's signature; a file of events is not covered by anything, and only proves
// itself against its bundle: a request that was invented replays as well as a
// real one. A decision that read an erased field can't be derived again, and
// neither can one whose input was too large to be kept. What the engine refuses
// itself, before or after it asks a policy, is no event.
//
// # Format
//
// An event is one of OPA's decision logs in JSON, with the members that Sealed
// has something to say about:
//
//	labels       where it comes from: entry, type (of the entry), run
//	decision_id  a ULID
//	bundles      {"sealed": {"revision": hex SHA-256 of the bundle's bytes,
//	             "sequence": N}}; the second is ours. Under the name overlay
//	             instead of sealed: the answer of an overlay; see below
//	path         sealed/authz/decision, or sealed/approval/decision: may this
//	             person vote?
//	input        the document that the policy saw
//	result       its answer
//	erased       JSON pointers to what was removed
//	masked       JSON pointers to what was replaced by ""
//	shadow       true: the answer of a bundle that decides nothing; see below
//	beside       of a shadow or an overlay: decision_id of the verdict to the
//	             same request
//	timestamp    the time that the policy was given
//
// A shadow is no verdict. It says what a bundle on trial would have said to the
// very request of the event that it names, which is in the same write of the log.
// Whoever looks for verdicts leaves it out: Verdicts, or the member shadow. OPA's
// own logs have neither member; FromBody adds the label shadow, for tools that
// group by labels. What a shadow could not be asked in its own short time has the
// reason sealed.ReasonTimeout, and is not to be had again.
//
// An overlay is a second bundle over the first, which can only narrow what that
// one says. Its answers are verdicts: events of their own, each derived again from
// the overlay alone, and each naming the first bundle's event, whose request it
// repeats. What came of the two is sealed.Combine of their results, in this order.
// An overlay is not asked what the first bundle denies, so that a denial stands
// alone.
//
// An exported file has one event on a line. See
// https://www.openpolicyagent.org/docs/management-decision-logs.
package decisionlog

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// The names of the bundles that a mount has.
const (
	bundleName  = "sealed"
	overlayName = "overlay"
)

const (
	// MaxEvent bounds one event in JSON, in bytes. New erases an input that
	// would make it larger.
	MaxEvent                  = 24 << 10
	erasedInput, erasedReason = "/input", "/input/reason"
)

// An Event is one decision of one bundle. See the package for its members. New,
// Parse, FromBody and Read make one; it can be encoded, but not decoded.
type Event struct {
	Labels     map[string]string `json:"labels,omitempty"`
	DecisionID string            `json:"decision_id"`
	Bundles    map[string]Bundle `json:"bundles"`
	Path       string            `json:"path"`
	Input      json.RawMessage   `json:"input,omitempty"`
	Result     sealed.Decision   `json:"result"`
	Erased     []string          `json:"erased,omitempty"`
	Masked     []string          `json:"masked,omitempty"`
	Shadow     bool              `json:"shadow,omitempty"`
	Beside     string            `json:"beside,omitempty"`
	Timestamp  time.Time         `json:"timestamp"`

	in   *sealed.Input         // what Input says, of sealed.QuestionAuthz
	vote *sealed.ApprovalInput // and of sealed.QuestionApproval
}

// A Bundle names the bundle that decided.
type Bundle struct {
	Revision sealed.Digest `json:"revision"`
	Sequence uint64        `json:"sequence"`
}

// New makes the event of an answer to sealed.QuestionAuthz. The input's time is
// the event's.
func New(id string, ref sealed.BundleRef, in sealed.Input, answer sealed.Decision) (Event, error) {
	e := Event{
		DecisionID: id, Bundles: map[string]Bundle{bundleName: {Revision: ref.Digest, Sequence: ref.Sequence}},
		Path: pathOf(sealed.QuestionAuthz), Result: answer, Timestamp: in.Time,
	}
	if in.Reason != "" { // the agent's words; the policy may have repeated them
		in.Reason = ""
		e.Erased = []string{erasedReason}
		e.mask()
	}
	doc, err := json.Marshal(in)
	if err != nil {
		return Event{}, fmt.Errorf("recording decision: %w", err)
	}
	e.Input, e.in = doc, &in
	e.fit()
	return e, nil
}

// fit erases an input that has no room.
func (e *Event) fit() {
	if e.kept() && e.Size() > MaxEvent {
		e.forget()
	}
}

// forget erases the input.
func (e *Event) forget() {
	e.Input, e.in, e.vote, e.Erased = nil, nil, nil, []string{erasedInput}
}

// kept reports whether the input was kept.
func (e Event) kept() bool { return e.in != nil || e.vote != nil }

// mask removes what the policy says to people.
func (e *Event) mask() {
	e.Masked, e.Result.Reasons = nil, slices.Clone(e.Result.Reasons)
	for i := range e.Result.Reasons {
		e.Result.Reasons[i].Msg = ""
		e.Masked = append(e.Masked, "/result/reasons/"+strconv.Itoa(i)+"/msg")
	}
}

// NewShadow makes the event of what a bundle that decides nothing answered to the
// request of e, which is a verdict. Where the agent's words were erased from the
// request, the answer is masked. It may be larger than MaxEvent.
func (e Event) NewShadow(id string, ref sealed.BundleRef, answer sealed.Decision) Event {
	s := e
	s.DecisionID, s.Bundles = id, map[string]Bundle{bundleName: {Revision: ref.Digest, Sequence: ref.Sequence}}
	s.Result, s.Shadow, s.Beside = answer, true, e.DecisionID
	if len(e.Erased) > 0 { // the whole input may have been erased with the words in it
		s.mask()
	}
	return s
}

// NewOverlay makes the event of what an overlay answered to the request of e, which
// is a verdict of the bundle below it. Where the agent's words were erased from the
// request, the answer is masked.
func (e Event) NewOverlay(id string, ref sealed.BundleRef, answer sealed.Decision) Event {
	o := e
	o.DecisionID, o.Bundles = id, map[string]Bundle{overlayName: {Revision: ref.Digest, Sequence: ref.Sequence}}
	o.Result, o.Masked, o.Beside = answer, nil, e.DecisionID
	if len(e.Erased) > 0 { // the whole input may have been erased with the words in it
		o.mask()
	}
	o.fit()
	return o
}

// Overlay reports whether it was an overlay that answered.
func (e Event) Overlay() bool {
	_, ok := e.Bundles[overlayName]
	return ok
}

// Verdicts parts events that decided from those that only shadow one, each in
// their order. Without shadows, verdicts is events itself.
func Verdicts(events []Event) (verdicts, shadows []Event) {
	if !slices.ContainsFunc(events, func(e Event) bool { return e.Shadow }) {
		return events, nil
	}
	for _, e := range events {
		if e.Shadow {
			shadows = append(shadows, e)
		} else {
			verdicts = append(verdicts, e)
		}
	}
	return verdicts, shadows
}

// Size is an upper bound of the event's length in the log, which writes
// everything but ASCII as escapes.
func (e Event) Size() int {
	n := 512 + escaped(string(e.Input))
	if e.Beside != "" {
		n += 64 + len(e.Beside)
	}
	for _, r := range e.Result.Reasons {
		n += 64 + len(`/result/reasons/999/msg`) + 6*len(r.Code) + 6*len(r.Msg)
	}
	for _, g := range e.Result.Obligations.Approvals.Groups {
		n += 8 + 6*len(g)
	}
	return n
}

// escaped bounds the length of JSON text when all but ASCII is \uNNNN: at most
// three bytes for each of UTF-8.
func escaped(s string) int {
	n := len(s)
	for i := range len(s) {
		if s[i] >= 0x7f {
			n += 3
		}
	}
	return n
}

// Ref returns the bundle that decided.
func (e Event) Ref() sealed.BundleRef {
	b, ok := e.Bundles[bundleName]
	if !ok {
		b = e.Bundles[overlayName]
	}
	return sealed.BundleRef{Digest: b.Revision, Sequence: b.Sequence}
}

// Question returns what was asked, such as sealed.QuestionAuthz.
func (e Event) Question() string { return strings.ReplaceAll(e.Path, "/", ".") }

func pathOf(question string) string { return strings.ReplaceAll(question, ".", "/") }

// Request returns the input as it was recorded: without what was erased. It is
// sealed.ErrInvalid when it was erased as a whole, or is about a vote. Its lists are
// shared and must not be changed.
func (e Event) Request() (sealed.Input, error) {
	if e.in == nil {
		return sealed.Input{}, fmt.Errorf("reading decision %s: the input was not kept: %w", e.DecisionID, sealed.ErrInvalid)
	}
	return *e.in, nil
}
