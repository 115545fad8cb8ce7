package bench

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

// PolicyKeyID names the key that signs a Policy.
const PolicyKeyID = "bench"

// A Policy is the default policy, signed by a key that is forgotten.
type Policy struct {
	Raw       []byte
	PublicKey string // PEM
}

// NewPolicy builds and signs the default policy.
func NewPolicy(ctx context.Context) (Policy, error) {
	private, public, err := opabundle.GenerateKey()
	if err != nil {
		return Policy{}, err
	}
	block, _ := pem.Decode(private)
	if block == nil {
		return Policy{}, errors.New("reading policy key: no PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Policy{}, errors.New("reading policy key: malformed")
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return Policy{}, errors.New("reading policy key: can't sign")
	}
	raw, err := opabundle.Build(ctx, rego.FS(), opabundle.Manifest{Revision: "bench", Sequence: 1, Expires: time.Now().Add(24 * time.Hour)})
	if err != nil {
		return Policy{}, err
	}
	raw, err = opabundle.Sign(ctx, raw, signer, PolicyKeyID)
	return Policy{Raw: raw, PublicKey: string(public)}, err
}

// A Decider asks the default policy one typical question.
type Decider struct {
	bundle *opabundle.Bundle
	input  *sealed.Input
}

// NewDecider opens the default policy. Effect is what it will answer: allow,
// require_approval or deny.
func NewDecider(ctx context.Context, effect sealed.Effect) (*Decider, error) {
	p, err := NewPolicy(ctx)
	if err != nil {
		return nil, err
	}
	bundle, err := opabundle.Open(ctx, p.Raw, opabundle.Options{Keys: map[string]string{PolicyKeyID: p.PublicKey}})
	if err != nil {
		return nil, err
	}
	d := &Decider{bundle: bundle, input: Question()}
	switch effect {
	case sealed.EffectRequireApproval:
		d.input.Key.Risk = sealed.RiskHigh
	case sealed.EffectDeny:
		d.input.Key.Agents, d.input.Run.Mode = []string{}, sealed.ModeIdentity
	}
	if got := bundle.Decide(ctx, sealed.QuestionAuthz, d.input, d.input.Time); got.Effect != effect {
		return nil, fmt.Errorf("deciding: got %s, want %s", got.Effect, effect)
	}
	return d, nil
}

// Decide decides once.
func (d *Decider) Decide(ctx context.Context) sealed.Decision {
	return d.bundle.Decide(ctx, sealed.QuestionAuthz, d.input, d.input.Time)
}

// DecideAll decides a run's n keys, those of Uses, at once.
func (d *Decider) DecideAll(ctx context.Context, n int) []sealed.Decision {
	return d.bundle.DecideAll(ctx, *d.input, Uses(n), d.input.Time)
}

// Uses are n keys of a run. Each has a name and a path of its own; by lifetime
// and risk, which is all that the policy can tell, they are of eight kinds.
func Uses(n int) []opabundle.Use {
	in := Question()
	uses := make([]opabundle.Use, n)
	for i := range uses {
		k := in.Key
		k.Name = sealed.KeyName(fmt.Sprintf("KEY_%d", i))
		k.Bindings = []sealed.Binding{{Host: "api.github.com", Methods: []string{"GET"}, Paths: []string{"/repos/acme/" + string(k.Name)}, Header: "Authorization", Format: "Bearer {}"}}
		k.TTL = int64(600 + 60*(i%4))
		if i%5 == 0 {
			k.Risk = sealed.RiskHigh
		}
		uses[i] = opabundle.Use{Profile: in.Profile, Key: k}
	}
	return uses
}

// Question is a request that the default policy allows. It has every field set
// that a real call of the engine sets.
func Question() *sealed.Input {
	return &sealed.Input{
		Phase: "issue", Time: time.Now().UTC(), Tenant: "acme", Reason: "to open the pull request",
		Requester: sealed.Requester{EntityID: "e-1", Name: "ann", Person: "ann@acme.test", Groups: []string{"release-eng"}, Claims: map[string]string{"repository": "acme/api"}},
		Agent:     sealed.InputAgent{Name: "claude-code", DefinitionDigest: sealed.DigestOf(sealed.DomainAgent, nil), SPIFFEID: "spiffe://acme.test/sealed/tenant/acme/agent/claude-code"},
		Run: sealed.InputRun{
			ID: "01JTSEALED0000000000000000", Mode: sealed.ModeJIT, Workflow: "release", WorkflowProven: true,
			Tags: []sealed.InputTag{{Name: "production", Proven: true}}, Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID,
			Assurance: sealed.AssuranceAttested, Network: sealed.NetworkNone,
		},
		Profile: sealed.InputProfile{Name: "team/release", Level: sealed.LevelWorkflow, Version: 7, Owner: "release-eng", Tags: []string{"production"}, AllowedWorkflows: []string{"release"}},
		Key: sealed.InputKey{
			Name: "GITHUB_TOKEN", Source: "vault-kv", SourceKind: "static", Agents: []string{"claude-code"}, Workflows: []string{"release"}, Tags: []string{"production"},
			Risk: sealed.RiskLow, Delivery: sealed.DeliveryProxy, TTL: 600, MaxTTL: 3600, RequesterMatches: true,
			Bindings: []sealed.Binding{{Host: "api.github.com", Methods: []string{"GET", "POST"}, Paths: []string{"/repos/acme/api/pulls/**"}, Header: "Authorization", Format: "Bearer {}"}},
		},
	}
}
