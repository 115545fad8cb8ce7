package vaultplugin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/sealed"
)

// newStrict is a mount with everything in it that asks a second person from now on.
func newStrict(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.must("op", "config", map[string]any{"second_person": true})
	return w
}

// A changeCall is one call that changes something.
type changeCall struct {
	op   logical.Operation
	path string
	data map[string]any
}

func (w *world) make(entity string, c changeCall) (map[string]any, error) {
	w.t.Helper()
	resp, err := w.do(entity, "", c.op, c.path, c.data)
	if resp == nil {
		return nil, err
	}
	return resp.Data, err
}

// proposed makes a change that has to become a proposal, and change nothing.
func (w *world) proposed(entity string, c changeCall) sealed.ProposalObject {
	w.t.Helper()
	before := w.allButProposals()
	out, err := w.make(entity, c)
	if err != nil || out["proposal"] == nil {
		w.t.Fatalf("%s %s: %v, %v: no proposal", c.op, c.path, out, err)
	}
	if diff := cmp.Diff(before, w.allButProposals()); diff != "" {
		w.t.Fatalf("%s %s changed something before it was confirmed: %.2000s", c.op, c.path, diff)
	}
	row, err := readProposal(context.Background(), w.s, out["kind"].(string), sealed.ProposalID(out["proposal"].(string)))
	if err != nil || string(row.Digest) != out["digest"] {
		w.t.Fatalf("%v, %v", row, err)
	}
	return row.object
}

func (w *world) allButProposals() map[string]string {
	w.t.Helper()
	out := w.allButLog()
	for k := range out {
		if strings.HasPrefix(k, storeProposals) {
			delete(out, k)
		}
	}
	return out
}

func digestOfProposal(o sealed.ProposalObject) string {
	_, d, err := o.Marshal()
	if err != nil {
		panic(err)
	}
	return string(d)
}

func (w *world) confirm(entity string, o sealed.ProposalObject, digest string) error {
	w.t.Helper()
	_, err := w.do(entity, "", logical.UpdateOperation, "proposals/"+o.Kind+"/"+string(o.ID)+"/confirm", map[string]any{"digest": digest})
	return err
}

func newPolicyPEM(t testing.TB) (string, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), key
}

// trustDoc is a bundle of authorities.
func (w *world) trustDoc(sequence uint64, cas ...*x509.Certificate) string {
	w.t.Helper()
	bundle := spiffebundle.New(spiffeid.RequireTrustDomainFromString(testTD))
	for _, ca := range cas {
		bundle.AddX509Authority(ca)
	}
	bundle.SetSequenceNumber(sequence)
	raw, err := bundle.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	return string(raw)
}

func (w *world) otherCA() *x509.Certificate {
	w.t.Helper()
	other := &world{t: w.t, clock: w.clock}
	other.makeCA()
	return other.ca
}

// dynSource is the source that the mount has.
func dynSource(change func(*sealed.SourceConfig)) sealed.SourceConfig {
	cfg := sealed.SourceConfig{Name: "dyn", Type: sealed.SourceVaultDynamic, Address: "https://vault.example:8200", Mount: "pki"}
	change(&cfg)
	return cfg
}

func (w *world) source(change func(*sealed.SourceConfig)) changeCall {
	cfg := dynSource(change)
	return changeCall{logical.UpdateOperation, "sources/" + string(cfg.Name), map[string]any{"source": w.json(cfg)}}
}

func patchCall(patch string) changeCall {
	return changeCall{logical.PatchOperation, "profiles/workflow/team/release", map[string]any{"profile": patch, "version": 1}}
}

