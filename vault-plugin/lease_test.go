package vaultplugin

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// TestLeaseTTL: the least of source, key, obligation and mount bounds one period
// of a lease; key's max_ttl, source and mount bound all of them together.
func TestLeaseTTL(t *testing.T) {
	const m = time.Minute
	for name, c := range map[string]struct {
		key, keyMax, source, obliged, mount time.Duration // 0: sets no limit; of the source: an hour
		first, longest                      time.Duration
		after, renewed                      time.Duration // renewed so long after the issue; 0: refused
	}{
		"key alone":               {key: 15 * m, keyMax: 60 * m, first: 15 * m, longest: 60 * m, after: 10 * m, renewed: 15 * m},
		"near the end":            {key: 15 * m, keyMax: 60 * m, first: 15 * m, longest: 60 * m, after: 50 * m, renewed: 10 * m},
		"a second before the end": {key: 15 * m, keyMax: 60 * m, first: 15 * m, longest: 60 * m, after: 60*m - time.Second, renewed: time.Second},
		"after that":              {key: 15 * m, keyMax: 60 * m, first: 15 * m, longest: 60 * m, after: 60*m - time.Second/2},
		"at the end":              {key: 15 * m, keyMax: 60 * m, first: 15 * m, longest: 60 * m, after: 60 * m},
		"obliged":                 {key: 15 * m, keyMax: 60 * m, obliged: 2 * m, first: 2 * m, longest: 60 * m, after: 10 * m, renewed: 2 * m},
		"obliged to more":         {key: 15 * m, keyMax: 60 * m, obliged: 90 * m, first: 15 * m, longest: 60 * m, after: 10 * m, renewed: 15 * m},
		"source":                  {key: 15 * m, keyMax: 60 * m, source: 5 * m, first: 5 * m, longest: 5 * m, after: 3 * m, renewed: 2 * m},
		"source has more":         {key: 15 * m, keyMax: 60 * m, source: 99 * m, first: 15 * m, longest: 60 * m, after: 10 * m, renewed: 15 * m},
		"source below max":        {key: 15 * m, keyMax: 60 * m, source: 30 * m, first: 15 * m, longest: 30 * m, after: 20 * m, renewed: 10 * m},
		"mount":                   {key: 15 * m, keyMax: 60 * m, mount: 20 * m, first: 15 * m, longest: 20 * m, after: 10 * m, renewed: 10 * m},
		"mount below ttl":         {key: 15 * m, keyMax: 60 * m, mount: 4 * m, first: 4 * m, longest: 4 * m, after: 3 * m, renewed: m},
		"all of them":             {key: 15 * m, keyMax: 60 * m, source: 30 * m, obliged: 10 * m, mount: 20 * m, first: 10 * m, longest: 20 * m, after: 15 * m, renewed: 5 * m},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policies["bundle 2"] = func(q string, in any) sealed.Decision {
				d := defaultPolicy(q, in)
				d.Obligations.TTL = int64(c.obliged / time.Second)
				return d
			}
			w.policy("bundle 2")
			p := w.profile()
			p.Version = 1
			k := p.Keys["DYN"]
			k.TTL, k.MaxTTL = sealed.Duration(c.key), sealed.Duration(c.keyMax)
			p.Keys["DYN"] = k
			w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(p)})
			w.dyn.ttl = c.source
			if c.mount > 0 {
				w.sys.MaxLeaseTTLVal = c.mount
				w.open()
			}
			g := w.claimed(idem(1))
			a, resp, err := g.creds("DYN", idem(2))
			if err != nil {
				t.Fatal(err)
			}
			if got := time.Duration(a.TTL) * time.Second; got != c.first || resp.Secret.TTL != c.first || resp.Secret.MaxTTL != c.longest {
				t.Errorf("first %v, lease %v of at most %v, want %v of %v", got, resp.Secret.TTL, resp.Secret.MaxTTL, c.first, c.longest)
			}
			if err := g.confirm(a); err != nil {
				t.Fatal(err)
			}
			w.clock.add(c.after)
			renewed, err := w.lease(logical.RenewOperation, resp)
			if c.renewed == 0 {
				wantCode(t, err, 403)
				return
			}
			if err != nil || renewed.Secret.TTL != c.renewed || renewed.Secret.MaxTTL > c.longest-c.after || len(renewed.Data) != 0 {
				t.Errorf("renewed %+v %v, want %v", renewed, err, c.renewed)
			}
		})
	}
}

// TestLeaseByState: what a renewal and a revocation of a lease do depends on
// grant and run alone; revoking always succeeds, twice too, and never calls the
// source itself.
func TestLeaseByState(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		comes  func(*world, *guest, sealed.CredsAnswer)
		renews bool
	}{
		"confirmed":         {func(*world, *guest, sealed.CredsAnswer) {}, true},
		"soft, another key": {func(w *world, _ *guest, _ sealed.CredsAnswer) { w.revoke(sealed.RevokeKey, "LOW", false) }, true},
		"soft":              {func(w *world, _ *guest, _ sealed.CredsAnswer) { w.revoke(sealed.RevokeSource, "dyn", false) }, false},
		"hard":              {func(w *world, _ *guest, _ sealed.CredsAnswer) { w.revoke(sealed.RevokeSource, "dyn", true) }, false},
		"run stopped": {func(w *world, g *guest, _ sealed.CredsAnswer) {
			w.must("op", g.path("stop"), map[string]any{"reason": "r"})
		}, false},
		"run closed": {func(w *world, g *guest, _ sealed.CredsAnswer) {
			w.must("op", g.path("close"), map[string]any{"reason": "r"})
		}, false},
		"run finished":        {func(w *world, g *guest, _ sealed.CredsAnswer) { _ = g.finish(g.record(nil)) }, false},
		"answered again":      {func(_ *world, g *guest, _ sealed.CredsAnswer) { _, _, _ = g.creds("DYN", idem(2)) }, false},
		"engine started anew": {func(w *world, _ *guest, _ sealed.CredsAnswer) { w.open() }, true},
		"revocation was lifted": {func(w *world, _ *guest, _ sealed.CredsAnswer) {
			rev := w.revoke(sealed.RevokeSource, "dyn", false)
			w.must("op", "revocations/"+rev["id"].(string)+"/lift", map[string]any{"reason": "r"})
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.claimed(idem(1))
			a, resp, err := g.creds("DYN", idem(2))
			if err != nil {
				t.Fatal(err)
			}
			if err := g.confirm(a); err != nil {
				t.Fatal(err)
			}
			c.comes(w, g, a)
			if _, err := w.lease(logical.RenewOperation, resp); (err == nil) != c.renews {
				t.Errorf("renewed: %v", err)
			}
			w.dyn.broken = true // a call would hang or fail; the callback must not care
			for range 2 {
				if _, err := w.lease(logical.RevokeOperation, resp); err != nil {
					t.Errorf("revoked: %v", err)
				}
			}
			w.dyn.broken = false
			w.clock.add(maxBackoff)
			w.b.worker.pay(ctx, w.s, "")
			if left := w.dyn.alive(); left != 0 && name != "answered again" {
				t.Errorf("%d are left upstream", left)
			}
			if _, err := w.lease(logical.RenewOperation, resp); err == nil {
				t.Error("renewed after it was revoked")
			}
		})
	}
}
