package decisionlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sealed.dev/sealed/internal/sealed"
)

// ballot is a question about a vote; the agent said reason.
func ballot(t testing.TB, reason string) sealed.ApprovalInput {
	t.Helper()
	o, _, err := sealed.ApprovalObject{
		V: 1, ID: "01JTSEALED0000000000000005", Tenant: "acme", Run: "01JTSEALED0000000000000000", Key: "GITHUB_TOKEN", Agent: "codex", Reason: reason,
		Reasons: []sealed.Reason{{Code: "risk_high", Msg: "you said: " + reason}}, Quorum: 1, Groups: []string{"approvers"}, CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return sealed.ApprovalInput{
		Time: now, Tenant: "acme", Voter: sealed.Requester{EntityID: "e-2", Name: "bob <b>", Person: "bob", Groups: []string{"approvers"}}, Approval: o,
		Votes: []sealed.Vote{{Person: "cy", EntityID: "e-3", Yes: true, At: now}},
	}
}

func voteEvent(t testing.TB, in sealed.ApprovalInput, d sealed.Decision) Event {
	t.Helper()
	e, err := NewVote("01JTSEALED0000000000000001", ref(), in, d)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A claim may be called path, and say what it likes.
func TestRequestThatSaysVote(t *testing.T) {
	in := request()
	in.Requester.Claims = map[string]string{"path": "sealed/approval/decision"}
	e, err := New("01JTSEALED0000000000000001", ref(), in, sealed.Deny("no", ""))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(text(t, e)); err != nil || got.Vote() {
		t.Errorf("a line: %v", err)
	}
	if got, err := FromBody(mustJSON(t, map[string]any{Member: []Event{e, e}}), nil); err != nil || len(got) != 2 || got[0].Vote() {
		t.Errorf("a body: %v", err)
	}
}

// voters answers about votes with what it is asked about, but for the agent's words.
type voters struct{}

func (voters) Decide(_ context.Context, question string, input any, at time.Time) sealed.Decision {
	in := input.(sealed.ApprovalInput)
	var o sealed.ApprovalObject
	if err := json.Unmarshal(in.Approval, &o); err != nil {
		return sealed.Deny("malformed", "")
	}
	return sealed.Deny(string(o.Key), question+in.Voter.Name+in.Votes[0].Person+at.String())
}

func TestVoteIsDecidedAgainAfterALine(t *testing.T) {
	in := ballot(t, "")
	answer := voters{}.Decide(context.Background(), sealed.QuestionApproval, in, now)
	e, err := Parse(text(t, voteEvent(t, in, answer)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := e.Again(context.Background(), voters{}); err != nil || !e.Matches(got) || e.Ref() != ref() {
		t.Errorf("%+v, %v", got, err)
	}
	if run, key := e.About(); !e.Vote() || run != "01JTSEALED0000000000000000" || key != "GITHUB_TOKEN" {
		t.Errorf("about %s %s", run, key)
	}
	if _, err := e.Request(); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a vote is no request of a key: %v", err)
	}
	if e.Erased != nil || e.Masked != nil || e.Result.Reasons[0].Msg == "" {
		t.Errorf("erased without need: %q %q", e.Erased, e.Masked)
	}
	e.vote.Voter.Name = "eve" // control
	if got, err := e.Again(context.Background(), voters{}); err != nil || e.Matches(got) {
		t.Errorf("another voter, and it still matches (%v)", err)
	}
	got, err := FromBody(mustJSON(t, map[string]any{"key": "K", Member: []Event{voteEvent(t, in, answer), voteEvent(t, in, answer)}}), map[string]string{"entry": "4"})
	if err != nil || len(got) != 2 || !got[1].Vote() || got[1].Labels["entry"] != "4" {
		t.Errorf("%+v, %v", got, err)
	}
}

// What the agent said is not kept, neither where a policy repeated it.
func TestWordsOfTheAgentAreNotKeptOfVotes(t *testing.T) {
	in := ballot(t, "my token is hunter2hunter2")
	was := string(in.Approval)
	for _, long := range []int{1, MaxEvent} {
		in.Voter.Groups = []string{strings.Repeat("g", long)}
		answer := sealed.Deny("no", "hunter2hunter2")
		e := voteEvent(t, in, answer)
		for name, x := range map[string]Event{"vote": e, "shadow": e.NewShadow("01JTSEALED0000000000000002", ref(), answer), "overlay": e.NewOverlay("01JTSEALED0000000000000002", ref(), answer)} {
			if b := text(t, x); bytes.Contains(b, []byte("hunter2")) {
				t.Errorf("%s: kept: %.400s", name, b)
			}
			if n := len(text(t, x)); n > x.Size() {
				t.Errorf("%s: %d bytes, said to be at most %d", name, n, x.Size())
			}
		}
		if long == 1 && !slices.Equal(e.Erased, []string{"/input/approval/reason", "/input/approval/reasons/0/msg"}) || long > 1 && !slices.Equal(e.Erased, []string{"/input"}) {
			t.Errorf("erased %q", e.Erased)
		}
		if again, err := Parse(text(t, e)); err != nil || again.Vote() != true {
			t.Error(err)
		}
	}
	if string(in.Approval) != was {
		t.Error("NewVote changed what it was given")
	}
	in.Approval = []byte(`{"v":1,"x":2}`)
	if _, err := NewVote("01JTSEALED0000000000000001", ref(), in, sealed.Deny("no", "")); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a malformed approval: %v", err)
	}
}

// What a policy sees of a vote has fields for names only. A field that is added has
// to be looked at and listed here.
func TestVotesHoldNamesOnly(t *testing.T) {
	fields := func(v any) (out []string) {
		for f := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			out = append(out, name)
		}
		return out
	}
	want := []string{
		"v", "id", "tenant", "run", "manifest_digest", "command_digest", "agent", "workflow", "profile", "key", "spec_digest", "risk", "delivery", "bindings", "ttl",
		"isolation", "requester", "requester_id", "person", "reason", "reasons", "quorum", "groups", "bundle", "overlay", "created_at", "expires_at",
	}
	if diff := cmp.Diff(want, fields(sealed.ApprovalObject{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"time", "tenant", "voter", "approval", "votes"}, fields(sealed.ApprovalInput{})); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefusesVotes(t *testing.T) {
	good := string(text(t, voteEvent(t, ballot(t, ""), sealed.Deny("no", ""))))
	key := string(text(t, event(t, request(), sealed.Deny("no", ""))))
	for name, bad := range map[string]string{
		"a key's path":          strings.Replace(good, "sealed/approval/decision", "sealed/authz/decision", 1),
		"a vote's path":         strings.Replace(key, "sealed/authz/decision", "sealed/approval/decision", 1),
		"other path":            strings.Replace(good, "sealed/approval/decision", "sealed/dispatch/decision", 1),
		"a vote's path, spaced": strings.Replace(key, `"path":"sealed/authz/decision"`, `"path": "sealed/approval/decision"`, 1),
		"unknown input":         strings.Replace(good, `"voter":`, `"x":1,"voter":`, 1),
		"other time":            strings.Replace(good, `"timestamp":"2026`, `"timestamp":"2027`, 1),
		"erased, and it is not": strings.Replace(good, `"timestamp"`, `"erased":["/input"],"timestamp"`, 1),
	} {
		if _, err := Parse([]byte(bad)); bad == good || !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A name that looks like the path is a name.
	in := request()
	in.Requester.Name = `"path":"sealed/approval/decision"`
	if e, err := Parse(text(t, event(t, in, sealed.Deny("no", "")))); err != nil || e.Vote() {
		t.Errorf("%v", err)
	}
	mixed := mustJSON(t, map[string]any{Member: []json.RawMessage{json.RawMessage(good), json.RawMessage(key)}})
	if _, err := FromBody(mixed, nil); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("votes and keys in one entry: %v", err)
	}
}

func FuzzParseVote(f *testing.F) {
	e, err := NewVote("01JTSEALED0000000000000001", ref(), ballot(f, "said"), sealed.Deny("x", "y"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(text(f, e)))
	f.Add([]byte(text(f, e.NewShadow("01JTSEALED0000000000000002", ref(), sealed.Deny("x", "y")))))
	f.Add([]byte(`{"path":"sealed/approval/decision"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := Parse(data)
		if err != nil {
			if !errors.Is(err, sealed.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		again, err := Parse(text(t, e))
		if diff := cmp.Diff(e.Result, again.Result, cmpopts.EquateEmpty()); err != nil || diff != "" || e.Vote() != again.Vote() {
			t.Errorf("%v %s", err, diff)
		}
		e.About()
	})
}
