package vaultplugin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

func (g *guest) record(change func(*audit.Statement)) string {
	g.w.t.Helper()
	r, err := g.w.b.run(context.Background(), g.w.s, g.run)
	if err != nil {
		g.w.t.Fatal(err)
	}
	stmt := audit.Statement{
		Type: audit.StatementType, PredicateType: audit.PredicateType,
		Subject: []audit.Subject{{Name: "run", Digest: audit.Digest{SHA256: string(r.ManifestDigest)}}},
		Predicate: audit.Predicate{
			Run: string(g.run), Tenant: testTenant, SPIFFEID: testSPIFFE, Assurance: "attested", Isolation: "own_uid",
			Agent:          audit.Agent{Name: testAgent, DefinitionDigest: string(r.m.Agent.DefinitionDigest), ExeDigest: r.Claim.ExeDigest},
			ManifestDigest: string(r.ManifestDigest), Bundle: audit.Bundle{Digest: string(r.m.Bundle.Digest), Sequence: r.m.Bundle.Sequence},
			Decisions: []audit.Decision{}, Approvals: []audit.Approval{}, Grants: []audit.Grant{}, Redactions: []audit.Redaction{},
			Revocations: []audit.Revocation{}, Warnings: []string{}, ClaimCheckpoint: g.answer.Checkpoint, FinishCheckpoint: g.answer.Checkpoint,
			StartedAt: g.w.clock.now(), FinishedAt: g.w.clock.now(),
		},
	}
	if change != nil {
		change(&stmt)
	}
	env, err := audit.SignRecord(stmt, g.key)
	if err != nil {
		g.w.t.Fatal(err)
	}
	return string(env)
}

func (g *guest) finish(record string) error {
	_, err := g.call("finish", sealed.FinishRequest{Run: g.run, Path: g.path("finish"), Record: record})
	return err
}

func TestHappyPath(t *testing.T) {
	w := newWorld(t)
	q := w.enqueue(idem(1))
	effects := map[sealed.KeyName]sealed.Effect{}
	for _, k := range q.Keys {
		effects[k.Name] = k.Decision.Effect
		if (k.Approval != "") != (k.Decision.Effect == sealed.EffectRequireApproval) {
			t.Errorf("key %s: approval %q with effect %s", k.Name, k.Approval, k.Decision.Effect)
		}
	}
	want := map[sealed.KeyName]sealed.Effect{"LOW": "allow", "WEAK": "allow", "DYN": "allow", "OTHER": "deny",
		"HIGH": "require_approval", "CRITICAL": "require_approval", "DYNHIGH": "require_approval"}
	if diff := cmp.Diff(want, effects); diff != "" {
		t.Fatal(diff)
	}
	g := w.guest(q, "agent-1", "acc-1")
	if err := g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), nil, nil)); err != nil {
		t.Fatal(err)
	}
	if g.answer.SPIFFEID != testSPIFFE || g.answer.Isolation != sealed.IsolationOwnUID || g.answer.Env["LOG_LEVEL"] != "debug" ||
		g.answer.AgentEnv["PROXY"] != "{proxy}" || g.answer.ManifestDigest != q.ManifestDigest || len(g.answer.Keys) != 7 {
		t.Fatalf("answer %+v", g.answer)
	}
	a, resp, err := g.creds("LOW", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	if got := g.value(a); got != canary {
		t.Fatalf("value %q", got)
	}
	if resp.Secret == nil || resp.Secret.TTL != 15*time.Minute || !resp.Secret.Renewable || len(resp.Data) != 1 {
		t.Fatalf("response %+v", resp)
	}
	if err := g.confirm(a); err != nil {
		t.Fatal(err)
	}
	if got := g.watch(a.Epoch); got.Order != sealed.OrderContinue || len(got.Dead) != 0 {
		t.Fatalf("watch %+v", got)
	}
	d, _, err := g.creds("DYN", idem(3))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.confirm(d); err != nil || w.dyn.alive() != 1 {
		t.Fatalf("confirm: %v, %d alive upstream", err, w.dyn.alive())
	}
	if _, err := g.call("events", sealed.EventsRequest{Run: g.run, Path: g.path("events"), Events: []sealed.RunEvent{
		{Type: "redact.hit", Key: "LOW", Detail: "base64", Stream: "stdout", Count: 3}}}); err != nil {
		t.Fatal(err)
	}
	if err := g.finish(g.record(nil)); err != nil {
		t.Fatal(err)
	}
	if w.dyn.alive() != 0 {
		t.Fatal("finish left a credential upstream")
	}
	rec, err := w.do("op", "", logical.ReadOperation, g.path("record"), nil)
	if err != nil || rec == nil || rec.Data["record"] == "" {
		t.Fatalf("record: %v %v", rec, err)
	}
	_, _, err = g.creds("LOW", idem(4))
	wantCode(t, err, 403)
	for _, typ := range []string{"run.enqueued", "approval.requested", "run.claimed", "issue.intent", "issue.ok", "redact.hit", "run.finished", "lease.revoked"} {
		w.wantEntry(typ + " ")
	}
	w.clock.add(time.Minute)
	w.b.worker.tick(context.Background(), w.s)
	read, err := w.do("op", "", logical.ReadOperation, "runs/"+string(g.run), nil)
	if err != nil || read.Data["state"] != sealed.RunFinished || !strings.Contains(read.Data["grants"].(string), string(a.Grant)) ||
		!strings.Contains(read.Data["approvals"].(string), sealed.ApprovalVoid) {
		t.Fatalf("archived run: %v %v", read, err)
	}
	for _, prefix := range []string{storeRunsLive, storeGrants, storeApprovalsLive} {
		if left, err := w.s.List(context.Background(), prefix); err != nil || len(left) != 0 {
			t.Errorf("%s holds %v after archiving (%v)", prefix, left, err)
		}
	}
}