// widenings are changes that let more happen, and the fields that do.
func (w *world) widenings() map[string]struct {
	call   changeCall
	widens []string
} {
	type row = struct {
		call   changeCall
		widens []string
	}
	key, _ := newPolicyPEM(w.t)
	keys, err := loadPolicyKeys(context.Background(), w.s)
	if err != nil {
		w.t.Fatal(err)
	}
	more := map[string]string{"k1": keys.Keys["k1"], "k2": key}
	other := w.otherCA()
	sum := sha256.Sum256(other.Raw)
	low := func(field, value string) row {
		return row{patchCall(`{"keys":{"LOW":{"` + field + `":` + value + `}}}`), []string{"keys.LOW." + field}}
	}
	config := func(field string, value any, widens ...string) row {
		return row{changeCall{logical.UpdateOperation, "config", map[string]any{field: value}}, widens}
	}
	binding := func(host string) string { return `[{"host":"` + host + `","methods":["GET"],"paths":["/v1/**"]}]` }
	return map[string]row{
		"key":              {patchCall(`{"keys":{"NEW":{"source":"builtin","ref":{"path":"ci/token"},"agents":["codex"],"risk":"low","bindings":` + binding("evil.example") + `}}}`), []string{"keys.NEW"}},
		"agents":           low("agents", `["claude-code","codex"]`),
		"binding":          low("bindings", binding("evil.example")),
		"delivery":         low("delivery", `"env"`),
		"source of key":    low("source", `"dyn"`),
		"ref":              low("ref", `{"path":"ci/weak"}`),
		"longer":           low("ttl", `"30m"`),
		"max longer":       low("max_ttl", `"2h"`),
		"weak":             low("allow_weak", `true`),
		"lower risk":       {patchCall(`{"keys":{"HIGH":{"risk":"low"}}}`), []string{"keys.HIGH.risk"}},
		"requesters":       low("requesters", `{"groups":["everybody"]}`),
		"two":              {patchCall(`{"owner":"x","keys":{"LOW":{"ttl":"30m","agents":["codex"]}}}`), []string{"owner", "keys.LOW.agents", "keys.LOW.ttl"}},
		"all workflows":    {patchCall(`{"allowed_workflows":["*"]}`), []string{"allowed_workflows"}},
		"who may ask":      {patchCall(`{"requesters":{"groups":["everybody"]}}`), []string{"requesters"}},
		"new profile":      {changeCall{logical.UpdateOperation, "profiles/system/mine", layerDoc("system", "mine", 0, `"requesters":{"groups":["release-eng"]},"allowed_workflows":["*"],"keys":{}`)}, []string{"allowed_workflows", "requesters"}},
		"address":          {w.source(func(c *sealed.SourceConfig) { c.Address = "https://evil.example:8200" }), []string{"address"}},
		"mount":            {w.source(func(c *sealed.SourceConfig) { c.Mount = "other" }), []string{"mount"}},
		"level":            {w.source(func(c *sealed.SourceConfig) { c.Levels = []string{"system", "workflow", "user"} }), []string{"levels"}},
		"login":            {w.source(func(c *sealed.SourceConfig) { c.Auth = sealed.SourceAuth{Method: sealed.AuthAppRole, Role: "r"} }), []string{"auth"}},
		"CA":               {w.source(func(c *sealed.SourceConfig) { c.CA = pemOf(w.ca) }), []string{"ca"}},
		"new source":       {w.source(func(c *sealed.SourceConfig) { c.Name = "mine" }), []string{"type", "address", "mount", "levels"}},
		"builtin for all":  {changeCall{logical.UpdateOperation, "sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin","has_credential":false,"levels":["user"]}`}}, []string{"levels"}},
		"policy key":       {changeCall{logical.UpdateOperation, "config/policy-keys", map[string]any{"keys": w.json(more)}}, []string{"k2"}},
		"other policy key": {changeCall{logical.UpdateOperation, "config/policy-keys", map[string]any{"keys": w.json(map[string]string{"k1": key})}}, []string{"k1"}},
		"authority":        {changeCall{logical.UpdateOperation, "config/trust-bundle", map[string]any{"bundle": w.trustDoc(2, w.ca, other)}}, []string{fmt.Sprintf("bundle.x509-%x", sum)}},
		"endpoint":         {changeCall{logical.UpdateOperation, "config/trust-bundle", map[string]any{"endpoint": "https://evil.example/", "ca": pemOf(other)}}, []string{"endpoint", "ca"}},
		"one person":       config("second_person", false, "second_person_off"),
		"who is a person":  config("person_claim", "mail", "person_claim"),
		"whose claims":     config("claims_accessor", []string{"auth_mine"}, "claims_accessor"),
		"whose agents":     config("agent_accessor", "auth_mine", "agent_accessor"),
		"a helper":         config("source_helpers", map[string]any{"sops": strings.Repeat("ab", 32)}, "source_helpers"),
		"a directory":      config("sops_root", "/srv", "sops_root"),
		"unseen":           config("silent_after", "1m", "silent_after"),
		"slower answer":    config("proposals_expire", "240h", "proposals_expire"),
	}
}

func pemOf(ca *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))
}

// TestSecondPerson: each change that widens waits, says what it widens, takes
// effect when another person confirms it, and then once. The control is the same
// change on a mount that asks nobody.
func TestSecondPerson(t *testing.T) {
	for name := range newStrict(t).widenings() {
		t.Run(name, func(t *testing.T) {
			w := newStrict(t)
			row := w.widenings()[name]
			o := w.proposed("op", row.call)
			if diff := cmp.Diff(row.widens, o.Widens); diff != "" {
				t.Errorf("widens: %s", diff)
			}
			if again := w.proposed("op", row.call); again.ID != o.ID {
				t.Error("the same change made two proposals")
			}
			before := w.allButProposals()
			if err := w.confirm("op", o, digestOfProposal(o)); code(err) != 403 || !strings.Contains(err.Error(), "self") {
				t.Errorf("by the proposer: %v", err)
			}
			if diff := cmp.Diff(before, w.allButProposals()); diff != "" {
				t.Errorf("refused, and yet: %.1000s", diff)
			}
			if err := w.confirm("bob", o, digestOfProposal(o)); err != nil {
				t.Fatalf("confirming: %v", err)
			}
			if cmp.Equal(before, w.allButProposals()) {
				t.Error("it was confirmed, and nothing changed")
			}
			if err := w.confirm("bob", o, digestOfProposal(o)); code(err) != 403 {
				t.Errorf("a second time: %v", err)
			}
			w.wantEntry("proposal.made", string(o.ID), `"by":"op"`)
			w.wantEntry("proposal.refused", string(o.ID), `"what":"self"`)
			w.wantEntry("proposal.confirmed", string(o.ID), `"by":"bob"`, `"proposed_by":"op"`)
			w.wantEntry(".changed", `"by":"bob"`, `"proposal":"`+string(o.ID)+`"`)

			loose := newWorld(t)
			call := loose.widenings()[name].call
			if strings.HasPrefix(call.path, "config/policy-keys") {
				return // a signature is asked for instead: TestPolicyKeysSigned
			}
			if call.data["second_person"] == false {
				return
			}
			was := loose.allButProposals()
			if out, err := loose.make("op", call); err != nil || out["proposal"] != nil || cmp.Equal(was, loose.allButProposals()) {
				t.Errorf("control: one person could not: %v, %v", out, err)
			}
		})
	}
}

// TestNarrowingIsAtOnce: a stop does not wait for anybody.
func TestNarrowingIsAtOnce(t *testing.T) {
	user := `{"name":"builtin","type":"builtin","has_credential":false,"levels":["system"]}`
	for name, c := range map[string]changeCall{
		"tombstone":     patchCall(`{"keys":{"LOW":{"tombstone":true,"source":null,"ref":null,"agents":null,"risk":null,"delivery":null,"bindings":null,"ttl":null,"max_ttl":null,"requesters":null}}}`),
		"no key":        patchCall(`{"keys":{"LOW":null}}`),
		"shorter":       patchCall(`{"keys":{"LOW":{"ttl":"1m"}}}`),
		"nobody":        patchCall(`{"keys":{"LOW":{"agents":[]}}}`),
		"riskier":       patchCall(`{"keys":{"LOW":{"risk":"critical"}}}`),
		"fewer levels":  {logical.UpdateOperation, "sources/builtin", map[string]any{"source": user}},
		"login":         {logical.UpdateOperation, "sources/dyn", map[string]any{"source": string(mustJSON(dynSource(func(*sealed.SourceConfig) {}))), "credential": "another-login"}},
		"no source":     {logical.DeleteOperation, "sources/dyn", map[string]any{"force": true}},
		"same builtin":  {logical.UpdateOperation, "sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin","has_credential":false}`}},
		"sooner":        {logical.UpdateOperation, "config", map[string]any{"silent_after": "10s", "proposals_expire": "1h"}},
		"second person": {logical.UpdateOperation, "config", map[string]any{"second_person": true}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newStrict(t)
			if out, err := w.make("op", c); err != nil || out["proposal"] != nil {
				t.Errorf("%v, %v", out, err)
			}
		})
	}
	t.Run("authority", func(t *testing.T) {
		w := newWorld(t)
		other := w.otherCA()
		w.must("op", "config/trust-bundle", map[string]any{"bundle": w.trustDoc(2, w.ca, other)})
		w.must("op", "config", map[string]any{"second_person": true})
		for seq, cas := range map[uint64][]*x509.Certificate{3: {other}} {
			if out := w.must("op", "config/trust-bundle", map[string]any{"bundle": w.trustDoc(seq, cas...)}); out["proposal"] != nil {
				t.Error(out)
			}
		}
	})
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// TestZeroConfigAsks: a mount that says nothing about it asks a second person,
// for its first source, profile and policy key too; so does one that an older
// version configured.
func TestZeroConfigAsks(t *testing.T) {
	w := newStrict(t)
	bare := &world{t: t, s: &faultStorage{}, clock: w.clock, dyn: w.dyn, policies: w.policies, sys: w.sys, ca: w.ca, caKey: w.caKey}
	bare.open()
	bare.must("op", "config", map[string]any{"tenant": testTenant, "trust_domain": testTD, "agent_accessor": jwtMount})
	key, _ := newPolicyPEM(t)
	for _, c := range []changeCall{
		{logical.UpdateOperation, "config/policy-keys", map[string]any{"keys": bare.json(map[string]string{"k1": key})}},
		{logical.UpdateOperation, "config/trust-bundle", map[string]any{"bundle": bare.trustDoc(1, bare.ca)}},
		bare.source(func(*sealed.SourceConfig) {}),
	} {
		o := bare.proposed("op", c)
		if err := bare.confirm("ann", o, digestOfProposal(o)); err != nil {
			t.Fatal(err)
		}
	}
	p := w.profile()
	o := bare.proposed("op", changeCall{logical.UpdateOperation, "profiles/workflow/team/release", map[string]any{"profile": bare.json(p)}})
	if err := bare.confirm("ann", o, digestOfProposal(o)); err != nil {
		t.Fatal(err)
	}
	if got := bare.stored("workflow", "team/release"); got.Version != 1 || len(got.Keys) != len(p.Keys) {
		t.Errorf("%+v", got)
	}
	head, err := readHead(t.Context(), bare.s, "workflow", "team/release")
	if err != nil || head.Notes[0].By != "op" {
		t.Errorf("the version is told to be by %v, %v", head.Notes, err)
	}

	e, err := bare.s.Get(t.Context(), storeConfig)
	if err != nil || strings.Contains(string(e.Value), "second_person") {
		t.Fatalf("%s, %v", e.Value, err) // as an older version wrote it
	}
	resp, err := bare.do("op", "", logical.ReadOperation, "config", nil)
	if err != nil || resp.Data["second_person"] != true {
		t.Errorf("%+v, %v", resp, err)
	}
}

