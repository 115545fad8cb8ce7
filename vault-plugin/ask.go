package vaultplugin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// sharedInput is what the documents that sealed.authz.decision sees for the
// keys of a run have in common. proven: the requester may assert workflow and
// tags.
func sharedInput(phase string, now time.Time, r runRow, who sealed.Requester, proven bool, reason string) sealed.Input {
	m := r.m
	in := sealed.Input{
		Phase: phase, Time: now, Tenant: m.Tenant, Requester: who, Agent: m.Agent,
		Run: sealed.InputRun{
			ID: r.ID, Mode: m.Mode, Workflow: string(m.Workflow), WorkflowProven: m.Workflow != "" && proven,
			Tags: []sealed.InputTag{}, Backend: m.Sandbox.Backend, Isolation: m.Sandbox.Isolation,
			Assurance: sealed.AssuranceAttested, Network: m.Sandbox.Network, Interactive: m.Sandbox.Interactive,
		},
		Reason: sealed.CleanReason(reason),
	}
	for _, t := range m.Tags {
		in.Run.Tags = append(in.Run.Tags, sealed.InputTag{Name: t.Name, Proven: proven})
	}
	if r.Claim != nil {
		in.Agent.SPIFFEID, in.Run.Isolation, in.Run.Network = r.Claim.SPIFFEID, r.Claim.Isolation, r.Claim.Network
	}
	return in
}

// useOf is the rest: the key after the cascade, under the profile that defines it.
func useOf(k keyTerms, who sealed.Requester, kind string) Use {
	u := Use{
		Profile: sealed.InputProfile{
			Name: k.key.Origin.Name, Level: k.key.Origin.Level, Version: k.key.Origin.Version, Owner: k.key.Owner,
			Tags: list(k.key.ProfileTags), AllowedWorkflows: list(k.key.AllowedWorkflows),
		},
		Key: sealed.InputKey{
			Name: k.name, Source: k.spec.Source, SourceKind: kind, Agents: list(k.spec.Agents),
			Workflows: list(k.spec.Workflows), Tags: list(k.spec.Tags), Risk: k.spec.Risk,
			Delivery: k.spec.Delivery, Bindings: k.spec.Bindings,
			TTL: int64(k.spec.TTL.Std() / time.Second), MaxTTL: int64(k.spec.MaxTTL.Std() / time.Second),
			RequesterMatches: k.key.Admits(who.Groups, who.Claims),
		},
	}
	if u.Key.Bindings == nil {
		u.Key.Bindings = []sealed.Binding{}
	}
	return u
}

// list makes a nil slice an empty array: policies never see null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// ask puts one key to a bundle and its overlay.
func (b *backend) ask(ctx context.Context, s logical.Storage, by rules, phase string, r runRow, who sealed.Requester, k keyTerms, reason string) (ruling, error) {
	ds, err := b.askAll(ctx, s, by, phase, r, who, []keyTerms{k}, reason)
	if err != nil {
		return ruling{}, err
	}
	return ds[0], nil
}

// askAll puts keys to a bundle and its overlay. Before the policy comes what the
// engine itself knows: a key that the cascade ended or that is not for this
// isolation, a source that is gone or that the level which defines the key may not
// name.
func (b *backend) askAll(ctx context.Context, s logical.Storage, by rules, phase string, r runRow, who sealed.Requester, keys []keyTerms, reason string) ([]ruling, error) {
	now := b.now().UTC()
	late, expired := by.expired(now)
	out := make([]ruling, len(keys))
	asked := map[bool][]question{} // by whether workflow and tags are proven
	for i, k := range keys {
		kind, no, err := b.usable(ctx, s, r, k)
		switch {
		case err != nil:
			return nil, err
		case no != nil:
			out[i].Decision = *no
		case expired:
			out[i].Decision = late
		default:
			proven := k.key.Entitles(who.Groups, who.Claims)
			asked[proven] = append(asked[proven], question{at: i, use: useOf(k, who, kind)})
		}
	}
	trial := b.onTrial(ctx, s, now)
	for proven, qs := range asked {
		in := sharedInput(phase, now, r, who, proven, reason)
		for i, d := range decideAll(ctx, by.base, in, qs, now) {
			in.Profile, in.Key = qs[i].use.Profile, qs[i].use.Key
			decided, err := b.event(by.base, in, d)
			if err != nil {
				return nil, err
			}
			out[qs[i].at] = ruling{Decision: d, decided: decided}
		}
		if err := b.askOverlay(ctx, by.overlay, in, qs, now, out); err != nil {
			return nil, err
		}
		if trial != nil {
			b.askShadow(ctx, trial, in, qs, now, out)
		}
	}
	return out, nil
}

// A question is one of several that differ in profile and key.
type question struct {
	at  int // among the keys
	use Use
}

func decideAll(ctx context.Context, bundle Bundle, in sealed.Input, qs []question, now time.Time) []sealed.Decision {
	if all, ok := bundle.(BatchBundle); ok && len(qs) > 1 {
		uses := make([]Use, len(qs))
		for i, q := range qs {
			uses[i] = q.use
		}
		if ds := all.DecideAll(ctx, in, uses, now); len(ds) == len(uses) {
			return ds
		}
	}
	out := make([]sealed.Decision, len(qs))
	for i, q := range qs {
		in.Profile, in.Key = q.use.Profile, q.use.Key
		out[i] = bundle.Decide(ctx, sealed.QuestionAuthz, in, now)
	}
	return out
}

// usable says whether a key's source is static or dynamic, or why the key can't
// be used whatever a policy says. Levels are those of the source now: taking
// one away takes effect at the next decision.
func (b *backend) usable(ctx context.Context, s logical.Storage, r runRow, k keyTerms) (kind string, no *sealed.Decision, err error) {
	deny := func(d sealed.Decision) (string, *sealed.Decision, error) { return "", &d, nil }
	if k.key.Ended != "" {
		return deny(ended(k.key))
	}
	isolation := r.m.Sandbox.Isolation
	if r.Claim != nil {
		isolation = r.Claim.Isolation
	}
	if only := k.spec.Isolations; len(only) > 0 && !slices.Contains(only, isolation) {
		return deny(sealed.Deny(sealed.ReasonIsolation, "the key is not for a sandbox with isolation "+isolation))
	}
	cfg, _, err := b.source(ctx, s, k.spec.Source)
	switch {
	case errors.Is(err, sealed.ErrNotFound):
		return deny(sealed.Deny(sealed.ReasonChanged, "the source of the key does not exist"))
	case err != nil:
		return "", nil, err
	case !cfg.AllowsLevel(k.key.Origin.Level):
		return deny(sealed.Deny(sealed.ReasonSourceLevel, "a profile at level "+k.key.Origin.Level+" may not name the source of the key"))
	}
	return cfg.Kind(), nil, nil
}
