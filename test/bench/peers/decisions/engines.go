package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/rego"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/test/bench"
)

const (
	ours   = "Sealed"
	opaMap = "plain OPA, EvalInput(map)"
)

// engines are the default policy in its four forms.
type engines struct {
	bundle *opabundle.Bundle
	plain  rego.PreparedEvalQuery
	cedar  *cedar.PolicySet
}

func newEngines(ctx context.Context) (*engines, error) {
	p, err := bench.NewPolicy(ctx)
	if err != nil {
		return nil, err
	}
	e := &engines{}
	if e.bundle, err = opabundle.Open(ctx, p.Raw, opabundle.Options{Keys: map[string]string{bench.PolicyKeyID: p.PublicKey}}); err != nil {
		return nil, err
	}
	b, err := bundle.NewReader(bytes.NewReader(p.Raw)).WithSkipBundleVerification(true).Read()
	if err != nil {
		return nil, fmt.Errorf("reading bundle: %w", err)
	}
	e.plain, err = rego.New(rego.ParsedBundle("sealed", &b), rego.Query("data."+sealed.QuestionAuthz), rego.StrictBuiltinErrors(true)).PrepareForEval(ctx)
	if err != nil {
		return nil, fmt.Errorf("preparing query: %w", err)
	}
	e.cedar, err = newCedar()
	return e, err
}

func (e *engines) decidePlain(ctx context.Context, in map[string]any) sealed.Effect {
	rs, err := e.plain.Eval(ctx, rego.EvalInput(in))
	if err != nil || len(rs) != 1 {
		return ""
	}
	d, _ := rs[0].Expressions[0].Value.(map[string]any)
	effect, _ := d["effect"].(string)
	return sealed.Effect(effect)
}

func asMap(in *sealed.Input) (map[string]any, error) {
	data, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(data, &m)
}

// agree asks all about n random requests, and counts the answers.
func (e *engines) agree(ctx context.Context, n int) (map[sealed.Effect]int, error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := map[sealed.Effect]int{}
	for range n {
		in := bench.Question()
		vary(rnd, in)
		m, err := asMap(in)
		if err != nil {
			return nil, err
		}
		want := e.bundle.Decide(ctx, sealed.QuestionAuthz, in, in.Time).Effect
		uid, entity := cedarKey("k", in)
		others := map[string]sealed.Effect{
			"plain OPA": e.decidePlain(ctx, m), "plain Go": plainGo(in).Effect,
			"Cedar": decideCedar(e.cedar, types.EntityMap{uid: entity}, uid, in),
		}
		for name, got := range others {
			if got != want {
				return nil, fmt.Errorf("%s says %s, Sealed says %s: %+v", name, got, want, in)
			}
		}
		seen[want]++
	}
	return seen, nil
}

// vary changes a few facts.
func vary(rnd *rand.Rand, in *sealed.Input) {
	pick := func(to *string, any ...string) { *to = any[rnd.IntN(len(any))] }
	changes := []func(){
		func() { pick(&in.Phase, "enqueue", "issue", "request", "claim") },
		func() { in.Agent.SPIFFEID = "" },
		func() { in.Agent.Name = "codex" },
		func() { pick(&in.Run.Mode, "jit", "bare", "identity") },
		func() { pick(&in.Run.Workflow, "", "release", "build", "*") },
		func() { in.Run.WorkflowProven = false },
		func() {
			in.Run.Tags = [][]sealed.InputTag{{}, {{Name: "eu", Proven: true}}, {{Name: "production"}}}[rnd.IntN(3)]
		},
		func() { pick(&in.Run.Isolation, "own_uid", "same_uid", "pod", "vm") },
		func() { pick(&in.Run.Assurance, "attested", "launcher", "") },
		func() { pick(&in.Run.Network, "none", "full", "allowlist") },
		func() { in.Profile.AllowedWorkflows = [][]string{{}, {"*"}, {"build", "release"}}[rnd.IntN(3)] },
		func() { in.Key.Agents = [][]string{{}, {"codex", "claude-code"}}[rnd.IntN(2)] },
		func() { in.Key.Workflows = [][]string{{}, {"*"}, {"build"}}[rnd.IntN(3)] },
		func() { in.Key.Tags = [][]string{{}, {"eu", "production"}}[rnd.IntN(2)] },
		func() { pick(&in.Key.Risk, "low", "high", "critical", "none") },
		func() { pick(&in.Key.Risk, "high", "critical") },
		func() { in.Key.Delivery = sealed.DeliveryEnv },
		func() { in.Key.RequesterMatches = false },
		func() { in.Key.TTL, in.Key.MaxTTL = int64(rnd.IntN(3)-1), int64(rnd.IntN(5000)) },
	}
	for range rnd.IntN(5) {
		changes[rnd.IntN(len(changes))]()
	}
}
