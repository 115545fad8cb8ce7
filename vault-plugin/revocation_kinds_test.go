package vaultplugin

import (
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// TestSoftRevocation: of every kind, nothing more is issued or renewed, what was
// issued stays, and the run goes on; once it is lifted all is as before.
func TestSoftRevocation(t *testing.T) {
	for kind, target := range map[string]func(*guest) string{
		sealed.RevokeKey:             func(*guest) string { return "DYN" },
		sealed.RevokeKey + " of one": func(*guest) string { return "team/release#DYN" },
		sealed.RevokeProfile:         func(*guest) string { return "team/release" },
		sealed.RevokeSource:          func(*guest) string { return "dyn" },
		sealed.RevokeIdentity:        func(*guest) string { return testSPIFFE },
		sealed.RevokeRun:             func(g *guest) string { return string(g.run) },
		sealed.RevokeTenant:          func(*guest) string { return testTenant },
	} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			g := w.claimed(idem(1))
			a, resp, err := g.creds("DYN", idem(2))
			if err != nil || g.confirm(a) != nil {
				t.Fatal(err)
			}
			if kind == sealed.RevokeKey+" of one" {
				kind = sealed.RevokeKey
			}
			preview := w.must("op", "revocations/preview", map[string]any{"kind": kind, "target": target(g), "reason": "r"})
			if runs := preview["runs"].([]string); len(runs) != 1 || preview["grants"] != 1 || len(preview["lease_prefixes"].([]string)) != 1 {
				t.Errorf("preview %v", preview)
			}
			rev := w.revoke(kind, target(g), false)
			if _, _, err := g.creds("DYN", idem(3)); err == nil {
				t.Error("issued")
			}
			if _, _, err := g.creds("DYN", idem(2)); err == nil {
				t.Error("answered again")
			}
			if _, err := w.lease(logical.RenewOperation, resp); err == nil {
				t.Error("renewed")
			}
			if got := g.watch(0); got.Order != sealed.OrderContinue || len(got.Dead) != 0 || len(got.Blocked) == 0 || w.dyn.alive() != 1 {
				t.Errorf("watch %+v", got)
			}
			w.must("op", "revocations/"+rev["id"].(string)+"/lift", map[string]any{"reason": "over"})
			if _, err := w.lease(logical.RenewOperation, resp); err != nil {
				t.Errorf("control: renewed after the lift: %v", err)
			}
			if _, _, err := g.creds("DYN", idem(4)); err != nil {
				t.Errorf("control: issued after the lift: %v", err)
			}
			w.wantEntry("revocation.lifted", "over")
		})
	}
}

// TestRevokedProfileCoversLaterKeys: a key that is added to a revoked profile is
// revoked from the start; the same key in another profile is not.
func TestRevokedProfileCoversLaterKeys(t *testing.T) {
	w := newWorld(t)
	w.revoke(sealed.RevokeProfile, "team/release", false)
	p := w.profile()
	p.Version, p.Keys["LATER"] = 1, p.Keys["LOW"]
	w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(p)})
	other := w.profile()
	other.Name, other.Keys["LATER"] = "team/other", other.Keys["LOW"]
	w.must("op", "profiles/workflow/team/other", map[string]any{"profile": w.json(other)})
	er := enqueueSpec(idem(1))
	_, err := w.tryEnqueue("op", er)
	wantCode(t, err, 403)
	er.Profile, er.IdempotencyKey = "team/other", idem(2)
	q, err := w.tryEnqueue("op", er)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range q.Keys {
		if k.Name == "LATER" && k.Decision.Effect != sealed.EffectAllow {
			t.Errorf("control: %+v", k.Decision)
		}
	}
}
