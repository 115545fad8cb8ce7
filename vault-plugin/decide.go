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

// A verdict is a decision with the terms that it allows, and the bundle and
// overlay of now, which an approval has to name.
type verdict struct {
	sealed.Decision
	terms   keyTerms
	bundle  rules
	decided []decisionlog.Event // what was asked for it, for the log
}

func refuse(code, msg string) verdict { return verdict{Decision: sealed.Deny(code, msg)} }

// decideAgain decides a key of a claimed run. The pinned version of profile,
// bundle and overlay and the current ones must both say yes, and obligations
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
	then, err := b.pinnedRules(ctx, s, r.m)
	if err != nil {
		return verdict{}, err
	}
	now, err := b.currentRules(ctx, s)
	if err != nil {
		return verdict{}, err
	}
	d1, err := b.ask(ctx, s, then, phase, r, r.m.Requester, before, reason)
	who, whoErr := b.requesterNow(ctx, s, r, look)
	if whoErr != nil {
		return missing(whoErr)
	}
	if err != nil {
		return verdict{}, err
	}
	d, decided := d1.Decision, d1.decided
	if !sameQuestion(then, now, pinned, current) || !reflect.DeepEqual(who, r.m.Requester) {
		d2, err := b.ask(ctx, s, now, phase, r, who, after, reason)
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
	return verdict{Decision: d, terms: terms.under(d.Obligations), bundle: now, decided: decided}, nil
}

// sameQuestion reports whether nothing was uploaded or changed since the
// enqueue: the current bundle and overlay would be asked what the pinned ones were.
func sameQuestion(then, now rules, e1, e2 *effective) bool {
	return then.pins() == now.pins() && slices.Equal(e1.Layers, e2.Layers)
}

// requesterNow is who enqueued the run, with the groups of now. An entity
// that is gone or disabled since is sealed.ErrDenied. Claims stay those of the
// enqueue: a later login of the same alias overwrites them in Vault.
//
// "Now" is at most lookupGood ago. That is for decisions about a run, which the
// requester is not calling; a person who calls or votes is looked up anew each time.
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

// lookupGood is how long Vault's answer about the requester or the agent of a run
// is taken for that of now.
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
