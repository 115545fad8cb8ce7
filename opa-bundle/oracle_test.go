package opabundle

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

// An oracle for the default policy, written from its documentation (the titles
// of the rules and the list of codes), not from the rules: shared mistakes are
// less likely, and the fast rules have nothing here that they could agree with
// by construction.

func oracle(in *sealed.Input) sealed.Decision {
	var codes []string
	deny := func(when bool, code string) {
		if when && !slices.Contains(codes, code) {
			codes = append(codes, code)
		}
	}
	low, asks := in.Key.Risk == "low", in.Key.Risk == "high" || in.Key.Risk == "critical"
	lists := func(workflows []string) bool {
		return slices.Contains(workflows, in.Run.Workflow) || slices.Contains(workflows, "*")
	}
	unproven, tagged := false, len(in.Key.Tags) == 0
	for _, t := range in.Run.Tags {
		unproven = unproven || !t.Proven
		tagged = tagged || t.Proven && slices.Contains(in.Key.Tags, t.Name)
	}
	attested := in.Run.Assurance == "attested" || in.Phase == "enqueue" && in.Run.Assurance == ""
	identified := in.Phase == "enqueue" || (in.Phase == "issue" || in.Phase == "request") && in.Agent.SPIFFEID != ""
	ownUID := slices.Contains([]string{"own_uid", "container", "pod", "lambda"}, in.Run.Isolation)
	givesValue := in.Key.Delivery != "proxy"

	deny(!slices.Contains(in.Key.Agents, string(in.Agent.Name)), "agent_not_allowed")
	deny(!lists(in.Profile.AllowedWorkflows), "workflow_not_allowed")
	deny(len(in.Key.Workflows) > 0 && !lists(in.Key.Workflows), "workflow_not_allowed")
	deny(in.Run.Workflow != "" && !in.Run.WorkflowProven, "workflow_unproven")
	deny(!tagged, "tag_not_allowed")
	deny(unproven, "tag_unproven")
	deny(!in.Key.RequesterMatches, "requester_not_allowed")
	deny(in.Run.Mode != "jit", "mode_no_keys")
	deny(givesValue && !low, "value_delivery_high_risk")
	deny(!ownUID && !low, "same_uid_high_risk")
	deny(!attested && !low, "launcher_assurance")
	deny(givesValue && in.Run.Network != "none", "env_opaque_tunnel")
	deny(!identified, "identity_missing")
	deny(!low && !asks, "risk_unknown")
	deny(in.Key.TTL <= 0 || in.Key.MaxTTL <= 0, "ttl_invalid")

	d := sealed.Decision{Effect: sealed.EffectDeny}
	egress := map[bool]string{true: "bound"}[in.Run.Network == "none"]
	ttl := min(in.Key.TTL, in.Key.MaxTTL)
	switch {
	case len(codes) > 0:
		slices.Sort(codes)
	case low:
		d.Effect = sealed.EffectAllow
		d.Obligations = sealed.Obligations{TTL: min(ttl, 3600), Delivery: in.Key.Delivery, Egress: egress}
	default:
		d.Effect = sealed.EffectRequireApproval
		codes = []string{"risk_" + in.Key.Risk}
		persons := map[string]int{"high": 1, "critical": 2}[in.Key.Risk]
		d.Obligations = sealed.Obligations{TTL: min(ttl, 900), Delivery: "proxy", Egress: egress,
			Approvals: sealed.ApprovalObligations{Quorum: persons, Groups: []string{"sealed-approvers"}, TTL: 900}}
	}
	for _, c := range codes {
		d.Reasons = append(d.Reasons, sealed.Reason{Code: c})
	}
	return d
}

// tuple draws every fact by itself, each usually one that helps, so that all
// combinations come up and yet many are allowed.
func tuple(rnd *rand.Rand) *sealed.Input {
	in := fullInput()
	odd := rnd.IntN(8) // in how many of 32 cases a fact is any
	rare := func() bool { return rnd.IntN(32) < odd }
	str := func(to *string, usual []string, any ...string) {
		*to = usual[rnd.IntN(len(usual))]
		if rare() {
			*to = any[rnd.IntN(len(any))]
		}
	}
	lists := func(to *[]string, usual [][]string) {
		*to = usual[rnd.IntN(len(usual))]
		if rare() {
			*to = [][]string{nil, {}, {"*"}, {"other"}, {"other", "release", "release"}, {"", "production"}, {"claude-code", "eu"}, {"*", "release"}}[rnd.IntN(8)]
		}
	}
	str(&in.Phase, []string{"enqueue", "issue", "request"}, "", "Issue", "claim")
	str(&in.Agent.SPIFFEID, []string{"spiffe://a/b"}, "")
	str(&in.Run.Mode, []string{"jit"}, "bare", "sandboxed", "identity", "", "JIT")
	str(&in.Run.Workflow, []string{"release"}, "", "build", "*")
	str(&in.Run.Isolation, []string{"own_uid", "pod", "container", "lambda"}, "same_uid", "", "vm")
	str(&in.Run.Assurance, []string{"attested"}, "launcher", "", "none")
	str(&in.Run.Network, []string{"none", "full"}, "allowlist", "", "None")
	str(&in.Key.Risk, []string{"low", "high", "critical"}, "", "none", "Low")
	str((*string)(&in.Key.Delivery), []string{"proxy"}, "env")
	if rare() {
		in.Agent.Name = []sealed.Name{"codex", "", "*"}[rnd.IntN(3)]
	}
	in.Run.WorkflowProven, in.Key.RequesterMatches = !rare(), !rare()
	if rare() {
		in.Run.Tags = [][]sealed.InputTag{nil, {}, {{Name: "production"}}, {{Name: "eu", Proven: true}}, {{Name: "production", Proven: true}, {Name: "x"}}}[rnd.IntN(5)]
	}
	lists(&in.Profile.AllowedWorkflows, [][]string{{"release"}, {"*"}, {"build", "release"}})
	lists(&in.Key.Agents, [][]string{{"claude-code"}, {"codex", "claude-code"}})
	lists(&in.Key.Workflows, [][]string{{}, {"release"}, {"*"}})
	lists(&in.Key.Tags, [][]string{{}, {"production"}, {"eu", "x"}})
	in.Key.TTL = []int64{1, 600, 900, 901, 3600, 7200}[rnd.IntN(6)]
	in.Key.MaxTTL = []int64{1, 600, 899, 3600, 3601, 86400}[rnd.IntN(6)]
	if rare() {
		in.Key.TTL = int64(rnd.IntN(3) - 1)
	}
	if rare() {
		in.Key.MaxTTL = int64(rnd.IntN(3) - 1)
	}
	return in
}