// TestWhoMayConfirm: each of these is refused, with the reason, and changes nothing.
func TestWhoMayConfirm(t *testing.T) {
	setup := func(t *testing.T) (*world, sealed.ProposalObject) {
		w := newWorld(t)
		for id, mail := range map[string]string{"op": "o@x", "op2": "O@X", "ann": "a@x", "bob": "b@x", "nobody": ""} {
			meta := map[string]string{"mail": mail}
			if mail == "" {
				meta = nil
			}
			w.sys.person(id, meta, "release-eng")
		}
		w.must("op", "config", map[string]any{"person_claim": "mail"})
		w.must("op", "config", map[string]any{"second_person": true})
		return w, w.proposed("op", patchCall(`{"keys":{"LOW":{"agents":["claude-code","codex"]}}}`))
	}
	tests := []struct {
		name, entity, digest string
		before               func(w *world)
		status               int
		want                 string
	}{
		{name: "the proposer", entity: "op", status: 403, want: "self"},
		{name: "the same person by another login", entity: "op2", status: 403, want: "self"},
		{name: "who is no known person", entity: "nobody", status: 403, want: "person_unknown"},
		{name: "a token without an entity", entity: "", status: 403, want: "no entity"},
		{name: "an agent", entity: "agent-1", status: 403, want: "agent"},
		{name: "another digest", entity: "ann", digest: strings.Repeat("ab", 32), status: 409, want: "digest"},
		{name: "no digest", entity: "ann", digest: " ", status: 409, want: "digest"},
		{name: "too late", entity: "ann", status: 409, want: "expired", before: func(w *world) { w.clock.add(7 * 24 * time.Hour) }},
		{name: "who is disabled", entity: "ann", status: 403, want: "disabled", before: func(w *world) { w.sys.entities["ann"].Disabled = true }},
		{name: "for a proposer who is gone", entity: "ann", status: 403, want: "proposer", before: func(w *world) { w.sys.entities["op"].Disabled = true }},
		{name: "for a proposer who is another person now", entity: "ann", status: 403, want: "proposer", before: func(w *world) {
			w.sys.person("op", map[string]string{"mail": "z@x"}, "release-eng")
		}},
		{name: "what was changed since", entity: "ann", status: 409, want: "stale", before: func(w *world) {
			if _, err := w.make("op", patchCall(`{"keys":{"WEAK":null}}`)); err != nil {
				w.t.Fatal(err)
			}
		}},
		{name: "what was rejected", entity: "ann", status: 403, want: "refused", before: func(w *world) {
			w.rejectAll(w.t)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, o := setup(t)
			if tt.before != nil {
				tt.before(w)
			}
			before := w.allButLog()
			digest := tt.digest
			if digest == "" {
				digest = digestOfProposal(o)
			}
			if err := w.confirm(tt.entity, o, strings.TrimSpace(digest)); code(err) != tt.status || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %d %s", err, tt.status, tt.want)
			}
			if diff := cmp.Diff(before, w.allButLog()); diff != "" {
				t.Errorf("it was refused, and yet: %.1000s", diff)
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		w, o := setup(t)
		if err := w.confirm("ann", o, digestOfProposal(o)); err != nil {
			t.Error(err)
		}
	})
}

func (w *world) rejectAll(t testing.TB) {
	t.Helper()
	resp, err := w.do("bob", "", logical.ListOperation, "proposals/profile", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range resp.Data["keys"].([]string) {
		w.must("bob", "proposals/profile/"+id+"/reject", nil)
		w.wantEntry("proposal.rejected", id)
	}
}

// TestProposerIsAPerson: a token that belongs to nobody, or to nobody known,
// proposes nothing: otherwise the one behind it could confirm.
func TestProposerIsAPerson(t *testing.T) {
	w := newWorld(t)
	w.sys.person("op", map[string]string{"mail": "o@x"}, "release-eng")
	w.must("op", "config", map[string]any{"person_claim": "mail"})
	w.must("op", "config", map[string]any{"second_person": true})
	before := w.allButLog()
	for _, entity := range []string{"", "ann", "agent-1"} {
		if _, err := w.make(entity, patchCall(`{"owner":"me"}`)); code(err) != 403 {
			t.Errorf("%q: %v", entity, err)
		}
	}
	if diff := cmp.Diff(before, w.allButLog()); diff != "" {
		t.Error(diff)
	}
	if out, err := w.make("", patchCall(`{"keys":{"LOW":{"ttl":"1m"}}}`)); err != nil || out["version"] != 2 {
		t.Errorf("narrowing takes nobody: %v, %v", out, err)
	}
}

// TestProposalShows: a person sees the exact text, what is there now, and no login.
func TestProposalShows(t *testing.T) {
	w := newStrict(t)
	c := w.source(func(c *sealed.SourceConfig) { c.Address = "https://evil.example:8200" })
	c.data["credential"] = canary
	out, err := w.make("op", c)
	if err != nil || out["credential_dropped"] != true {
		t.Fatalf("%v, %v", out, err)
	}
	path := fmt.Sprintf("proposals/source/%v", out["proposal"])
	resp, err := w.do("ann", "", logical.ReadOperation, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	var v sealed.ProposalView
	if err := sealed.Decode([]byte(resp.Data["proposal"].(string)), 1<<20, &v); err != nil {
		t.Fatal(err)
	}
	if v.State != sealed.ProposalPending || sealed.DigestOf(sealed.DomainProposal, v.Object) != v.Digest ||
		!strings.Contains(v.Before, "https://vault.example:8200") || !strings.Contains(string(v.Object), "https://evil.example:8200") {
		t.Errorf("%+v", v)
	}
	for k, text := range w.allButLog() {
		if strings.Contains(text, canary) && !strings.HasPrefix(k, storeSecrets) {
			t.Errorf("the login is in %s", k)
		}
	}
	var o sealed.ProposalObject
	if err := json.Unmarshal(v.Object, &o); err != nil {
		t.Fatal(err)
	}
	if err := w.confirm("ann", o, string(v.Digest)); err != nil {
		t.Fatal(err)
	}
	// As ever, another place drops the login.
	if cred, err := loadCredential(t.Context(), w.s, dynSource(func(c *sealed.SourceConfig) { c.Address = "https://evil.example:8200" })); cred != nil || err != nil {
		t.Errorf("%q, %v: the login was kept", cred, err)
	}
	if _, err := w.do("ann", "", logical.ReadOperation, path, nil); code(err) != 403 {
		t.Errorf("after the confirmation: %v", err)
	}
	if _, err := w.do("ann", "", logical.ReadOperation, "proposals/source/01ARZ3NDEKTSV4RRFFQ69G5FAV", nil); code(err) != 403 {
		t.Errorf("unknown: %v", err)
	}
}

// TestPolicyKeysSigned: a signature by a key that is trusted already takes the
// place of the second person; one by any other does not.
func TestPolicyKeysSigned(t *testing.T) {
	w := newStrict(t)
	keys, err := loadPolicyKeys(t.Context(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	key, stranger := newPolicyPEM(t)
	doc := w.json(map[string]string{"k1": keys.Keys["k1"], "k2": key})
	sign := func(key *ecdsa.PrivateKey) string {
		sum := sha256.Sum256(sealed.PolicyKeysMessage(testTenant, 2, doc))
		sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(sig)
	}
	for _, bad := range []map[string]any{
		{"keys": doc, "signed_by": "k1", "signature": sign(stranger)}, {"keys": doc, "signed_by": "k2", "signature": sign(stranger)},
		{"keys": doc, "signed_by": "k1"}, {"keys": doc, "signature": sign(w.caKey)},
	} {
		if _, err := w.do("op", "", logical.UpdateOperation, "config/policy-keys", bad); code(err) != 400 {
			t.Errorf("%v: %v", bad["signed_by"], err)
		}
	}
	if out := w.must("op", "config/policy-keys", map[string]any{"keys": doc, "signed_by": "k1", "signature": sign(w.caKey)}); out["version"] != 2 {
		t.Error(out)
	}
	if out := w.must("op", "config/policy-keys", map[string]any{"keys": w.json(map[string]string{"k2": key})}); out["version"] != 3 {
		t.Error("fewer keys had to wait", out)
	}
}

// TestProposalNotMoreThanShown: what widens by now, and was not shown, is not
// confirmed: another level changed meanwhile, and the same text takes away less.
func TestProposalNotMoreThanShown(t *testing.T) {
	w := newWorld(t)
	w.must("op", "profiles/system/team/release", layerDoc("system", "team/release", 0, `"requesters":{"groups":["release-eng"]},"allowed_workflows":["*"],"keys":{}`))
	w.must("op", "config", map[string]any{"second_person": true})
	o := w.proposed("op", patchCall(`{"owner":"me","keys":{"LOW":null}}`))
	if diff := cmp.Diff([]string{"owner"}, o.Widens); diff != "" {
		t.Fatal(diff)
	}
	other := w.proposed("op", changeCall{logical.PatchOperation, "profiles/system/team/release", map[string]any{"version": 1,
		"profile": `{"keys":{"LOW":{"source":"builtin","ref":{"path":"ci/token"},"agents":["codex"],"risk":"low","bindings":[{"host":"x.example","methods":["GET"],"paths":["/"]}]}}}`}})
	if err := w.confirm("ann", other, digestOfProposal(other)); err != nil {
		t.Fatal(err)
	}
	if err := w.confirm("ann", o, digestOfProposal(o)); code(err) != 409 || !strings.Contains(err.Error(), "stale") {
		t.Errorf("without LOW the key of level system takes its place, which was not shown: %v", err)
	}
	if got := w.stored("workflow", "team/release"); got.Version != 1 {
		t.Error("and it was written")
	}
	again := w.proposed("op", patchCall(`{"owner":"me","keys":{"LOW":null}}`)) // control: it is shown now
	if !slices.Equal(again.Widens, []string{"owner", "keys.LOW"}) {
		t.Errorf("widens %v", again.Widens)
	}
	if err := w.confirm("ann", again, digestOfProposal(again)); err != nil {
		t.Error(err)
	}
}

// TestConfigFieldsAreWeighed: a field of the configuration is fixed, or it was
// decided here whether a change of it widens. A new one fails the test.
func TestConfigFieldsAreWeighed(t *testing.T) {
	fixed := []string{"tenant", "trust_domain", "allow_embedded"}
	free := []string{"keep_runs"} // of what lists show; the log stays
	old := defaultConfig()
	old.Detect = sealed.DetectKinds
	for f := range reflect.TypeFor[engineConfig]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		now := old
		switch v := reflect.ValueOf(&now).Elem().FieldByIndex(f.Index); v.Interface().(type) {
		case string, sealed.Name:
			v.SetString("other")
		case bool:
			v.SetBool(true)
		case sealed.Duration:
			v.SetInt(int64(1000 * time.Hour))
		case []string:
			v.Set(reflect.ValueOf([]string{"other"}))
		case map[string]string:
			v.Set(reflect.ValueOf(map[string]string{"sops": "other"}))
		default:
			t.Fatalf("%s has a type that this test does not know", name)
		}
		want := []string{name}
		if slices.Contains(fixed, name) || slices.Contains(free, name) {
			want = nil
		}
		if got := configWidens(old, now); !slices.Equal(got, want) {
			t.Errorf("another %s widens %v", name, got)
		}
	}
}

// TestSourceFieldsAreWeighed: another value in any field of a source widens.
func TestSourceFieldsAreWeighed(t *testing.T) {
	old := dynSource(func(*sealed.SourceConfig) {})
	for f := range reflect.TypeFor[sealed.SourceConfig]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		now := old
		switch v := reflect.ValueOf(&now).Elem().FieldByIndex(f.Index); v.Interface().(type) {
		case string:
			v.SetString("other")
		case sealed.SourceAuth:
			v.Set(reflect.ValueOf(sealed.SourceAuth{Role: "other"}))
		case []string:
			v.Set(reflect.ValueOf([]string{sealed.LevelUser}))
		case sealed.Name, bool:
			continue // the target itself; has_credential, which is never stored
		default:
			t.Fatalf("%s has a type that this test does not know", name)
		}
		if got := sourceWidens(old, now, true); !slices.Equal(got, []string{name}) {
			t.Errorf("another %s widens %v", name, got)
		}
	}
}

// TestDeleteThatWidens: to take away a level that narrows lets more happen.
func TestDeleteThatWidens(t *testing.T) {
	w := newWorld(t)
	w.must("op", "profiles/system/default", layerDoc("system", "default", 0, `"requesters":{},"keys":{"LOW":{"agents":["codex"]}}`))
	w.must("op", "config", map[string]any{"second_person": true})
	o := w.proposed("op", changeCall{logical.DeleteOperation, "profiles/system/default", nil})
	if !o.Delete || !slices.Equal(o.Widens, []string{"keys.LOW"}) {
		t.Fatalf("%+v", o)
	}
	if err := w.confirm("ann", o, digestOfProposal(o)); err != nil {
		t.Fatal(err)
	}
	if head, err := readHead(t.Context(), w.s, "system", "default"); err != nil || head.exists() {
		t.Errorf("%+v, %v", head, err)
	}
	w.must("op", "sources/builtin", map[string]any{"source": `{"name":"builtin","type":"builtin","has_credential":false,"levels":["system"]}`})
	if _, err := w.make("op", changeCall{logical.DeleteOperation, "sources/builtin", map[string]any{"force": true}}); code(err) != 409 {
		t.Errorf("without its row builtin is open to more levels: %v", err)
	}
}

// TestConfirmCrash kills the process at each write of a confirmation, before it
// and after it. Afterwards the change was made or can be confirmed again; never
// is it made twice, nor without an entry.
func TestConfirmCrash(t *testing.T) {
	names := []string{"binding", "address", "policy key", "authority", "one person"}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			w := newStrict(t)
			o := w.proposed("op", w.widenings()[name].call)
			w.s.setFail(nil)
			if err := w.confirm("bob", o, digestOfProposal(o)); err != nil {
				t.Fatal(err)
			}
			for n := 1; n <= w.s.count(); n++ {
				for _, after := range []bool{false, true} {
					confirmCrash(t, name, n, after)
				}
			}
		})
	}
}

