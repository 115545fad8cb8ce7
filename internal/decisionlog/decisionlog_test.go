package decisionlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sealed.dev/sealed/internal/sealed"
)

var now = time.Date(2026, 5, 1, 10, 0, 0, 123456789, time.UTC)

func request() sealed.Input {
	return sealed.Input{
		Phase: "issue", Time: now, Tenant: "acme",
		Requester: sealed.Requester{EntityID: "e-1", Name: "ünn <a>", Groups: []string{"dev"}},
		Run:       sealed.InputRun{ID: "01JTSEALED0000000000000000", Mode: sealed.ModeJIT, Workflow: "release", Tags: []sealed.InputTag{}},
		Key:       sealed.InputKey{Name: "GITHUB_TOKEN", Source: "kv", Agents: []string{"codex"}, Risk: "low", Bindings: []sealed.Binding{}},
	}
}

func ref() sealed.BundleRef {
	return sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, []byte("bundle")), Sequence: 7}
}

func event(t testing.TB, in sealed.Input, d sealed.Decision) Event {
	t.Helper()
	e, err := New("01JTSEALED0000000000000001", ref(), in, d)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func text(t testing.TB, e Event) []byte {
	t.Helper()
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// decider answers with what it is asked about.
type decider struct {
	effect sealed.Effect
	asked  func(sealed.Input)
}

func (d decider) Decide(_ context.Context, question string, input any, at time.Time) sealed.Decision {
	in := input.(sealed.Input)
	if d.asked != nil {
		d.asked(in)
	}
	return sealed.Decision{Effect: d.effect, Reasons: []sealed.Reason{{Code: string(in.Key.Name), Msg: "at " + at.String() + question + in.Reason}}}
}

func answer(in sealed.Input, d decider) sealed.Decision {
	return d.Decide(context.Background(), sealed.QuestionAuthz, in, in.Time)
}

func TestEventIsDecidedAgainAfterALine(t *testing.T) {
	d := decider{effect: sealed.EffectDeny}
	e, err := Parse(text(t, event(t, request(), answer(request(), d))))
	if err != nil {
		t.Fatal(err)
	}
	in, err := e.Request()
	if diff := cmp.Diff(request(), in); err != nil || diff != "" {
		t.Fatalf("%v %s", err, diff)
	}
	got, err := e.Again(context.Background(), d)
	if err != nil || !e.Matches(got) || e.Ref() != ref() {
		t.Errorf("%+v, %v", got, err)
	}
	// Control: another answer, input or time does not match.
	for name, change := range map[string]func(*Event){
		"effect": func(e *Event) { e.Result.Effect = sealed.EffectAllow },
		"reason": func(e *Event) { e.Result.Reasons[0].Msg += "." },
		"key":    func(e *Event) { e.in.Key.Name = "OTHER" },
		"time":   func(e *Event) { e.in.Time = now.Add(1) },
		"ttl":    func(e *Event) { e.Result.Obligations.TTL++ },
	} {
		e, err := Parse(text(t, event(t, request(), answer(request(), d))))
		if err != nil {
			t.Fatal(err)
		}
		change(&e)
		if got, err := e.Again(context.Background(), d); err != nil || e.Matches(got) {
			t.Errorf("%s changed, and it still matches (%v)", name, err)
		}
	}
}

func TestWordsOfTheAgentAreNotKept(t *testing.T) {
	const said = "please, my token is hunter2hunter2"
	in, d := request(), decider{effect: sealed.EffectDeny}
	in.Reason = said
	original := answer(in, d)
	e := event(t, in, original)
	if b := text(t, e); bytes.Contains(b, []byte("hunter2")) {
		t.Fatalf("kept: %s", b)
	}
	if original.Reasons[0].Msg == "" {
		t.Error("New changed the answer that it was given")
	}
	if diff := cmp.Diff([]any{[]string{"/input/reason"}, []string{"/result/reasons/0/msg"}}, []any{e.Erased, e.Masked}); diff != "" {
		t.Error(diff)
	}
	if got, err := e.Again(context.Background(), d); err != nil || !e.Matches(got) {
		t.Errorf("%+v, %v", got, err)
	}
	// Control: without the agent's words nothing is taken away.
	if e := event(t, request(), answer(request(), d)); e.Erased != nil || e.Masked != nil || e.Result.Reasons[0].Msg == "" {
		t.Errorf("%+v", e)
	}
}

// The input of a policy has fields for names only. A field that is added has to
// be looked at and listed here.
func TestInputHoldsNamesOnly(t *testing.T) {
	want := []string{
		"agent.definition_digest", "agent.name", "agent.spiffe_id",
		"key.agents", "key.bindings.format", "key.bindings.header", "key.bindings.host", "key.bindings.methods", "key.bindings.paths",
		"key.delivery", "key.max_ttl", "key.name", "key.requester_matches", "key.risk", "key.source", "key.source_kind", "key.tags", "key.ttl", "key.workflows",
		"phase", "profile.allowed_workflows", "profile.level", "profile.name", "profile.owner", "profile.tags", "profile.version",
		"reason", // erased
		"requester.claims", "requester.entity_id", "requester.groups", "requester.name", "requester.person",
		"run.assurance", "run.backend", "run.id", "run.interactive", "run.isolation", "run.mode", "run.network", "run.tags.name", "run.tags.proven", "run.workflow", "run.workflow_proven",
		"tenant", "time",
	}
	var got []string
	var walk func(reflect.Type, string)
	walk = func(t reflect.Type, at string) {
		if t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
			got = append(got, strings.TrimPrefix(at, "."))
			return
		}
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			walk(t.Field(i).Type, at+"."+name)
		}
	}
	walk(reflect.TypeFor[sealed.Input](), "")
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A shadow says so, names the verdict beside it, and has the same request.
func TestShadowIsMarked(t *testing.T) {
	in, d := request(), decider{effect: sealed.EffectDeny}
	other := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, []byte("trial")), Sequence: 9}
	v := event(t, in, answer(in, decider{effect: sealed.EffectAllow}))
	s, err := Parse(text(t, v.NewShadow("01JTSEALED0000000000000002", other, answer(in, d))))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Shadow || s.Beside != v.DecisionID || s.Ref() != other || s.Result.Effect != sealed.EffectDeny {
		t.Errorf("%+v", s)
	}
	if v.Shadow || v.Beside != "" || v.Result.Effect != sealed.EffectAllow || v.Ref() != ref() {
		t.Errorf("the verdict was changed: %+v", v)
	}
	if got, err := s.Again(context.Background(), d); err != nil || !s.Matches(got) {
		t.Errorf("%+v, %v", got, err)
	}
	verdicts, shadows := Verdicts([]Event{v, s, v})
	if len(verdicts) != 2 || len(shadows) != 1 || verdicts[1].Shadow || !shadows[0].Shadow {
		t.Errorf("%d verdicts, %d shadows", len(verdicts), len(shadows))
	}
	labels := map[string]string{"entry": "4"}
	got, err := FromBody(mustJSON(t, map[string]any{Member: []Event{v, s}}), labels)
	if err != nil || got[0].Labels["shadow"] != "" || got[1].Labels["shadow"] != "true" || got[1].Labels["entry"] != "4" || len(labels) != 1 {
		t.Errorf("labels %v of %v, %v", labels, got, err)
	}
	if n := len(text(t, s)); n > s.Size() {
		t.Errorf("%d bytes, said to be at most %d", n, s.Size())
	}
}