func TestEnqueueRefusals(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		entity string
		change func(*sealed.EnqueueRequest)
		code   int
		text   string
	}{
		"root token":      {entity: "", code: 403},
		"agent":           {entity: "agent-1", code: 403},
		"unknown profile": {entity: "op", change: func(r *sealed.EnqueueRequest) { r.Profile = "nope" }, code: 400, text: "profile"},
		"unknown agent":   {entity: "op", change: func(r *sealed.EnqueueRequest) { r.Agent = "nope" }, code: 400, text: "agent"},
		"bad digest":      {entity: "op", change: func(r *sealed.EnqueueRequest) { r.CommandDigest = "xyz" }, code: 400, text: "command_digest"},
	} {
		t.Run(name, func(t *testing.T) {
			er := enqueueSpec(idem(1))
			if tc.change != nil {
				tc.change(&er)
			}
			_, err := w.tryEnqueue(tc.entity, er)
			wantCode(t, err, tc.code)
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %q does not name %q", err, tc.text)
			}
		})
	}
}

func TestEnqueueIdempotent(t *testing.T) {
	w := newWorld(t)
	first, again := w.enqueue(idem(1)), w.enqueue(idem(1))
	if first.Run != again.Run || again.Ticket == first.Ticket || again.Ticket == "" {
		t.Fatalf("first %s, again %s", first.Run, again.Run)
	}
	er := enqueueSpec(idem(1))
	er.Workflow = "other"
	_, err := w.tryEnqueue("op", er)
	wantCode(t, err, 409)
	g := w.guest(first, "agent-1", "acc")
	wantCode(t, g.sendClaim(g.claimDoc(first.Ticket, w.ownUID(), nil, nil)), 403) // replaced
	if err := g.sendClaim(g.claimDoc(again.Ticket, w.ownUID(), nil, nil)); err != nil {
		t.Fatal(err)
	}
	if third := w.enqueue(idem(1)); third.Run != first.Run || third.Ticket != "" {
		t.Fatalf("a claimed run got a ticket: %+v", third)
	}
}