func confirmCrash(t *testing.T, name string, n int, after bool) {
	t.Helper()
	w := newStrict(t)
	o := w.proposed("op", w.widenings()[name].call)
	before := w.allButProposals()
	w.s.setFail(func(i int, _ string) (bool, bool) { return i > n || (i == n && !after), i == n && after })
	_ = w.confirm("bob", o, digestOfProposal(o))
	w.s.setFail(nil)
	w.open()
	made := len(w.entriesOf("proposal.confirmed", string(o.ID))) > 0
	if changed := !cmp.Equal(before, w.allButProposals()); changed && !made {
		t.Fatalf("write %d after=%v: it was changed without an entry", n, after)
	}
	err := w.confirm("bob", o, digestOfProposal(o))
	_, gone := readProposal(t.Context(), w.s, o.Kind, o.ID)
	switch {
	case err == nil:
	case code(err) == 409 && strings.Contains(err.Error(), "stale"): // it had taken effect
	case code(err) == 403 && isNotFound(gone): // and was deleted
	default:
		t.Fatalf("write %d after=%v: %v", n, after, err)
	}
	if cmp.Equal(before, w.allButProposals()) {
		t.Fatalf("write %d after=%v: it can't be confirmed any more and was not made: %v", n, after, err)
	}
	if o.Kind == sealed.ProposalProfile {
		if got := w.stored("workflow", "team/release"); got.Version != 2 {
			t.Fatalf("write %d after=%v: version %d", n, after, got.Version)
		}
	}
}