// oracleTuples is how many tuples to compare; SEALED_TUPLES overrides it.
func oracleTuples(t *testing.T) int {
	text := os.Getenv("SEALED_TUPLES")
	if text == "" {
		return 5_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("SEALED_TUPLES: %v", err)
	}
	return n
}

// plain drops the sentences, which the oracle does not know.
func plain(d sealed.Decision) sealed.Decision {
	reasons := d.Reasons
	d.Reasons = nil
	for _, r := range reasons {
		d.Reasons = append(d.Reasons, sealed.Reason{Code: r.Code})
	}
	return d
}

// The default policy says what its documentation says: effect, reasons and
// obligations, on every tuple; asked alone and with all keys at once.
func TestDefaultPolicyAgreesWithOracle(t *testing.T) {
	b := open(t, buildDefault(t), patient)
	ctx := context.Background()
	rnd := rand.New(rand.NewPCG(9, 10))
	effects, codes := map[sealed.Effect]int{}, map[string]int{}
	n := oracleTuples(t)
	for i := range n {
		in := tuple(rnd)
		want := oracle(in)
		if got := plain(b.Decide(ctx, sealed.QuestionAuthz, in, now)); !cmp.Equal(want, got) {
			t.Fatalf("tuple %d, %+v (-oracle +policy):\n%s", i, in, cmp.Diff(want, got))
		}
		effects[want.Effect]++
		for _, r := range want.Reasons {
			codes[r.Code]++
		}
		if i%64 != 0 {
			continue
		}
		var uses []Use
		var each []sealed.Decision
		for range 8 {
			other := tuple(rnd)
			uses = append(uses, Use{other.Profile, other.Key})
			in.Profile, in.Key = other.Profile, other.Key
			each = append(each, oracle(in))
		}
		for j, got := range b.DecideAll(ctx, *in, uses, now) {
			if !cmp.Equal(each[j], plain(got)) {
				t.Fatalf("tuple %d, use %d, %+v (-oracle +policy):\n%s", i, j, in, cmp.Diff(each[j], plain(got)))
			}
		}
	}
	t.Logf("%d tuples: %v, %v", n, effects, codes)
	if len(effects) != 3 || min(effects["allow"], effects["require_approval"], effects["deny"]) < n/20 || len(codes) != 16 {
		t.Errorf("the tuples do not reach everything: %v, %d codes", effects, len(codes))
	}
}

// The comparison can fail: of each fast rule, drop any line, and the oracle
// finds a tuple that the policy decides otherwise. Fast are the first two
// branches of the decision and both rules of _usual.
func TestOracleFindsAForgottenFact(t *testing.T) {
	_, sources := policyModules(t, false)
	const file = "sealed/authz/authz.rego"
	lines := strings.Split(string(sources[file]), "\n")
	// Only a tuple that one fact alone denies can tell, or that no fact denies
	// and a person is asked about.
	var near []*sealed.Input
	for rnd := rand.New(rand.NewPCG(11, 12)); len(near) < 4000; {
		in := tuple(rnd)
		if d := oracle(in); len(d.Reasons) == 1 {
			near = append(near, in)
		}
	}
	dropped, branches, fast := 0, 0, false
	for i, line := range lines {
		switch {
		case line == "} if {":
			branches++
			fast = branches <= 2
		case line == "_usual if {":
			fast = true
		case strings.HasPrefix(line, "}"):
			fast = false
		}
		if !fast || !strings.HasPrefix(line, "\t") || strings.Contains(line, ":=") { // without what is assigned it does not compile
			continue
		}
		dropped++
		tree := fstest.MapFS{}
		for name, src := range sources {
			tree[name] = &fstest.MapFile{Data: src}
		}
		without := slices.Delete(slices.Clone(lines), i, i+1)
		tree[file] = &fstest.MapFile{Data: []byte(strings.Join(without, "\n"))}
		raw, err := Build(context.Background(), tree, testManifest())
		if err != nil {
			t.Fatal(err)
		}
		b := open(t, raw, patient)
		if !slices.ContainsFunc(near, func(in *sealed.Input) bool {
			return !cmp.Equal(oracle(in), plain(b.Decide(context.Background(), sealed.QuestionAuthz, in, now)))
		}) {
			t.Errorf("line %d can go unnoticed: %s", i+1, line)
		}
	}
	if dropped < 26 {
		t.Errorf("dropped %d lines, want those of all fast rules", dropped)
	}
}
