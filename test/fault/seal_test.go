package fault

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
)

// sealWithin is how long Vault may need to be sealed, or to step down, while a
// source does not answer: one limit of a source, and the machine.
const sealWithin = 5 * time.Second

// stepDownPause is how long a Vault that was told to step down leaves the lead
// to others, here to nobody (manualStepDownSleepPeriod in its core).
const stepDownPause = 10 * time.Second

// takeOver is how long a busy machine may need for the election after that, and
// for the engine's start.
const takeOver = 10 * time.Second

// activeSince tells since when the node leads; "" if it does not.
func activeSince(t *testing.T, root *vaultclient.Client) string {
	t.Helper()
	out, err := root.Sys(t.Context(), http.MethodGet, "sys/leader", nil)
	if err != nil || out["is_self"] != true {
		return ""
	}
	since, _ := out["active_time"].(string)
	return since
}

// R20: a request holds Vault's state lock, and Vault waits for it before it
// seals or steps down. So no request waits for a source longer than the
// source's limit, and lease callbacks and revocations don't wait at all. Here
// the source is this very Vault, which answers nobody while it waits.
func TestR20SealWithASourceThatHangs(t *testing.T) {
	t.Parallel()
	asked := moment{name: "a token is being asked for", upto: asking, call: "auth/token/create"}
	making := moment{name: "the credential is being made", upto: asking, call: "issue/ci"}
	made := moment{name: "the credential is made, and nobody told", upto: asking, call: "issue/ci", done: true}
	undoing := moment{name: "the credential is being revoked", upto: revoking, call: "auth/token/revoke-accessor"}
	for act, moments := range map[string][]moment{"sys/seal": {asked, making, made, undoing}, "sys/step-down": {made, undoing}} {
		for _, m := range moments {
			t.Run(act+" while "+m.name, func(t *testing.T) {
				w := get(t)
				s := w.stage(t, m)
				s.advance(t)
				s.block(context.WithoutCancel(t.Context()), w.Engine(t, "operator"))
				select {
				case <-s.held:
				default:
					t.Fatal("control: the call was not held")
				}
				root, err := w.Root()
				harness.Must(t, err)
				before := activeSince(t, root)
				start := time.Now()
				_, err = root.Sys(t.Context(), http.MethodPut, act, nil)
				harness.Must(t, err)
				limit := sealWithin
				if act == "sys/step-down" { // which is only ordered by then
					harness.Eventually(t, time.Minute, "another term as leader", func() bool {
						now := activeSince(t, root)
						return now != "" && now != before
					})
					limit += stepDownPause + takeOver
				}
				took := time.Since(start)
				t.Logf("%s took %v", act, took.Round(time.Millisecond))
				if took > limit {
					t.Errorf("%s took %v with a source that hangs", act, took)
				}
				w.repair(t)
				w.settle(t, []*scene{s})
				w.verify(t, nil)
			})
		}
	}
}

// hold makes a run hold a credential.
func hold(t *testing.T, g *guest.Guest, idem string) {
	t.Helper()
	grant, err := g.Creds(t.Context(), "KEY", idem)
	harness.Must(t, err)
	harness.Must(t, g.Confirm(t.Context(), grant))
}

