package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/canary"

	"sealed.dev/sealed/test/harness"
)

// R03: two runs of one agent. SPIRE gives both the same identity; here they
// even share the very SVID and its key. Neither can act as the other: not with
// its token, not with its run key, not with what it signed.
func TestR03RunsCanNotActAsEachOther(t *testing.T) {
	t.Parallel()
	w := get(t)
	ctx := t.Context()
	profile, c := w.profile(t, binding("api.test"))
	a, b := w.twins(t, profile)
	if a.Answer.SPIFFEID != b.Answer.SPIFFEID {
		t.Fatalf("two identities: %s, %s", a.Answer.SPIFFEID, b.Answer.SPIFFEID)
	}
	// What b would need: a's run, path and token, b's key; and so on.
	creds := func(g *guest.Guest) (string, sealed.CredsRequest) {
		path := g.Path("creds/KEY")
		return path, sealed.CredsRequest{Run: g.Run, Path: path, Idempotency: "between-00000001", Delivery: sealed.DeliveryProxy}
	}
	path, req := creds(a)
	own, err := sealed.Sign(sealed.DomainRequest, req, a.Key)
	harness.Must(t, err)
	tests := map[string]func() error{
		"b's key and token on a's path": func() error { _, err := b.Call(ctx, path, req, nil); return err },
		"a's document, stolen, with b's token": func() error {
			_, err := b.Send(ctx, path, own, nil)
			return err
		},
		"a's token, stolen, with b's key": func() error {
			thief := *b
			thief.Client = a.Client
			_, err := thief.Call(ctx, path, req, nil)
			return err
		},
		"a's token, stolen, with b's run": func() error {
			p, r := creds(b)
			thief := *b
			thief.Client = a.Client
			_, err := thief.Call(ctx, p, r, nil)
			return err
		},
		"a's document on another path": func() error { _, err := a.Send(ctx, a.Path("confirm"), own, nil); return err },
		"a's document on b's path":     func() error { _, err := b.Send(ctx, b.Path("creds/KEY"), own, nil); return err },
		"watching": func() error {
			_, err := b.Call(ctx, a.Path("watch"), sealed.WatchRequest{Run: a.Run, Path: a.Path("watch")}, nil)
			return err
		},
		"finishing": func() error {
			_, err := b.Call(ctx, a.Path("finish"), sealed.FinishRequest{Run: a.Run, Path: a.Path("finish"), Record: "{}"}, nil)
			return err
		},
		"telling events": func() error {
			_, err := b.Call(ctx, a.Path("events"), sealed.EventsRequest{Run: a.Run, Path: a.Path("events"), Events: []sealed.RunEvent{{Type: "redact.hit", Count: 1}}}, nil)
			return err
		},
		"claiming again": func() error { return b.Claim(ctx, "x", guest.Measure(sealed.EnqueueRequest{}), nil) },
		"a fresh token of the same identity": func() error {
			thief, err := w.forge.Arrive(ctx, a.Run, agentName)
			if err != nil {
				t.Fatal(err)
			}
			thief.Key = a.Key
			_, err = thief.Call(ctx, path, req, nil)
			return err
		},
	}
	for name, try := range tests {
		t.Run(name, func(t *testing.T) {
			if err := try(); !errors.Is(err, sealed.ErrDenied) && !errors.Is(err, sealed.ErrInvalid) {
				t.Errorf("not refused: %v", err)
			}
		})
	}
	t.Run("control: each as itself", func(t *testing.T) {
		for _, g := range []*guest.Guest{a, b} {
			grant, err := g.Creds(ctx, "KEY", "itself-000000001")
			harness.Must(t, err)
			harness.Must(t, g.Confirm(ctx, grant))
			if v, err := g.Reveal(grant); err != nil || v != c.Value {
				t.Errorf("the value did not arrive: %v", err)
			}
		}
	})
	t.Run("a's ciphertext is nothing to b", func(t *testing.T) {
		grant, err := a.Creds(ctx, "KEY", "itself-000000001")
		harness.Must(t, err)
		if _, err := b.Reveal(grant); err == nil {
			t.Error("b opened it")
		}
	})
	t.Run("b's token can't touch a's lease", func(t *testing.T) {
		grant, err := a.Creds(ctx, "KEY", "itself-000000002")
		harness.Must(t, err)
		harness.Must(t, a.Confirm(ctx, grant))
		for _, p := range []string{"sys/leases/revoke", "sys/leases/lookup", "sys/leases/revoke-prefix/" + w.Status.Mount + "/runs/" + string(a.Run)} {
			if _, err := b.Client.Sys(ctx, http.MethodPut, p, map[string]any{"lease_id": grant.Lease}); !errors.Is(err, sealed.ErrDenied) {
				t.Errorf("%s: %v", p, err)
			}
		}
	})
}