// entriesOf are the lines of the log with these parts.
func (w *world) entriesOf(parts ...string) []string {
	w.t.Helper()
	return slices.DeleteFunc(w.logged(), func(line string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) })
	})
}

// TestNoLogNoProposal: without an entry nothing is proposed, confirmed or rejected.
func TestNoLogNoProposal(t *testing.T) {
	w := newStrict(t)
	o := w.proposed("op", patchCall(`{"owner":"me"}`))
	before := w.allButLog()
	w.s.setFail(func(_ int, key string) (bool, bool) { return strings.HasPrefix(key, storeLog), false })
	if _, err := w.make("op", patchCall(`{"owner":"you"}`)); code(err) != 503 {
		t.Errorf("proposing: %v", err)
	}
	if err := w.confirm("ann", o, digestOfProposal(o)); code(err) != 503 {
		t.Errorf("confirming: %v", err)
	}
	if _, err := w.do("ann", "", logical.UpdateOperation, "proposals/profile/"+string(o.ID)+"/reject", nil); code(err) != 503 {
		t.Errorf("rejecting: %v", err)
	}
	w.clock.add(8 * 24 * time.Hour)
	if err := w.b.expireProposals(t.Context(), w.s); err == nil {
		t.Error("expired without an entry")
	}
	w.s.setFail(nil)
	if diff := cmp.Diff(before, w.allButLog()); diff != "" {
		t.Error(diff)
	}
}