func TestUnprovenWorkflow(t *testing.T) { // R11
	w := newWorld(t)
	w.sys.person("intern", nil, "interns")
	q, err := w.tryEnqueue("intern", enqueueSpec(idem(1)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(q.Warnings, "\n"), "not proven") {
		t.Errorf("warnings %q", q.Warnings)
	}
	r, err := w.b.run(context.Background(), w.s, q.Run)
	if err != nil || r.m.WorkflowProven || r.m.Tags[0].Proven {
		t.Fatalf("manifest %+v, %v", r.m, err)
	}
}

func TestClaimMeasurement(t *testing.T) { // R05, E19
	w := newWorld(t)
	spoil := map[string]func(*sealed.Measurement){
		"command_digest":   func(m *sealed.Measurement) { m.CommandDigest = sealed.CommandDigest([]string{"evil"}) },
		"input_digest":     func(m *sealed.Measurement) { m.InputDigest = "" },
		"workspace_digest": func(m *sealed.Measurement) { m.WorkspaceDigest = m.InputDigest },
		"exe_digest":       func(m *sealed.Measurement) { m.ExeDigest = strings.Repeat("cd", 32) },
		"trust_digest":     func(m *sealed.Measurement) { m.TrustDigest = "" },
		"backend":          func(m *sealed.Measurement) { m.Backend = "docker" },
		"interactive":      func(m *sealed.Measurement) { m.Interactive = true },
		"interfaces":       func(m *sealed.Measurement) { m.Interfaces = []string{"lo", "eth0"} },
		"cap_eff":          func(m *sealed.Measurement) { m.CapEff = "0000000000200000" },
		"cap_bnd":          func(m *sealed.Measurement) { m.CapBnd = "000001ffffffffff" },
		"no_new_privs":     func(m *sealed.Measurement) { m.NoNewPrivs = false },
		"seccomp":          func(m *sealed.Measurement) { m.Seccomp = 0 },
		"uid_map":          func(m *sealed.Measurement) { m.UIDMap = "0 0 1" },
		"pid":              func(m *sealed.Measurement) { m.PID = 7 },
		"root_read_only":   func(m *sealed.Measurement) { m.RootReadOnly = false },
	}
	n := 0
	for what, change := range spoil {
		t.Run(what, func(t *testing.T) {
			n++
			q := w.enqueue(idem(n))
			g := w.guest(q, "agent-1", "acc")
			wantCode(t, g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), func(c *sealed.Claim) { change(&c.Measurement) }, nil)), 403)
			w.wantEntry("claim.refused", `"what":"`+what+`"`)
			// The ticket was right, so it is gone, and no new one is made.
			wantCode(t, g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), nil, nil)), 403)
			if again := w.enqueue(idem(n)); again.Ticket != "" {
				t.Error("a burnt run got a fresh ticket")
			}
		})
	}
	for line, want := range map[string]bool{"1000 0 1": true, "1000 1000 1": true, "0 0 1": false, "1000 1000 2": false, "0 100000 65536": false,
		"": false, "1000 x": false, "1001 0 1": false, "1000 0 1\n0 1 1": false, "-1 -1 1": false} {
		if got := oneUser(line, 1000); got != want {
			t.Errorf("oneUser(%q) = %v", line, got)
		}
	}
}

func TestClaimIdentity(t *testing.T) { // R03, R25, wrong tenant
	w := newWorld(t)
	stranger := newWorld(t)
	n := 10
	for name, tc := range map[string]struct {
		sv     func() svid
		entity string
		change func(*sealed.Claim)
		spoil  func(*sealed.ClaimRequest)
		what   string
	}{
		"other authority": {sv: func() svid { return stranger.ownUID() }, what: "svid"},
		"other tenant": {sv: func() svid {
			return w.svid("spiffe://"+testTD+sealed.AgentSPIFFEPath("umbrella", testAgent), "own-uid.isolation.sealed.internal")
		}, what: "spiffe_id"},
		"other agent": {sv: func() svid {
			return w.svid("spiffe://"+testTD+sealed.AgentSPIFFEPath(testTenant, "codex"), "own-uid.isolation.sealed.internal")
		}, what: "spiffe_id"},
		"weaker isolation":      {sv: func() svid { return w.svid(testSPIFFE, "same-uid.isolation.sealed.internal") }, what: "isolation"},
		"no isolation":          {sv: func() svid { return w.svid(testSPIFFE) }, what: "isolation"},
		"two isolations":        {sv: func() svid { return w.svid(testSPIFFE, "own-uid"+isolationSuffix, "same-uid"+isolationSuffix) }, what: "isolation"},
		"payload changed":       {spoil: func(c *sealed.ClaimRequest) { c.Payload = strings.Replace(c.Payload, `"pid":1`, `"pid": 1`, 1) }, what: "svid_signature"},
		"run signature missing": {spoil: func(c *sealed.ClaimRequest) { c.RunSignature = "" }, what: "run_signature"},
		"no svid":               {spoil: func(c *sealed.ClaimRequest) { c.SVID = nil }, what: "svid"},
		"bad hpke key":          {change: func(c *sealed.Claim) { c.HPKEKey = "AAAA" }, what: "hpke_key"},
		"short nonce":           {change: func(c *sealed.Claim) { c.Nonce = "AAAA" }, what: "nonce"},
		"operator as agent":     {entity: "op"},
		"no entity":             {entity: "-"},
	} {
		t.Run(name, func(t *testing.T) {
			n++
			q := w.enqueue(idem(n))
			defer w.must("op", "runs/"+string(q.Run)+"/close", map[string]any{"reason": "test"})
			g := w.guest(q, "agent-1", "acc")
			if tc.entity != "" {
				g.entity = strings.Trim(tc.entity, "-")
			}
			sv := w.ownUID()
			if tc.sv != nil {
				sv = tc.sv()
			}
			wantCode(t, g.sendClaim(g.claimDoc(q.Ticket, sv, tc.change, tc.spoil)), 403)
			if tc.what != "" {
				w.wantEntry("claim.refused", `"what":"`+tc.what+`"`)
			}
		})
	}
	t.Run("control: the same claim unspoilt", func(t *testing.T) { w.claimed(idem(9)) })
}