// twins makes two claimed runs of one agent with one JWT-SVID, one X509-SVID
// and its one key, as SPIRE's agent gives them to two processes of one entry.
func (w *world) twins(t *testing.T, profile string) (a, b *guest.Guest) {
	t.Helper()
	ctx, id := t.Context(), w.forge.ID(agentName)
	jwt, err := w.forge.JWT(ctx, id, w.forge.Trust.Audience)
	harness.Must(t, err)
	svid, err := w.forge.X509(ctx, id, guest.OwnUID)
	harness.Must(t, err)
	var out [2]*guest.Guest
	for i := range out {
		q, r, _ := w.enqueue(t, profile, "/bin/true")
		c, login, err := w.forge.Login(ctx, jwt)
		harness.Must(t, err)
		out[i], err = w.forge.Stranger(q.Run, c, login, svid)
		harness.Must(t, err)
		harness.Must(t, out[i].Claim(ctx, q.Ticket, guest.Measure(r), nil))
	}
	return out[0], out[1]
}

// A ticket is good once, and a wrong one never.
func TestC15Ticket(t *testing.T) {
	t.Parallel()
	w := get(t)
	q, r, _ := w.enqueue(t, "", "/bin/true")
	arrive := func() *guest.Guest {
		g, err := w.forge.Arrive(t.Context(), q.Run, agentName)
		harness.Must(t, err)
		return g
	}
	first, second := arrive(), arrive()
	harness.Must(t, first.Claim(t.Context(), q.Ticket, guest.Measure(r), nil)) // the control
	if err := second.Claim(t.Context(), q.Ticket, guest.Measure(r), nil); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("claimed twice: %v", err)
	}
	w.wantEntry(t, q.Run, "ticket.replay")
	other, r2, _ := w.enqueue(t, "", "/bin/true")
	g, err := w.forge.Arrive(t.Context(), other.Run, agentName)
	harness.Must(t, err)
	if err := g.Claim(t.Context(), q.Ticket, guest.Measure(r2), nil); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("claimed with another run's ticket: %v", err)
	}
}

// D06, D07, H02: identities that are not an agent's of this tenant, and tokens
// that are for somebody else.
func TestD06D07ForeignIdentities(t *testing.T) {
	t.Parallel()
	w := get(t)
	ctx := t.Context()
	td := "spiffe://" + w.forge.Trust.TrustDomain
	for _, id := range []string{
		td + "/sealed/tenant/acmecorp/agent/custom", td + "/sealed/tenant/acme/agents/custom", td + "/sealed/tenant/acme/worker/custom",
		td + "/sealed/tenant/ac/agent/custom", td + "/SEALED/tenant/acme/agent/custom", td + "/sealed/tenant/acme/agent/custom/more", td + "/x/sealed/tenant/acme/agent/custom",
	} {
		jwt, err := w.forge.JWT(ctx, id, w.forge.Trust.Audience)
		harness.Must(t, err)
		c, _, err := w.forge.Login(ctx, jwt)
		if err != nil {
			continue // Vault itself refused
		}
		q, r, _ := w.enqueue(t, "", "/bin/true")
		g, err := w.forge.Arrive(ctx, q.Run, agentName)
		harness.Must(t, err)
		g.Client = c
		if g.SVID, err = w.forge.X509(ctx, id, guest.OwnUID); err != nil {
			t.Fatal(err)
		}
		if err := g.Claim(ctx, q.Ticket, guest.Measure(r), nil); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("%s claimed a run: %v", id, err)
		}
	}
	for name, jwt := range map[string]func() (string, error){
		"another audience": func() (string, error) { return w.forge.JWT(ctx, w.forge.ID(agentName), "vault://other") },
		"a changed payload": func() (string, error) {
			jwt, err := w.forge.JWT(ctx, w.forge.ID(agentName), w.forge.Trust.Audience)
			parts := strings.Split(jwt, ".")
			return parts[0] + "." + parts[1] + "A." + parts[2], err
		},
		"no signature": func() (string, error) {
			jwt, err := w.forge.JWT(ctx, w.forge.ID(agentName), w.forge.Trust.Audience)
			return jwt[:strings.LastIndexByte(jwt, '.')+1], err
		},
	} {
		text, err := jwt()
		harness.Must(t, err)
		if _, _, err := w.forge.Login(ctx, text); err == nil {
			t.Errorf("%s: logged in", name)
		}
	}
	t.Run("another agent's identity", func(t *testing.T) {
		q, r, _ := w.enqueue(t, "", "/bin/true")
		g, err := w.forge.Arrive(ctx, q.Run, "demo")
		harness.Must(t, err)
		if err := g.Claim(ctx, q.Ticket, guest.Measure(r), nil); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("claimed: %v", err)
		}
	})
	t.Run("a weaker grade than was enqueued", func(t *testing.T) {
		q, r, _ := w.enqueue(t, "", "/bin/true")
		g, err := w.forge.Arrive(ctx, q.Run, agentName)
		harness.Must(t, err)
		g.SVID, err = w.forge.X509(ctx, w.forge.ID(agentName), guest.SameUID)
		harness.Must(t, err)
		if err := g.Claim(ctx, q.Ticket, guest.Measure(r), nil); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("claimed: %v", err)
		}
	})
}

