package sandboxinit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sandboxinit/proxy"
	"sealed.dev/sealed/internal/sealed"
)

// A keyring holds the run's live grants and puts them to use: it arms the
// redactor, then hands proxied values to the proxy. It is safe for concurrent
// use.
type keyring struct {
	session *session
	set     *redact.Set
	proxy   *proxy.Proxy
	contact *contact
	ctx     context.Context // ends with the run; lease renewals live in it

	mu           sync.Mutex
	placeholders map[sealed.KeyName]string
	grants       map[sealed.GrantID]*grant
	history      []grantNote
}

// A grantNote is what the record says about a grant; it outlives the value.
type grantNote struct {
	id       sealed.GrantID
	key      sealed.KeyName
	delivery sealed.Delivery
	issued   time.Time
	ended    time.Time // zero while live
	outcome  string    // used_until_end, revoked
}

func newKeyring(ctx context.Context, s *session, set *redact.Set) (*keyring, error) {
	k := &keyring{session: s, set: set, ctx: ctx, placeholders: map[sealed.KeyName]string{}, grants: map[sealed.GrantID]*grant{}}
	for _, key := range s.answer.Keys {
		if key.Effect == sealed.EffectDeny || key.Delivery.GivesValue() {
			continue
		}
		p, err := newPlaceholder()
		if err != nil {
			return nil, err
		}
		k.placeholders[key.Name] = p
	}
	return k, nil
}

// find returns what the claim said about a key.
func (k *keyring) find(name sealed.KeyName) (sealed.ClaimKey, bool) {
	for _, key := range k.session.answer.Keys {
		if key.Name == name {
			return key, true
		}
	}
	return sealed.ClaimKey{}, false
}

// issueAllowed fetches every key that needs no person, side by side. One that
// fails is reported by name and left out; the run goes on without it, unless
// it was to be in the environment, where its absence can't be mended later.
func (k *keyring) issueAllowed(ctx context.Context) (missing []error, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, key := range k.session.answer.Keys {
		if key.Effect != sealed.EffectAllow {
			continue
		}
		wg.Go(func() {
			if e := k.issue(ctx, key); e != nil {
				mu.Lock()
				defer mu.Unlock()
				if key.Delivery.GivesValue() {
					err = errors.Join(err, e)
					return
				}
				missing = append(missing, e)
			}
		})
	}
	wg.Wait()
	return missing, err
}

// issue fetches one key and puts it to use. The redactor is armed before the
// value can be used anywhere.
func (k *keyring) issue(ctx context.Context, key sealed.ClaimKey) error {
	g, err := k.session.issue(ctx, key.Name, key.Delivery)
	if err != nil {
		return err
	}
	err = g.value.Reveal(func(b []byte) error {
		return k.set.Add(string(g.key), b, redact.Options{AllowWeak: g.weak})
	})
	if err != nil {
		g.value.Destroy()
		return fmt.Errorf("arming the redactor for %s: %w", g.key, err)
	}
	k.mu.Lock()
	k.grants[g.id] = g
	k.history = append(k.history, grantNote{id: g.id, key: g.key, delivery: g.delivery, issued: time.Now().UTC()})
	placeholder := k.placeholders[g.key]
	k.mu.Unlock()
	if !g.delivery.GivesValue() {
		for i, rule := range g.bindings {
			id := string(g.key)
			if i > 0 {
				id = fmt.Sprintf("%s.%d", g.key, i)
			}
			if err := k.proxy.Set(proxy.Binding{ID: id, Key: g.key, Rule: rule, Placeholder: placeholder, Value: g.value}); err != nil {
				k.drop([]sealed.GrantID{g.id}) // not half bound
				return fmt.Errorf("binding %s: %w", g.key, err)
			}
		}
	}
	go k.contact.keepLease(k.ctx, g)
	return nil
}

// environ returns NAME=value for the keys of env delivery. The strings can't
// be wiped: with env the agent holds the value anyway.
func (k *keyring) environ() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, g := range k.grants {
		if g.delivery == sealed.DeliveryEnv {
			_ = g.value.Reveal(func(b []byte) error {
				out = append(out, string(g.key)+"="+string(b))
				return nil
			})
		}
	}
	return out
}

// drop stops the use of revoked grants at once: in-flight requests are cut,
// the value is destroyed. The redactor stays armed, for the value may still be
// on its way out.
func (k *keyring) drop(ids []sealed.GrantID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range ids {
		g, ok := k.grants[id]
		if !ok {
			continue
		}
		delete(k.grants, id)
		k.proxy.Remove(g.key)
		g.value.Destroy()
		for i := range k.history {
			if k.history[i].id == id {
				k.history[i].ended, k.history[i].outcome = time.Now().UTC(), "revoked"
			}
		}
	}
}

// close destroys every value and returns the history of grants.
func (k *keyring) close() []grantNote {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now().UTC()
	for id, g := range k.grants {
		k.proxy.Remove(g.key)
		g.value.Destroy()
		delete(k.grants, id)
	}
	for i := range k.history {
		if k.history[i].ended.IsZero() {
			k.history[i].ended, k.history[i].outcome = now, "ended_with_run"
		}
	}
	return k.history
}

// live reports whether a key has a usable grant.
func (k *keyring) live(name sealed.KeyName) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, g := range k.grants {
		if g.key == name {
			return true
		}
	}
	return false
}