// F09: who revokes the token of a run ends all of it: its leases die with the
// token, the engine kills the grants and takes the credentials back upstream,
// the run can call nothing any more, and is closed as silent.
func TestF09TokenRevokeEndsAll(t *testing.T) {
	w := get(t)
	u := w.upstream(t)
	profile := w.source(t, u, w.forge.Trust.VaultAddr, w.forge.Trust.VaultCA)
	g, other := w.guest(t, profile), w.guest(t, profile)
	for i, run := range []*guest.Guest{g, g, other} {
		hold(t, run, fmt.Sprintf("token-revoke-%06d", i))
	}
	if n := len(u.leases(t)); n != 3 {
		t.Fatalf("control: %d credentials upstream, want 3", n)
	}
	root, err := w.Root()
	harness.Must(t, err)
	_, err = root.Write(t.Context(), "auth/token/revoke", map[string]any{"token": string(g.Login.Token)})
	harness.Must(t, err)
	// Mostly at once. Vault tries a revocation that failed again after 5 to 15 s, and then
	// after 10 to 30 s, and here it revokes twice: the run's leases, and the upstream's.
	harness.Eventually(t, 90*time.Second, "its credentials are taken back upstream", func() bool {
		_, _ = other.Watch(t.Context(), 0, 0)
		return len(u.leases(t)) == 1
	})
	if _, err := g.Watch(t.Context(), 0, 0); err == nil {
		t.Error("the run can still call")
	}
	harness.Eventually(t, time.Minute, "the run is closed, with every grant dead", func() bool {
		_, _ = other.Watch(t.Context(), 0, 0)
		run, err := w.Engine(t, "operator").Run(t.Context(), g.Run)
		if err != nil || run.State != sealed.RunClosed {
			return false
		}
		for _, grant := range run.Grants {
			if grant.State != "dead" {
				return false
			}
			if grant.Outcome != "lease_ended" { // the run's silence ends them too, later
				t.Errorf("a grant died of %q and not of its lease's end", grant.Outcome)
			}
		}
		return true
	})
	if run, err := w.Engine(t, "operator").Run(t.Context(), other.Run); err != nil || run.State != sealed.RunClaimed || len(u.leases(t)) != 1 {
		t.Errorf("control: the other run goes on: %+v %v", run.State, err)
	}
	w.verify(t, nil)
}

// F22: a revocation that was acknowledged stands, whatever is killed right
// after it, and is carried out once the engine is back.
func TestF22RevocationSurvivesAKill(t *testing.T) {
	t.Parallel()
	for _, victim := range []string{"engine", "vault"} {
		t.Run(victim, func(t *testing.T) {
			w := get(t)
			u := w.upstream(t)
			profile := w.source(t, u, w.forge.Trust.VaultAddr, w.forge.Trust.VaultCA)
			g, free := w.guest(t, profile), w.guest(t, w.static(t, "a value of no importance, 9876543210"))
			hold(t, g, "before-the-kill-01")
			e := w.Engine(t, "operator")
			before, err := free.Watch(t.Context(), 0, 0)
			harness.Must(t, err)
			rev, err := e.Revoke(t.Context(), sealed.Revocation{Kind: sealed.RevokeProfile, Target: profile, Hard: true, Reason: "a test"})
			harness.Must(t, err)
			if victim == "engine" {
				kill(t, w.pluginPID(t))
			} else {
				w.crash(t, "vault")
				w.repair(t)
			}
			// The Vault that is killed is the upstream, too. One that dies while it
			// revokes a token may forget the token and keep its lease until that
			// ends: then all that the engine can know is that it has done its part.
			harness.Eventually(t, time.Minute, "the credential is taken back", func() bool {
				_, _ = free.Watch(t.Context(), 0, 0)
				if victim == "engine" {
					return len(u.leases(t)) == 0
				}
				run, err := w.Engine(t, "operator").Run(t.Context(), g.Run)
				return err == nil && !slices.ContainsFunc(run.Grants, func(g vaultclient.RunGrant) bool { return g.State != "dead" })
			})
			if _, err := g.Creds(t.Context(), "KEY", "after-the-kill-0001"); err == nil {
				t.Error("issued after the revocation")
			}
			if r, err := e.Revocation(t.Context(), rev.ID); err != nil || !r.Standing || r.Epoch != rev.Epoch {
				t.Errorf("it does not stand: %+v %v", r, err)
			}
			after, err := free.Watch(t.Context(), 0, 0)
			if err != nil || after.Epoch < rev.Epoch || after.Epoch <= before.Epoch || after.Order != sealed.OrderContinue {
				t.Errorf("control: another run goes on, under the new epoch: %+v %v", after, err)
			}
			w.verify(t, nil)
		})
	}
}