func TestTicket(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	q := w.enqueue(idem(2))
	t.Run("second claim", func(t *testing.T) {
		other := w.guest(sealed.Enqueued{Run: g.run}, "agent-2", "acc-2")
		wantCode(t, other.sendClaim(other.claimDoc("anything", w.ownUID(), nil, nil)), 403)
		w.wantEntry("ticket.replay")
	})
	t.Run("ticket of another run", func(t *testing.T) {
		q3 := w.enqueue(idem(3))
		other := w.guest(q, "agent-1", "acc")
		wantCode(t, other.sendClaim(other.claimDoc(q3.Ticket, w.ownUID(), nil, nil)), 403)
		w.wantEntry("claim.refused", `"what":"ticket"`)
	})
	t.Run("expired", func(t *testing.T) {
		w.clock.add(61 * time.Second)
		other := w.guest(q, "agent-1", "acc")
		wantCode(t, other.sendClaim(other.claimDoc(q.Ticket, w.ownUID(), nil, nil)), 403)
		w.wantEntry("claim.refused", `"what":"expired"`)
		w.b.worker.tick(context.Background(), w.s)
		w.wantEntry("run.expired")
	})
	t.Run("not stored", func(t *testing.T) {
		if dump := w.dump(); strings.Contains(dump, q.Ticket) {
			t.Error("storage holds a ticket")
		}
	})
	t.Run("revoked", func(t *testing.T) {
		q := w.enqueue(idem(4))
		w.revoke(sealed.RevokeProfile, "team/release", false)
		other := w.guest(q, "agent-1", "acc")
		wantCode(t, other.sendClaim(other.claimDoc(q.Ticket, w.ownUID(), nil, nil)), 403)
		w.wantEntry("claim.refused", `"what":"revoked"`)
	})
}

// dump is every byte in storage but the built-in store's own objects.
func (w *world) dump() string {
	w.t.Helper()
	keys, err := logical.CollectKeys(context.Background(), w.s)
	if err != nil {
		w.t.Fatal(err)
	}
	var out strings.Builder
	for _, k := range keys {
		if strings.HasPrefix(k, storeSecrets) {
			continue
		}
		e, err := w.s.Get(context.Background(), k)
		if err != nil || e == nil {
			w.t.Fatalf("%s: %v", k, err)
		}
		fmt.Fprintf(&out, "%s\n%s\n", k, e.Value)
	}
	return out.String()
}