// What the agent said is not kept by way of a shadow either.
func TestShadowIsMasked(t *testing.T) {
	const said = "please, my token is hunter2hunter2"
	d := decider{effect: sealed.EffectDeny}
	for _, agents := range []int{1, MaxEvent} {
		in := request()
		in.Reason, in.Key.Agents = said, []string{strings.Repeat("a", agents)}
		original := answer(in, d)
		s := event(t, in, original).NewShadow("01JTSEALED0000000000000002", ref(), original)
		if b := text(t, s); bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("kept: %.300s", b)
		}
		if original.Reasons[0].Msg == "" || len(s.Masked) != 1 {
			t.Errorf("masked %q", s.Masked)
		}
	}
}

// The answer of an overlay is a verdict of its own bundle to the same request.
func TestOverlayIsMarked(t *testing.T) {
	in, d := request(), decider{effect: sealed.EffectDeny}
	other := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, []byte("overlay")), Sequence: 2}
	v := event(t, in, answer(in, decider{effect: sealed.EffectAllow}))
	o, err := Parse(text(t, v.NewOverlay("01JTSEALED0000000000000002", other, answer(in, d))))
	if err != nil {
		t.Fatal(err)
	}
	if !o.Overlay() || o.Shadow || o.Beside != v.DecisionID || o.Ref() != other || o.Result.Effect != sealed.EffectDeny {
		t.Errorf("%+v", o)
	}
	if v.Overlay() || v.Beside != "" || v.Result.Effect != sealed.EffectAllow || v.Ref() != ref() {
		t.Errorf("the verdict below was changed: %+v", v)
	}
	if got, err := o.Again(context.Background(), d); err != nil || !o.Matches(got) {
		t.Errorf("%+v, %v", got, err)
	}
	s := v.NewShadow("01JTSEALED0000000000000003", ref(), answer(in, d))
	if verdicts, shadows := Verdicts([]Event{v, o, s}); len(verdicts) != 2 || !verdicts[1].Overlay() || len(shadows) != 1 {
		t.Errorf("%d verdicts, %d shadows", len(verdicts), len(shadows))
	}
	if n := len(text(t, o)); n > o.Size() {
		t.Errorf("%d bytes, said to be at most %d", n, o.Size())
	}
	// What the agent said is not kept, and what has no room is erased.
	const said = "please, my token is hunter2hunter2"
	for _, agents := range []int{1, MaxEvent} {
		in := request()
		in.Reason, in.Key.Agents = said, []string{strings.Repeat("a", agents)}
		original := answer(in, d)
		if b := text(t, event(t, in, original).NewOverlay("01JTSEALED0000000000000002", other, original)); bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("kept: %.300s", b)
		}
	}
	long := sealed.Deny(strings.Repeat("x", MaxEvent/6), "")
	if o := v.NewOverlay("01JTSEALED0000000000000002", other, long); o.Input != nil || !slices.Equal(o.Erased, []string{"/input"}) || v.Input == nil {
		t.Errorf("%d bytes of request beside a long answer", len(o.Input))
	}
}