// F11, R09: hard revocations race with issues. After a revocation was
// acknowledged nothing is issued, and nothing that was issued gets confirmed.
func TestF11RevocationRace(t *testing.T) {
	w := get(t)
	ctx := t.Context()
	before, after := 0, 0
	for round := range 12 {
		profile, _ := w.profile(t, binding("api.test"))
		g, _ := w.guest(t, profile)
		var (
			all   sync.WaitGroup
			mu    sync.Mutex
			acked time.Time
		)
		start := make(chan struct{})
		for i := range 4 {
			all.Go(func() {
				<-start
				for n := range 10 {
					grant, err := g.Creds(ctx, "KEY", fmt.Sprintf("race-%02d-%02d-%06d", round, i, n))
					if err != nil {
						continue
					}
					mu.Lock()
					late := !acked.IsZero()
					mu.Unlock()
					err = g.Confirm(ctx, grant) // only this lets init use the value
					mu.Lock()
					switch {
					case err == nil && late:
						t.Errorf("round %d: confirmed after the revocation was acknowledged", round)
					case err == nil:
						before++
					default:
						after++
					}
					mu.Unlock()
				}
			})
		}
		all.Go(func() {
			<-start
			time.Sleep(time.Duration(round) * 20 * time.Millisecond) // another interleaving each round
			_, err := w.Engine(t, "operator").Revoke(ctx, sealed.Revocation{Kind: sealed.RevokeProfile, Target: profile, Hard: true, Reason: "race"})
			mu.Lock()
			defer mu.Unlock()
			acked = time.Now()
			if err != nil {
				t.Errorf("revoking: %v", err)
			}
		})
		close(start)
		all.Wait()
		if _, err := g.Creds(ctx, "KEY", fmt.Sprintf("race-%02d-at-the-end", round)); err == nil {
			t.Errorf("round %d: issued after all", round)
		}
		run, err := w.Engine(t, "operator").Run(ctx, g.Run)
		harness.Must(t, err)
		for _, gr := range run.Grants {
			if gr.State != "dead" {
				t.Errorf("round %d: grant %s is %s", round, gr.ID, gr.State)
			}
		}
	}
	t.Logf("%d confirmed before, %d refused after", before, after)
	if before == 0 {
		t.Error("control: nothing was issued before a revocation")
	}
}

