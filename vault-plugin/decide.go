package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/cascade"
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

// Phases of a decision, as policies see them.
const (
	phaseEnqueue = "enqueue"
	phaseIssue   = "issue"
	phaseRequest = "request"
)

// keyTerms are the terms on which a key may be used, after the cascade and after
// obligations: the weakest delivery, the bindings and the longest lifetime.
type keyTerms struct {
	name     sealed.KeyName
	key      *cascade.Key   // shared, never changed
	spec     sealed.KeySpec // key.Spec
	digest   sealed.Digest  // key.Digest()
	delivery sealed.Delivery
	bindings []sealed.Binding
	ttl      time.Duration // of one period of the lease
	maxTTL   time.Duration // of the grant, renewals included
}

func termsOf(k *cascade.Key, digest sealed.Digest) keyTerms {
	return keyTerms{
		name: k.Name, key: k, spec: k.Spec, digest: digest, delivery: k.Spec.Delivery, bindings: k.Spec.Bindings,
		ttl: k.Spec.TTL.Std(), maxTTL: k.Spec.MaxTTL.Std(),
	}
}

// under returns the terms narrowed by obligations. An obliged TTL bounds each
// period of the lease; how long renewals may go on is the key's max_ttl.
func (k keyTerms) under(o sealed.Obligations) keyTerms {
	if o.Delivery != "" && !k.delivery.Stronger(o.Delivery) {
		k.delivery = o.Delivery
	}
	if limit := time.Duration(o.TTL) * time.Second; limit > 0 {
		k.ttl = min(k.ttl, limit)
	}
	return k
}

// both returns the terms that the pinned and the current version of a key
// allow. Which profile defines it and where the value comes from may not differ
// at all; bindings are cut to what both allow.
func both(pinned, current keyTerms) (keyTerms, bool) {
	p, c := pinned.key.Origin, current.key.Origin
	if p.Level != c.Level || p.Name != c.Name || pinned.spec.Source != current.spec.Source || pinned.spec.Ref != current.spec.Ref {
		return keyTerms{}, false
	}
	k := current
	if !k.delivery.Stronger(pinned.delivery) {
		k.delivery = pinned.delivery
	}
	if !slices.EqualFunc(pinned.bindings, current.bindings, sameBinding) {
		k.bindings = cascade.Meet(pinned.bindings, current.bindings)
	}
	k.spec.AllowWeak = pinned.spec.AllowWeak && current.spec.AllowWeak
	if k.delivery == sealed.DeliveryProxy && len(k.bindings) == 0 {
		return keyTerms{}, false
	}
	k.ttl, k.maxTTL = min(k.ttl, pinned.ttl), min(k.maxTTL, pinned.maxTTL)
	return k, true
}

func sameBinding(a, b sealed.Binding) bool {
	return a.Host == b.Host && a.Header == b.Header && a.Format == b.Format &&
		slices.Equal(a.Methods, b.Methods) && slices.Equal(a.Paths, b.Paths)
}

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

// ask puts one key to one bundle.
func (b *backend) ask(ctx context.Context, s logical.Storage, bundle Bundle, phase string, r runRow, who sealed.Requester, k keyTerms, reason string) (ruling, error) {
	ds, err := b.askAll(ctx, s, bundle, phase, r, who, []keyTerms{k}, reason)
	if err != nil {
		return ruling{}, err
	}
	return ds[0], nil
}

