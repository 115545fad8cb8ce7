package opabundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"sealed.dev/sealed/internal/sealed"
)

const allowRule = `decision := {"effect": "allow", "reasons": [], "obligations": {}}` + "\n"

func TestDecideDefaultPolicy(t *testing.T) {
	b := open(t, buildDefault(t), patient)
	ctx := context.Background()
	got := b.Decide(ctx, sealed.QuestionAuthz, fullInput(), now)
	want := sealed.Decision{Effect: sealed.EffectAllow, Reasons: []sealed.Reason{}, Obligations: sealed.Obligations{TTL: 600, Delivery: sealed.DeliveryProxy, Egress: "bound"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("authz (-want +got):\n%s", diff)
	}
	got = b.Decide(ctx, sealed.QuestionApproval, fullApprovalInput(t), now)
	if got.Effect != sealed.EffectAllow {
		t.Errorf("approval: %+v", got)
	}
	in := fullInput()
	in.Key.Risk = sealed.RiskCritical
	got = b.Decide(ctx, sealed.QuestionAuthz, in, now)
	if got.Effect != sealed.EffectRequireApproval || got.Obligations.Approvals.Quorum != 2 || got.Reasons[0].Code != "risk_critical" {
		t.Errorf("critical: %+v", got)
	}
	if got := b.Decide(ctx, sealed.QuestionAuthz, sealed.Input{}, now); got.Effect != sealed.EffectDeny || len(got.Reasons) < 10 {
		t.Errorf("zero input: %+v", got)
	}
}

// Every way not to answer is a denial with its reason.
func TestDecideFailsClosed(t *testing.T) {
	tests := map[string]struct{ policy, want string }{
		"E01 undefined":          {`decision := {"effect": "allow", "reasons": [], "obligations": {}} if input.nothing` + "\n", sealed.ReasonUndefined},
		"E02 conflict":           {allowRule + `decision := {"effect": "deny", "reasons": [{"code": "a", "msg": "b"}], "obligations": {}}` + "\n", sealed.ReasonError},
		"E03 error inside not":   {`decision := {"effect": "allow", "reasons": [], "obligations": {}} if not forbidden` + "\nforbidden if to_number(input.tenant) > 1\n", sealed.ReasonError},
		"E04 loop":               {"n := \"0123456789abcdef\"\nc := split(n, \"\")\ndecision := {\"effect\": \"allow\", \"reasons\": [], \"obligations\": {\"ttl\": count([1 | c[a]; c[b]; c[d]; c[e]; c[f]; c[g]; c[h]; c[i]])}}\n", sealed.ReasonTimeout},
		"boolean":                {"decision := true\n", sealed.ReasonShape},
		"set":                    {"decision contains 1\n", sealed.ReasonShape},
		"unknown field":          {`decision := {"effect": "allow", "reasons": [], "obligations": {}, "allow": true}` + "\n", sealed.ReasonShape},
		"unknown obligation":     {`decision := {"effect": "allow", "reasons": [], "obligations": {"quorum": 1}}` + "\n", sealed.ReasonShape},
		"unknown effect":         {`decision := {"effect": "Allow", "reasons": [], "obligations": {}}` + "\n", sealed.ReasonShape},
		"no effect":              {`decision := {"reasons": [], "obligations": {}}` + "\n", sealed.ReasonShape},
		"no approvers":           {`decision := {"effect": "require_approval", "reasons": [{"code": "a", "msg": "b"}], "obligations": {}}` + "\n", sealed.ReasonShape},
		"fractional ttl":         {`decision := {"effect": "allow", "reasons": [], "obligations": {"ttl": 1.5}}` + "\n", sealed.ReasonShape},
		"unknown delivery":       {`decision := {"effect": "allow", "reasons": [], "obligations": {"delivery": "any"}}` + "\n", sealed.ReasonShape},
		"control: a plain allow": {allowRule, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			limits := patient
			if tc.want == sealed.ReasonTimeout {
				limits.Eval = 50 * time.Millisecond
			}
			b := openPolicies(t, tc.policy, limits)
			start := time.Now()
			d := b.Decide(context.Background(), sealed.QuestionAuthz, fullInput(), now)
			if tc.want == "" {
				if d.Effect != sealed.EffectAllow {
					t.Errorf("got %+v, want allow", d)
				}
				return
			}
			if d.Effect != sealed.EffectDeny || len(d.Reasons) != 1 || d.Reasons[0].Code != tc.want {
				t.Errorf("got %+v, want deny %s", d, tc.want)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestDecideArguments(t *testing.T) {
	b := openPolicies(t, allowRule, patient)
	ctx := context.Background()
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	bad := fullInput()
	bad.Requester.Name = "a\xff"
	huge := fullInput()
	huge.Reason = strings.Repeat("x", 10<<20)
	wide := fullInput()
	wide.Run.Tags = make([]sealed.InputTag, 1<<20)
	badApproval := fullApprovalInput(t)
	badApproval.Approval = json.RawMessage(`{"a":1} {"b":2}`)
	var none *Bundle
	tests := map[string]struct {
		got  sealed.Decision
		want string
	}{
		"no bundle":          {none.Decide(ctx, sealed.QuestionAuthz, fullInput(), now), sealed.ReasonNoBundle},
		"unknown question":   {b.Decide(ctx, "sealed.authz", fullInput(), now), sealed.ReasonUndefined},
		"at expiry":          {b.Decide(ctx, sealed.QuestionAuthz, fullInput(), b.Expires()), sealed.ReasonExpired},
		"after expiry":       {b.Decide(ctx, sealed.QuestionAuthz, fullInput(), now.AddDate(1, 0, 0)), sealed.ReasonExpired},
		"no time":            {b.Decide(ctx, sealed.QuestionAuthz, fullInput(), time.Time{}), sealed.ReasonError},
		"canceled":           {b.Decide(canceled, sealed.QuestionAuthz, fullInput(), now), sealed.ReasonTimeout},
		"nil authz":          {b.Decide(ctx, sealed.QuestionAuthz, (*sealed.Input)(nil), now), sealed.ReasonError},
		"nil approval":       {b.Decide(ctx, sealed.QuestionAuthz, (*sealed.ApprovalInput)(nil), now), sealed.ReasonError},
		"not UTF-8":          {b.Decide(ctx, sealed.QuestionAuthz, bad, now), sealed.ReasonError},
		"not encodable":      {b.Decide(ctx, sealed.QuestionAuthz, make(chan int), now), sealed.ReasonError},
		"E04 10 MB text":     {b.Decide(ctx, sealed.QuestionAuthz, huge, now), sealed.ReasonError},
		"E04 10 MB JSON":     {b.Decide(ctx, sealed.QuestionAuthz, map[string]string{"a": huge.Reason}, now), sealed.ReasonError},
		"E04 a million tags": {b.Decide(ctx, sealed.QuestionAuthz, wide, now), sealed.ReasonError},
		"two documents":      {b.Decide(ctx, sealed.QuestionApproval, badApproval, now), sealed.ReasonError},
	}
	for name, tc := range tests {
		if tc.got.Effect != sealed.EffectDeny || len(tc.got.Reasons) != 1 || tc.got.Reasons[0].Code != tc.want {
			t.Errorf("%s: got %+v, want deny %s", name, tc.got, tc.want)
		}
	}
	if d := b.Decide(ctx, sealed.QuestionAuthz, fullInput(), b.Expires().Add(-time.Second)); d.Effect != sealed.EffectAllow {
		t.Errorf("control: just before expiry: %+v", d)
	}
}

// Without StrictBuiltinErrors the E03 policy allows: the test above can fail.
func TestStrictBuiltinErrorsControl(t *testing.T) {
	src := "package sealed.authz\n\n" + `decision := "allow" if not forbidden` + "\nforbidden if to_number(input.tenant) > 1\n"
	for _, strict := range []bool{false, true} {
		rs, err := rego.New(rego.Module("a.rego", src), rego.Query("data.sealed.authz.decision"), rego.Input(map[string]any{"tenant": "acme"}), rego.StrictBuiltinErrors(strict)).Eval(context.Background())
		if allowed := err == nil && len(rs) == 1; allowed == strict {
			t.Errorf("strict %v: allowed %v, error %v", strict, allowed, err)
		}
	}
}

// The values built by hand equal those of the road through JSON.
func TestInputEqualsJSON(t *testing.T) {
	tagless := fullInput()
	tagless.Run.Tags, tagless.Key.Bindings, tagless.Requester.Claims = []sealed.InputTag{}, []sealed.Binding{}, map[string]string{}
	offset := fullInput()
	offset.Time = now.In(time.FixedZone("", 7200)).Truncate(time.Second)
	unicode := fullInput()
	unicode.Reason = "\u2028<&>\"\\\x00\U0001F511"
	unicode.Key.TTL, unicode.Key.MaxTTL = -1, 1<<62
	noVotes := fullApprovalInput(t)
	noVotes.Votes, noVotes.Approval = nil, nil
	noGroups := fullApprovalInput(t)
	noGroups.Votes[0].Groups = []string{}
	for i, in := range []any{fullInput(), *fullInput(), &sealed.Input{}, tagless, offset, unicode, fullApprovalInput(t), *fullApprovalInput(t), &sealed.ApprovalInput{}, noVotes, noGroups} {
		data, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		want, err := jsonValue(data, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		got, err := inputValue(in, allFields, 1<<20)
		if err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		if got.Compare(want) != 0 || got.Hash() != want.Hash() {
			t.Errorf("%d:\n got %v\nwant %v", i, got, want)
		}
	}
}

// authz.rego states the facts twice: in one linear rule, and each with its
// reason. Over random inputs both must agree, and the decision with them.
func TestLinearRuleAgreesWithDenials(t *testing.T) {
	modules, _ := policyModules(t, false)
	c := ast.NewCompiler().WithCapabilities(capabilities()).WithStrict(true)
	if c.Compile(modules); c.Failed() {
		t.Fatal(c.Errors)
	}
	ctx := context.Background()
	q, err := rego.New(rego.Compiler(c), rego.StrictBuiltinErrors(true), rego.Query(
		`clear := count([1 | data.sealed.authz._clear]); denials := count(data.sealed.authz._denials); effect := data.sealed.authz.decision.effect`)).PrepareForEval(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	for range 5000 {
		v, err := authzValue(randomInput(rnd), allFields, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		rs, err := q.Eval(ctx, rego.EvalParsedInput(v))
		if err != nil || len(rs) != 1 {
			t.Fatalf("%v, %v for %v", rs, err, v)
		}
		clear, none := rs[0].Bindings["clear"] == json.Number("1"), rs[0].Bindings["denials"] == json.Number("0")
		effect := rs[0].Bindings["effect"].(string)
		if clear != none || (effect == "deny") == clear {
			t.Fatalf("clear %v, no denials %v, effect %s for %v", clear, none, effect, v)
		}
		seen[effect]++
	}
	if len(seen) != 3 || seen["allow"] < 50 || seen["require_approval"] < 50 || seen["deny"] < 50 {
		t.Errorf("the random inputs do not reach every effect: %v", seen)
	}
	t.Logf("effects: %v", seen)
}

// randomInput starts from an allowed use and changes up to three facts.
func randomInput(rnd *rand.Rand) *sealed.Input {
	in := fullInput()
	pick := func(xs ...string) string { return xs[rnd.IntN(len(xs))] }
	lists := [][]string{nil, {}, {"*"}, {"release"}, {"production"}, {"claude-code"}, {"codex", "release"}}
	changes := []func(){
		func() { in.Phase = pick("enqueue", "issue", "request", "") },
		func() { in.Agent.SPIFFEID = pick("", "spiffe://a") },
		func() { in.Run.Mode = pick("jit", "bare", "identity") },
		func() { in.Run.Workflow = pick("", "release", "build") },
		func() { in.Run.WorkflowProven = !in.Run.WorkflowProven },
		func() {
			in.Run.Tags = [][]sealed.InputTag{nil, {}, {{Name: "production"}}, {{Name: "eu", Proven: true}}}[rnd.IntN(4)]
		},
		func() { in.Run.Isolation = pick("own_uid", "same_uid", "pod", "") },
		func() { in.Run.Assurance = pick("attested", "launcher", "") },
		func() { in.Run.Network = pick("none", "full", "allowlist") },
		func() { in.Profile.AllowedWorkflows = lists[rnd.IntN(len(lists))] },
		func() { in.Key.Agents = lists[rnd.IntN(len(lists))] },
		func() { in.Key.Workflows = lists[rnd.IntN(len(lists))] },
		func() { in.Key.Tags = lists[rnd.IntN(len(lists))] },
		func() { in.Key.Risk = pick("low", "high", "critical", "", "odd") },
		func() { in.Key.Risk = pick("high", "critical") },
		func() { in.Key.Delivery = sealed.Delivery(pick("proxy", "env")) },
		func() { in.Key.TTL = int64(rnd.IntN(3) - 1) },
		func() { in.Key.RequesterMatches = rnd.IntN(2) == 0 },
	}
	for range rnd.IntN(4) {
		changes[rnd.IntN(len(changes))]()
	}
	return in
}

// Same bundle, input and time: the same bytes, from any goroutine (E27).
func TestDecideIsDeterministic(t *testing.T) {
	b := open(t, buildDefault(t), patient)
	in := fullInput()
	in.Run.Mode, in.Key.Agents, in.Key.RequesterMatches = "bare", nil, false
	answer := func() []byte {
		out, err := json.Marshal(b.Decide(context.Background(), sealed.QuestionAuthz, in, now))
		if err != nil {
			t.Error(err)
		}
		return out
	}
	want := answer()
	if !bytes.Contains(want, []byte("mode_no_keys")) {
		t.Fatalf("got %s", want)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				if got := answer(); !bytes.Equal(got, want) {
					t.Errorf("got %s, want %s", got, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

// No evaluation leaves anything running.
func TestDecideLeavesNoGoroutine(t *testing.T) {
	b := open(t, buildDefault(t), Limits{})
	before := runtime.NumGoroutine()
	for range 100 {
		b.Decide(context.Background(), sealed.QuestionAuthz, fullInput(), now)
	}
	deadline := time.Now().Add(2 * time.Second)
	for runtime.NumGoroutine() > before+2 && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > before+2 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

// The usual decision stays cheap. It allocates about 170 times; the detector
// of races adds to that.
func TestDecideAllocations(t *testing.T) {
	b := open(t, buildDefault(t), patient)
	ctx, in := context.Background(), fullInput()
	if n := testing.AllocsPerRun(100, func() { b.Decide(ctx, sealed.QuestionAuthz, in, now) }); n > 300 {
		t.Errorf("%.0f allocations, want at most 300", n)
	}
	uses := slices.Repeat([]Use{{in.Profile, in.Key}}, 50)
	if n := testing.AllocsPerRun(100, func() { b.DecideAll(ctx, *in, uses, now) }); n > 800 {
		t.Errorf("50 keys of one kind: %.0f allocations, want at most 800", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	bundle := open(b, buildDefault(b), Limits{})
	high := fullInput()
	high.Key.Risk = sealed.RiskHigh
	denied := fullInput()
	denied.Run.Mode, denied.Key.Agents = "bare", nil
	for _, c := range []struct {
		name string
		in   *sealed.Input
		want sealed.Effect
	}{{"allow", fullInput(), sealed.EffectAllow}, {"require_approval", high, sealed.EffectRequireApproval}, {"deny", denied, sealed.EffectDeny}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := bundle.Decide(context.Background(), sealed.QuestionAuthz, c.in, now); d.Effect != c.want {
					b.Fatal(d)
				}
			}
		})
	}
	// The same bundle as plain OPA would be asked, from a map and into a map.
	b.Run("plain_opa_map", func(b *testing.B) {
		q := bundle.queries[sealed.QuestionAuthz]
		plain, err := rego.New(rego.Query("data."+sealed.QuestionAuthz), rego.Compiler(q.compiler), rego.Store(q.store), rego.StrictBuiltinErrors(true)).PrepareForEval(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		var in map[string]any
		if err := json.Unmarshal(mustJSON(b, fullInput()), &in); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if rs, err := plain.Eval(context.Background(), rego.EvalInput(in), rego.EvalTime(now)); err != nil || len(rs) != 1 {
				b.Fatal(rs, err)
			}
		}
	})
	for _, kinds := range []int{1, 5, 50} {
		b.Run(fmt.Sprintf("50_keys_%d_kinds", kinds), func(b *testing.B) {
			in := *fullInput()
			var uses []Use
			for i := range 50 {
				in.Key.Name, in.Key.TTL = sealed.KeyName(fmt.Sprintf("KEY_%d", i)), int64(600+i%kinds)
				uses = append(uses, Use{in.Profile, in.Key})
			}
			b.ReportAllocs()
			for b.Loop() {
				if ds := bundle.DecideAll(context.Background(), in, uses, now); ds[49].Effect != sealed.EffectAllow {
					b.Fatal(ds)
				}
			}
		})
	}
	b.Run("input_by_hand", func(b *testing.B) {
		in := fullInput()
		for b.Loop() {
			if _, err := inputValue(in, allFields, 1<<20); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("input_by_json", func(b *testing.B) {
		in := fullInput()
		for b.Loop() {
			data, _ := json.Marshal(in)
			if _, err := jsonValue(data, 1<<20); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// largeBundle is of nearly 1 MiB: the default policies and data that does not
// compress well.
func largeBundle(t testing.TB, k testKey) []byte {
	t.Helper()
	files, err := readArchive(buildDefault(t), Limits{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	rnd, data := rand.New(rand.NewPCG(15, 16)), map[string]string{}
	for range 19_000 {
		data[strconv.FormatUint(rnd.Uint64(), 36)] = fmt.Sprintf("%016x%016x%016x", rnd.Uint64(), rnd.Uint64(), rnd.Uint64())
	}
	return k.seal(t, append(files, file{"data.json", mustJSON(t, map[string]any{"sealed": map[string]any{"names": data}})})...)
}

func TestOpenLargeBundle(t *testing.T) {
	k := newKey(t)
	raw := largeBundle(t, k)
	if len(raw) < 700<<10 || len(raw) > 1<<20 {
		t.Errorf("the fixture has %d bytes", len(raw))
	}
	if _, err := Open(context.Background(), raw, k.options()); err != nil {
		t.Error(err)
	}
}

// The goal is 500 ms for a bundle of 1 MiB.
func BenchmarkOpen(b *testing.B) {
	k := newKey(b)
	for name, raw := range map[string][]byte{"default": k.sign(b, buildDefault(b)), "1MiB": largeBundle(b, k)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				if _, err := Open(context.Background(), raw, k.options()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The allow-list names only functions that this OPA has, and none that could
// tell two evaluations apart.
func TestCapabilities(t *testing.T) {
	caps := capabilities()
	if caps.AllowNet == nil || len(caps.AllowNet) != 0 {
		t.Errorf("AllowNet is %#v, want empty and not nil", caps.AllowNet)
	}
	have := map[string]bool{}
	for _, b := range caps.Builtins {
		have[b.Name] = true
		if b.Nondeterministic {
			t.Errorf("%s is not deterministic", b.Name)
		}
		if b.IsDeprecated() {
			t.Errorf("%s is deprecated", b.Name)
		}
	}
	for _, name := range allowed() {
		if !have[name] {
			t.Errorf("%s does not exist", name)
		}
	}
	if n := len(allowed()); n != len(slices.Compact(slices.Sorted(slices.Values(allowed())))) {
		t.Error("a name is listed twice")
	}
	for _, name := range []string{"http.send", "net.lookup_ip_addr", "opa.runtime", "rand.intn", "uuid.rfc4122", "time.now_ns", "trace", "print", "io.jwt.encode_sign", "json.match_schema", "numbers.range"} {
		if have[name] {
			t.Errorf("%s is allowed", name)
		}
	}
}