func TestRunsCanNotActAsEachOther(t *testing.T) { // R03
	w := newWorld(t)
	a, b := w.claimed(idem(1)), w.claimed(idem(2))
	doc := func(g *guest) sealed.CredsRequest {
		return sealed.CredsRequest{Run: g.run, Path: g.path("creds/LOW"), Idempotency: idem(3), Delivery: sealed.DeliveryProxy}
	}
	for name, call := range map[string]func() error{
		"own token and key on the other's path": func() error {
			_, err := a.callAs(a.entity, a.accessor, a.key, b.path("creds/LOW"), doc(b))
			return err
		},
		"the other's token, own key": func() error {
			_, err := a.callAs(b.entity, b.accessor, a.key, b.path("creds/LOW"), doc(b))
			return err
		},
		"the other's key, own token": func() error {
			_, err := b.callAs(a.entity, a.accessor, b.key, b.path("creds/LOW"), doc(b))
			return err
		},
		"no accessor": func() error {
			_, err := b.callAs(b.entity, "", b.key, b.path("creds/LOW"), doc(b))
			return err
		},
		"another entity of the same agent": func() error {
			_, err := b.callAs("agent-2", b.accessor, b.key, b.path("creds/LOW"), doc(b))
			return err
		},
		"replayed on another path": func() error {
			_, err := b.callAs(b.entity, b.accessor, b.key, b.path("creds/DYN"), doc(b))
			return err
		},
		"document of another run": func() error {
			_, err := b.callAs(b.entity, b.accessor, b.key, b.path("creds/LOW"), doc(a))
			return err
		},
		"unclaimed run": func() error {
			q := w.enqueue(idem(4))
			g := w.guest(q, "agent-1", "acc")
			_, err := g.call("creds/LOW", doc(g))
			return err
		},
		"unknown run": func() error {
			g := w.guest(sealed.Enqueued{Run: "01JNAAAAAAAAAAAAAAAAAAAAAA"}, "agent-1", "acc")
			_, err := g.call("creds/LOW", doc(g))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := call()
			wantCode(t, err, 403)
			if err.Error() != errRefused.Error() {
				t.Errorf("answer %q tells more than %q", err, errRefused)
			}
		})
	}
	t.Run("control: with its own", func(t *testing.T) {
		if _, err := b.call("creds/LOW", doc(b)); err != nil {
			t.Fatal(err)
		}
	})
	w.wantEntry("call.refused", `"what":"accessor"`)
}

func TestUnknownAndForbiddenKeyAnswerTheSame(t *testing.T) { // F23
	w := newWorld(t)
	g := w.claimed(idem(1))
	_, _, unknown := g.creds("NO_SUCH_KEY", idem(2))
	_, _, forbidden := g.creds("OTHER", idem(3))
	wantCode(t, unknown, 403)
	wantCode(t, forbidden, 403)
	if unknown.Error() != forbidden.Error() {
		t.Errorf("%q and %q differ", unknown, forbidden)
	}
}

func TestWeakValue(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	_, _, err := g.creds("WEAK", idem(2))
	wantCode(t, err, 400)
	w.wantEntry("issue.failed", "weak_value")
	p := w.profile()
	p.Version = 1
	weak := p.Keys["WEAK"]
	weak.AllowWeak = true
	p.Keys["WEAK"] = weak
	w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(p)})
	if _, _, err := w.claimed(idem(3)).creds("WEAK", idem(4)); err != nil {
		t.Fatalf("control: with allow_weak: %v", err)
	}
}

func TestFinishRefusesForeignRecords(t *testing.T) { // G20
	w := newWorld(t)
	g, other := w.claimed(idem(1)), w.claimed(idem(2))
	for name, rec := range map[string]string{
		"another run's":  other.record(nil),
		"wrong tenant":   g.record(func(s *audit.Statement) { s.Predicate.Tenant = "umbrella" }),
		"wrong identity": g.record(func(s *audit.Statement) { s.Predicate.SPIFFEID += "x" }),
		"wrong bundle":   g.record(func(s *audit.Statement) { s.Predicate.Bundle.Sequence++ }),
		"better grade":   g.record(func(s *audit.Statement) { s.Predicate.Isolation = "container" }),
		"not a record":   "{}",
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, g.finish(rec), 400) })
	}
	if err := g.finish(g.record(nil)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, g.finish(g.record(nil)), 403)
	row := recordRow{}
	if ok, err := get(context.Background(), w.s, storeRecords+string(g.run), &row); err != nil || !ok || row.SHA256 != fmt.Sprintf("%x", sha256.Sum256([]byte(row.Envelope))) {
		t.Fatalf("record row %v %v", ok, err)
	}
	w.wantEntry("run.finished", row.SHA256)
}