// TestProposalLimitsAndExpiry: they are bounded, and go when their time is over.
func TestProposalLimitsAndExpiry(t *testing.T) {
	w := newStrict(t)
	for i := range maxProposalsOfOne {
		w.proposed("op", patchCall(fmt.Sprintf(`{"owner":"o%d"}`, i)))
	}
	if _, err := w.make("op", patchCall(`{"owner":"more"}`)); code(err) != 409 {
		t.Errorf("one more: %v", err)
	}
	w.proposed("ann", patchCall(`{"owner":"hers"}`)) // others are not kept from it
	w.clock.add(7*24*time.Hour - time.Minute)
	o := w.proposed("bob", patchCall(`{"owner":"his"}`))
	w.clock.add(time.Minute)
	if err := w.b.expireProposals(t.Context(), w.s); err != nil {
		t.Fatal(err)
	}
	left, err := proposalsOf(t.Context(), w.s, sealed.ProposalProfile)
	if err != nil || len(left) != 1 || left[0].object.ID != o.ID {
		t.Errorf("%d are left, %v", len(left), err)
	}
	if n := len(w.entriesOf("proposal.expired")); n != maxProposalsOfOne+1 {
		t.Errorf("%d entries", n)
	}
	for _, line := range w.entriesOf("proposal.") {
		if strings.Contains(line, "claude-code") {
			t.Errorf("an entry holds the text: %s", line)
		}
	}
}

// TestProposalTampered: storage that does not hold what was shown is refused.
func TestProposalTampered(t *testing.T) {
	w := newStrict(t)
	o := w.proposed("op", patchCall(`{"owner":"me"}`))
	row, err := readProposal(t.Context(), w.s, o.Kind, o.ID)
	if err != nil {
		t.Fatal(err)
	}
	row.Object = []byte(strings.Replace(string(row.Object), "me", "he", 1))
	if err := put(t.Context(), w.s, row.key(), row); err != nil {
		t.Fatal(err)
	}
	if err := w.confirm("ann", o, digestOfProposal(o)); code(err) != 500 {
		t.Errorf("%v", err)
	}
	if w.stored("workflow", "team/release").Version != 1 {
		t.Error("it was applied")
	}
}