func TestLargeInputIsErased(t *testing.T) {
	in := request()
	in.Key.Agents = []string{strings.Repeat("é", MaxEvent/4)}
	e := event(t, in, answer(in, decider{effect: sealed.EffectAllow}))
	if e.Input != nil || !slices.Equal(e.Erased, []string{"/input"}) {
		t.Fatalf("%d bytes were kept", len(e.Input))
	}
	e, err := Parse(text(t, e))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Again(context.Background(), decider{}); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("decided without an input: %v", err)
	}
}

func TestSplitFits(t *testing.T) {
	var events []Event
	for i := range 200 {
		in := request()
		in.Requester.Name = strings.Repeat("ü", i*7)
		events = append(events, event(t, in, answer(in, decider{effect: sealed.EffectDeny})))
	}
	var n int
	for _, part := range Split(events) {
		n += len(part)
		size := 0
		for _, r := range string(text(t, Event{Input: mustJSON(t, part)})) {
			size++
			if r >= 0x7f {
				size += 5
			}
		}
		if size > 32<<10-1024 {
			t.Errorf("%d events are %d bytes", len(part), size)
		}
	}
	if n != len(events) || Split(nil) != nil {
		t.Errorf("%d of %d events are left", n, len(events))
	}
}

func mustJSON(t testing.TB, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFromBody(t *testing.T) {
	e := event(t, request(), answer(request(), decider{effect: sealed.EffectAllow}))
	labels := map[string]string{"entry": "4"}
	got, err := FromBody(mustJSON(t, map[string]any{"key": "K", Member: []Event{e}}), labels)
	e.Labels = labels
	if diff := cmp.Diff([]Event{e}, got, cmpopts.IgnoreUnexported(Event{})); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for _, none := range []string{`{}`, `{"key":"decisions"}`, `null`, ``} {
		if got, err := FromBody([]byte(none), nil); len(got) > 0 || err != nil {
			t.Errorf("%s: %v, %v", none, got, err)
		}
	}
	for _, bad := range []string{`{"decisions":1}`, `{"decisions":[{}]}`, `{"decisions":[`, `{"decisions":[{"x":1}]}`} {
		if _, err := FromBody([]byte(bad), nil); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(text(t, event(t, request(), answer(request(), decider{effect: sealed.EffectAllow}))))
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"no digest":     {string(ref().Digest), "7"},
		"other path":    {"sealed/authz/decision", "sealed/approval/decision"},
		"other bundle":  {`{"sealed":{`, `{"x":{`},
		"other time":    {`"timestamp":"2026`, `"timestamp":"2027`},
		"no id":         {"01JTSEALED0000000000000001", ""},
		"unknown field": {`"path":`, `"extra":1,"path":`},
		"named twice":   {`"path":`, `"path":"sealed/authz/decision","path":`},
		"unknown input": {`"phase":`, `"phrase":1,"phase":`},
		"no effect":     {`"effect":"allow"`, `"effect":"maybe"`},
		"cut":           {`}`, ``},
		"half a shadow": {`"path":`, `"shadow":true,"path":`},
		"other half":    {`"path":`, `"beside":"01JTSEALED0000000000000009","path":`},
		"its own":       {`"path":`, `"shadow":true,"beside":"01JTSEALED0000000000000001","path":`},
		"alone over":    {`{"sealed":{`, `{"overlay":{`},
		"two bundles":   {`{"sealed":{`, `{"overlay":{"revision":"` + string(ref().Digest) + `","sequence":1},"sealed":{`},
		"no truth":      {`"path":`, `"shadow":"true","beside":"01JTSEALED0000000000000009","path":`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if _, err := Parse([]byte(bad)); bad == good || !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadNamesTheLine(t *testing.T) {
	good := string(text(t, event(t, request(), answer(request(), decider{effect: sealed.EffectAllow}))))
	n := 0
	count := func(Event) error { n++; return nil }
	if err := Read(strings.NewReader(good+"\n\n"+good+"\n"), count); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if err := Read(strings.NewReader(good+"\n{}\n"), count); !errors.Is(err, sealed.ErrInvalid) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%v", err)
	}
	if err := Read(strings.NewReader(strings.Repeat("x", maxLine+1)), count); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("a long line: %v", err)
	}
}

func TestRedecideKeepsTheOrder(t *testing.T) {
	var events []Event
	for i := range 1500 {
		in := request()
		in.Profile.Version = i
		events = append(events, event(t, in, sealed.Decision{Effect: sealed.EffectAllow}))
	}
	deciders := func(e Event) ([]Decider, error) {
		if in, _ := e.Request(); in.Profile.Version == 700 {
			return nil, sealed.ErrNotFound
		}
		return []Decider{decider{effect: sealed.EffectAllow}, decider{effect: sealed.EffectDeny}}, nil
	}
	n := 0
	err := Redecide(context.Background(), events, deciders, func(v Verdict) {
		in, _ := v.Event.Request()
		if in.Profile.Version != n || (n == 700) != (v.Err != nil) || v.Err == nil && (len(v.Got) != 2 || v.Got[1].Effect != sealed.EffectDeny) {
			t.Errorf("%d: %+v", n, v)
		}
		n++
	})
	if err != nil || n != len(events) {
		t.Errorf("%d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Redecide(ctx, events, deciders, func(Verdict) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	in := request()
	e, err := New("01JTSEALED0000000000000001", ref(), in, sealed.Deny("x", "y"))
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"path":`), []byte(`"shadow":true,"beside":"01JTSEALED0000000000000009","path":`), 1))
	f.Add(bytes.Replace(good, []byte(`"bundles":{"sealed":`), []byte(`"beside":"01JTSEALED0000000000000009","bundles":{"overlay":`), 1))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"bundles":{"sealed":{"revision":"","sequence":-1}}}`))
	f.Add(fmt.Appendf(nil, `{"input":%s}`, strings.Repeat("[", 100)))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := Parse(data)
		if err != nil {
			if !errors.Is(err, sealed.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		again, err := Parse(text(t, e))
		if diff := cmp.Diff(e.Result, again.Result, cmpopts.EquateEmpty()); err != nil || diff != "" || e.Shadow != again.Shadow {
			t.Errorf("%v %s", err, diff)
		}
	})
}