func TestHead(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	if _, _, err := g.creds("LOW", idem(2)); err != nil {
		t.Fatal(err)
	}
	keys, err := w.b.engineKeys(context.Background(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(keys.logVerifier)
	if err != nil {
		t.Fatal(err)
	}
	old, err := audit.OpenCheckpoint([]byte(g.answer.Checkpoint), verifier)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.call("head", sealed.HeadRequest{Run: g.run, Path: g.path("head"), OldSize: int64(old.Size)})
	if err != nil {
		t.Fatal(err)
	}
	var a sealed.HeadAnswer
	if err := g.openAnswer(resp, &a); err != nil {
		t.Fatal(err)
	}
	var proof []audit.Hash
	for _, s := range a.Proof {
		var h audit.Hash
		if err := json.Unmarshal([]byte(`"`+s+`"`), &h); err != nil {
			t.Fatal(err)
		}
		proof = append(proof, h)
	}
	if err := audit.CheckConsistency([]byte(g.answer.Checkpoint), []byte(a.Checkpoint), proof, verifier); err != nil {
		t.Fatal(err)
	}
}

// E24: an agent that asks often, and whose reason would draw on a screen.
func TestRequestsAndEvents(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	ask := func(key sealed.KeyName, reason string) (sealed.MoreAnswer, error) {
		var a sealed.MoreAnswer
		resp, err := g.call("requests", sealed.MoreRequest{Run: g.run, Path: g.path("requests"), Key: key, Reason: reason})
		if err != nil {
			return a, err
		}
		return a, g.openAnswer(resp, &a)
	}
	if a, err := ask("LOW", ""); err != nil || a.Effect != sealed.EffectAllow {
		t.Fatalf("%+v %v", a, err)
	}
	if a, err := ask("NO_SUCH_KEY", ""); err != nil || a.Effect != sealed.EffectDeny || a.Reasons[0].Code != sealed.ReasonNoSuchKey {
		t.Fatalf("%+v %v", a, err)
	}
	first, err := ask("HIGH", "please\x1b[2J\u202e now")
	if err != nil || first.Effect != sealed.EffectRequireApproval {
		t.Fatalf("%+v %v", first, err)
	}
	digest := w.view(first.Approval).Digest
	second, err := ask("HIGH", "another reason")
	if err != nil || second.Approval != first.Approval || w.view(second.Approval).Digest != digest {
		t.Fatalf("a new reason changed the object: %+v %v", second, err)
	}
	if strings.ContainsAny(string(w.view(first.Approval).Object), "\x1b\u202e") {
		t.Error("reason was not cleaned")
	}
	for range 10 {
		_, err = ask("HIGH", "")
	}
	wantCode(t, err, 429)
	w.wantEntry("request.flood")
	for name, e := range map[string]sealed.RunEvent{
		"engine's own type": {Type: "run.finished", Count: 1}, "no count": {Type: "redact.hit"},
		"foreign key": {Type: "redact.hit", Key: "NOPE", Count: 1}, "long detail": {Type: "redact.hit", Detail: strings.Repeat("x", 129), Count: 1},
		"bad stream": {Type: "redact.hit", Stream: "a b", Count: 1},
	} {
		_, err := g.call("events", sealed.EventsRequest{Run: g.run, Path: g.path("events"), Events: []sealed.RunEvent{e}})
		if code(err) != 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSilentRunIsClosed(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	g := w.claimed(idem(1))
	a, _, err := g.creds("DYN", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.confirm(a); err != nil {
		t.Fatal(err)
	}
	w.clock.add(10 * time.Second)
	g.watch(0)
	w.clock.add(10 * time.Second)
	w.b.worker.tick(ctx, w.s)
	if r, err := w.b.run(ctx, w.s, g.run); err != nil || r.State != sealed.RunClaimed {
		t.Fatalf("a run that watches was closed: %s %v", r.State, err)
	}
	w.open() // a new process gives the full grace again
	w.b.worker.tick(ctx, w.s)
	w.clock.add(16 * time.Second)
	w.b.worker.tick(ctx, w.s)
	w.wantEntry("run.closed", `"signed":false`, "silent")
	w.b.worker.pay(ctx, w.s, "")
	if w.dyn.alive() != 0 {
		t.Error("the silent run's credential is still there upstream")
	}
	_, err = g.call("watch", sealed.WatchRequest{Run: g.run, Path: g.path("watch")})
	wantCode(t, err, 403)
}