// F17, R08, AS1: a value that was issued, used and held lies in none of
// Vault's places in the clear: lease entries, audit file, server log, storage
// files, snapshot; nor in those of SPIRE.
func TestF17NoValueInVault(t *testing.T) {
	w := get(t)
	ctx := t.Context()
	profile, c := w.profile(t, binding("api.test"))
	g, q := w.guest(t, profile)
	grant, err := g.Creds(ctx, "KEY", "storage-00000001")
	harness.Must(t, err)
	harness.Must(t, g.Confirm(ctx, grant))
	if v, err := g.Reveal(grant); err != nil || v != c.Value {
		t.Fatalf("control: the value was not issued: %v", err)
	}
	root, err := w.Root()
	harness.Must(t, err)
	lease, err := root.Sys(ctx, http.MethodPut, "sys/leases/lookup", map[string]any{"lease_id": grant.Lease})
	harness.Must(t, err)
	raw := []byte(fmt.Sprint(lease))
	if !bytes.Contains(raw, []byte(grant.Lease)) {
		t.Fatalf("control: no lease %s", grant.Lease)
	}
	secrets := []*canary.Canary{c, canary.FromValue("ticket", q.Ticket), canary.FromValue("token", string(g.Login.Token))}
	hits := canary.Scan("lease", raw, secrets...)
	var snapshot bytes.Buffer
	harness.Must(t, root.Snapshot(ctx, &snapshot))
	hits = append(hits, canary.Scan("snapshot", snapshot.Bytes(), secrets...)...)
	private := w.Status.Dir + "/private"
	for _, dir := range []string{"raft", "log", "spire"} {
		found, err := canary.ScanTree(private+"/"+dir, secrets...)
		harness.Must(t, err)
		hits = append(hits, found...)
	}
	for _, e := range w.Entries(t, g.Run) {
		hits = append(hits, canary.Scan("entry "+e.Type, e.Body, secrets...)...)
	}
	if len(hits) > 0 {
		t.Errorf("found: %v", hits)
	}
	t.Run("control: the audit file has the lease, the snapshot is one", func(t *testing.T) {
		found, err := canary.ScanTree(private+"/log", canary.FromValue("run", string(q.Run)))
		harness.Must(t, err)
		if len(found) == 0 {
			t.Error("the run is not in the audit file: the scan does not read it")
		}
		if snapshot.Len() < 10000 {
			t.Errorf("the snapshot has %d bytes", snapshot.Len())
		}
	})
	t.Run("with the audit device's HMAC switched off", func(t *testing.T) { w.wantCleanRawAudit(t, root) })
	t.Run("control: with our field's HMAC switched off it is in the audit file", func(t *testing.T) {
		c, path := canaryOf(t), "attack/"+w.Name("secret")
		tune := func(keys []string) {
			_, err := root.Write(context.WithoutCancel(ctx), "sys/mounts/"+w.Status.Mount+"/tune", map[string]any{"audit_non_hmac_request_keys": keys})
			harness.Must(t, err)
		}
		tune([]string{"value"})
		t.Cleanup(func() { tune([]string{}) })
		w.Secret(t, path, c.Value)
		found, err := canary.ScanTree(private+"/log", c)
		harness.Must(t, err)
		if len(found) == 0 {
			t.Error("the scan does not find what is in the audit file")
		}
	})
}

// wantCleanRawAudit turns on a second audit file that has every field of every
// request and answer as it was (log_raw). A value that an administrator puts in
// is there: that is the control. The value that the engine issues is not, for
// it is ciphertext (R08).
func (w *world) wantCleanRawAudit(t *testing.T, root *vaultclient.Client) {
	t.Helper()
	ctx := t.Context()
	dir := w.Status.Dir + "/private/log"
	_, err := root.Write(ctx, "sys/audit/raw", map[string]any{"type": "file", "options": map[string]string{"file_path": dir + "/raw.json", "log_raw": "true"}})
	harness.Must(t, err)
	t.Cleanup(func() {
		harness.Must(t, root.Delete(context.WithoutCancel(ctx), "sys/audit/raw"))
		harness.Must(t, os.Remove(dir+"/raw.json"))
	})
	raw := func(cs ...*canary.Canary) []canary.Hit {
		b, err := os.ReadFile(dir + "/raw.json")
		harness.Must(t, err)
		return canary.Scan("raw audit", b, cs...)
	}
	put, path := canaryOf(t), "attack/"+w.Name("secret")
	w.Secret(t, path, put.Value)
	if len(raw(put)) == 0 {
		t.Error("control: the value that was put in is not in the raw audit file")
	}
	harness.Must(t, os.Truncate(dir+"/raw.json", 0))
	name := w.Name("attack/raw")
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": harness.Key(path, []string{string(agentName)}, binding("api.test"))}))
	g, _ := w.guest(t, name)
	grant, err := g.Creds(ctx, "KEY", "raw-audit-000001")
	harness.Must(t, err)
	harness.Must(t, g.Confirm(ctx, grant))
	if v, err := g.Reveal(grant); err != nil || v != put.Value {
		t.Errorf("control: the value was not issued: %v", err)
	}
	if len(raw(canary.FromValue("token", string(g.Login.Token)))) == 0 {
		t.Error("control: the run's token is not in the raw audit file: nothing was logged")
	}
	if hits := raw(put); len(hits) > 0 {
		t.Errorf("found: %v", hits)
	}
}

func canaryOf(t *testing.T) *canary.Canary {
	t.Helper()
	c, err := canary.New("PUT")
	harness.Must(t, err)
	return c
}