// askAll puts keys to one bundle. Before the policy comes what the engine itself
// knows: a key that the cascade ended or that is not for this isolation, a source
// that is gone or that the level which defines the key may not name.
func (b *backend) askAll(ctx context.Context, s logical.Storage, bundle Bundle, phase string, r runRow, who sealed.Requester, keys []keyTerms, reason string) ([]ruling, error) {
	now := b.now().UTC()
	expired := !now.Before(bundle.Expires())
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
			out[i].Decision = sealed.Deny(sealed.ReasonExpired, "the policy bundle has expired")
		default:
			proven := k.key.Entitles(who.Groups, who.Claims)
			asked[proven] = append(asked[proven], question{at: i, use: useOf(k, who, kind)})
		}
	}
	for proven, qs := range asked {
		in := sharedInput(phase, now, r, who, proven, reason)
		for i, d := range decideAll(ctx, bundle, in, qs, now) {
			in.Profile, in.Key = qs[i].use.Profile, qs[i].use.Key
			decided, err := b.event(bundle, in, d)
			if err != nil {
				return nil, err
			}
			out[qs[i].at] = ruling{Decision: d, decided: decided}
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

// A verdict is a decision with the terms that it allows, and the bundle of
// now, which an approval has to name.
type verdict struct {
	sealed.Decision
	terms   keyTerms
	bundle  Bundle
	decided []decisionlog.Event // what was asked for it, for the log
}

func refuse(code, msg string) verdict { return verdict{Decision: sealed.Deny(code, msg)} }

// decideAgain decides a key of a claimed run. The pinned version of profile
// and bundle and the current ones must both say yes, and obligations
// intersect. Whatever is missing is a denial; only what can't be read is an
// error. look is the lookup of the run's requester, which goes on meanwhile.
func (b *backend) decideAgain(ctx context.Context, s logical.Storage, phase string, r runRow, name sealed.KeyName, reason string, look *lookup) (verdict, error) {
	mk, ok := r.key(name)
	if !ok {
		return refuse(sealed.ReasonNoSuchKey, "the run has no such key"), nil
	}
	if leftOut(mk) {
		return refuse(sealed.ReasonReplay, "the key is not as in the replayed run"), nil
	}
	pinned, err := b.effectivePinned(ctx, s, r.m.Profiles)
	if err != nil {
		return missing(err)
	}
	current, err := b.effectiveNow(ctx, s, r.profile(), r.m.Requester.EntityID)
	if err != nil {
		return missing(err)
	}
	if b.mem.off.current {
		current = pinned
	}
	before, ok := pinned.terms(name)
	if !ok || before.digest != mk.SpecDigest {
		return refuse(sealed.ReasonChanged, "the pinned profile is not the one of the manifest"), nil
	}
	after, ok := current.terms(name)
	if !ok {
		return refuse(sealed.ReasonChanged, "the profile no longer has the key"), nil
	}
	pinnedBundle, err := b.bundleByDigest(ctx, s, r.m.Bundle.Digest)
	if err != nil {
		return verdict{}, err
	}
	currentBundle, err := b.currentBundle(ctx, s)
	if err != nil {
		return verdict{}, err
	}
	d1, err := b.ask(ctx, s, pinnedBundle, phase, r, r.m.Requester, before, reason)
	who, whoErr := b.requesterNow(ctx, s, r, look)
	if whoErr != nil {
		return missing(whoErr)
	}
	if err != nil {
		return verdict{}, err
	}
	d, decided := d1.Decision, d1.decided
	if !sameQuestion(pinnedBundle, currentBundle, pinned, current) || !reflect.DeepEqual(who, r.m.Requester) {
		d2, err := b.ask(ctx, s, currentBundle, phase, r, who, after, reason)
		if err != nil {
			return verdict{}, err
		}
		d, decided = sealed.Combine(d1.Decision, d2.Decision), append(decided, d2.decided...)
	}
	terms, ok := both(before, after)
	if !ok {
		d = sealed.Combine(d, sealed.Deny(sealed.ReasonChanged, "the key was changed since the run was enqueued"))
	}
	if d.Obligations.Egress == "bound" && r.Claim != nil && r.Claim.Network != sealed.NetworkNone {
		d = sealed.Combine(d, sealed.Deny(sealed.ReasonChanged, "the policy now wants a run without further egress"))
	}
	return verdict{Decision: d, terms: terms.under(d.Obligations), bundle: currentBundle, decided: decided}, nil
}

// sameQuestion reports whether nothing was uploaded or changed since the
// enqueue: the current bundle would be asked what the pinned one was.
func sameQuestion(b1, b2 Bundle, e1, e2 *effective) bool {
	return b1.Ref() == b2.Ref() && slices.Equal(e1.Layers, e2.Layers)
}

// requesterNow is who enqueued the run, with the groups of now. An entity
// that is gone or disabled since is sealed.ErrDenied. Claims stay those of the
// enqueue: a later login of the same alias overwrites them in Vault.
//
// "Now" is at most lookupGood ago. That is for decisions about a run, which the
// requester is not calling; whoever calls or votes is looked up anew each time.
func (b *backend) requesterNow(ctx context.Context, s logical.Storage, r runRow, look *lookup) (sealed.Requester, error) {
	if !look.good(b.now()) {
		look = b.lookUp(ctx, s, r) // the run's lock was waited for
	}
	<-look.done
	now, err := look.who, look.err
	if err != nil {
		return sealed.Requester{}, fmt.Errorf("looking up the requester: %w", err)
	}
	who := r.m.Requester
	who.Groups = now.Groups
	return who, nil
}

// lookupGood is how long Vault's answer about the requester of a run is taken
// for that of now.
const lookupGood = time.Second

// A lookup asks who the requester of a run is, beside other work. Calls for
// runs of the same requester share it while it is good.
type lookup struct {
	at   time.Time
	done chan struct{} // closed when who and err are set
	who  sealed.Requester
	err  error
}

// good reports whether the lookup is young enough, and has not failed.
func (l *lookup) good(now time.Time) bool {
	select {
	case <-l.done:
		if l.err != nil {
			return false
		}
	default:
	}
	age := now.Sub(l.at)
	return age >= 0 && age < lookupGood
}

func (b *backend) lookUp(ctx context.Context, s logical.Storage, r runRow) *lookup {
	id := r.m.Requester.EntityID
	l, found := b.mem.look(id, b.now())
	if !found {
		ctx = context.WithoutCancel(ctx) // others may wait for it
		go func() {
			defer close(l.done)
			l.who, l.err = b.requester(ctx, &logical.Request{Storage: s, EntityID: id})
		}()
	}
	return l
}

// missing turns "not there" and "not allowed" into a denial.
func missing(err error) (verdict, error) {
	if unlessDenied(err) != nil {
		return verdict{}, err
	}
	return refuse(sealed.ReasonChanged, "profile or requester is no longer there"), nil
}

// unlessDenied returns err, or nil if err is a no rather than a failure.
func unlessDenied(err error) error {
	if errors.Is(err, sealed.ErrDenied) || errors.Is(err, sealed.ErrNotFound) {
		return nil
	}
	return err
}

// covered returns sealed.ErrRevoked if a standing revocation covers a subject.
func (b *backend) covered(ctx context.Context, s logical.Storage, sub sealed.Subject) error {
	rev, err := b.revoked(ctx, s, sub)
	if err != nil {
		return err
	}
	if rev != nil {
		return fmt.Errorf("revocation %s: %w", rev.ID, sealed.ErrRevoked)
	}
	return nil
}
