package vaultplugin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	testTD     = "example.org"
	testTenant = "acme"
	testAgent  = "claude-code"
	jwtMount   = "auth_jwt_1"
	canary     = "canary-5f1d8a1c-value"
)

var testSPIFFE = "spiffe://" + testTD + sealed.AgentSPIFFEPath(testTenant, testAgent)

// faultStorage is an in-memory storage that can fail at any write, before or
// after it took effect, and that can be reopened as it was.
type faultStorage struct {
	logical.InmemStorage
	mu     sync.Mutex
	writes int
	fail   func(n int, key string) (before, after bool)
}

var errFault = errors.New("storage failed")

func (f *faultStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	return f.write(e.Key, func() error { return f.InmemStorage.Put(ctx, e) })
}

func (f *faultStorage) Delete(ctx context.Context, key string) error {
	return f.write(key, func() error { return f.InmemStorage.Delete(ctx, key) })
}

func (f *faultStorage) write(key string, do func() error) error {
	f.mu.Lock()
	f.writes++
	var before, after bool
	if f.fail != nil {
		before, after = f.fail(f.writes, key)
	}
	f.mu.Unlock()
	if before {
		return errFault
	}
	if err := do(); err != nil {
		return err
	}
	if after {
		return errFault
	}
	return nil
}

func (f *faultStorage) setFail(fail func(n int, key string) (before, after bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes, f.fail = 0, fail
}

func (f *faultStorage) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

// fakeSystem is Vault's identity store.
type fakeSystem struct {
	logical.StaticSystemView
	mu       sync.Mutex
	entities map[string]*logical.Entity
	groups   map[string][]string
}

func (f *fakeSystem) EntityInfo(id string) (*logical.Entity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.entities[id], nil
}

func (f *fakeSystem) GroupsForEntity(id string) ([]*logical.Group, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*logical.Group
	for _, g := range f.groups[id] {
		out = append(out, &logical.Group{ID: g, Name: g})
	}
	return out, nil
}

func (f *fakeSystem) person(id string, meta map[string]string, groups ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entities[id] = &logical.Entity{ID: id, Name: id, Metadata: meta}
	f.groups[id] = groups
}

// fakeBundle decides by a Go function.
type fakeBundle struct {
	raw    []byte
	seq    uint64
	decide func(question string, input any) sealed.Decision
}

func (f fakeBundle) Ref() sealed.BundleRef {
	sum := sha256.Sum256(f.raw)
	return sealed.BundleRef{Digest: sealed.Digest(fmt.Sprintf("%x", sum)), Sequence: f.seq}
}
func (f fakeBundle) Expires() time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }
func (f fakeBundle) IsOverlay() bool    { return bytes.HasSuffix(f.raw, []byte(" overlay")) }
func (f fakeBundle) Decide(_ context.Context, q string, in any, _ time.Time) sealed.Decision {
	return f.decide(q, in)
}

// defaultPolicy asks people by risk, and lets the group approvers vote.
func defaultPolicy(question string, input any) sealed.Decision {
	allow := sealed.Decision{Effect: sealed.EffectAllow}
	if question == sealed.QuestionApproval {
		if in := input.(sealed.ApprovalInput); slices.Contains(in.Voter.Groups, "approvers") {
			return allow
		}
		return sealed.Deny("not_an_approver", "")
	}
	in := input.(sealed.Input)
	ask := sealed.Decision{Effect: sealed.EffectRequireApproval, Reasons: []sealed.Reason{{Code: "risk"}},
		Obligations: sealed.Obligations{Approvals: sealed.ApprovalObligations{Quorum: 1, Groups: []string{"approvers"}, TTL: 600}}}
	switch {
	case !slices.Contains(in.Key.Agents, string(in.Agent.Name)):
		return sealed.Deny("agent_not_allowed", "")
	case in.Key.Risk == sealed.RiskHigh:
		return ask
	case in.Key.Risk == sealed.RiskCritical:
		ask.Obligations.Approvals.Quorum = 2
		return ask
	}
	return allow
}

// fakeDynamic is a dynamic source whose mint can be paused and whose calls
// are counted.
type fakeDynamic struct {
	mu      sync.Mutex
	minting func(handle string) error // runs inside Mint
	live    map[string]bool           // handles that exist upstream
	minted  int
	broken  bool          // Revoke fails
	ttl     time.Duration // of what is minted; 0: an hour
}

func (f *fakeDynamic) Prepare(context.Context, sealed.KeyRef) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.minted++
	return fmt.Sprintf("handle-%d", f.minted), nil
}

func (f *fakeDynamic) Mint(_ context.Context, _ sealed.KeyRef, handle string) (Minted, error) {
	f.mu.Lock()
	hook := f.minting
	f.mu.Unlock()
	if hook != nil {
		if err := hook(handle); err != nil {
			return Minted{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live[handle] = true
	return Minted{Value: secret.New([]byte("dyn-" + canary)), Handle: handle, TTL: cmp.Or(f.ttl, time.Hour)}, nil
}

func (f *fakeDynamic) Revoke(_ context.Context, handle string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return errors.New("upstream is down")
	}
	delete(f.live, handle)
	return nil
}
func (f *fakeDynamic) Check(context.Context) error { return nil }
func (f *fakeDynamic) Revocable() bool             { return true }

func (f *fakeDynamic) alive() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.live)
}

// clock only moves when it is told to.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// world is a configured mount with people, an agent and a certificate authority.
type world struct {
	t     testing.TB
	b     *backend
	s     *faultStorage
	sys   *fakeSystem
	clock *clock
	dyn   *fakeDynamic
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey
	// Set, they replace b in requests, the policy and its key; see edge_test.go.
	edge       logical.Backend
	openBundle func(context.Context, []byte, map[string]string) (Bundle, error)
	raw        []byte
	policyKey  string
	store      logical.Storage // set, it replaces s in requests
	// policies are what bundles decide, by their text.
	policies map[string]func(string, any) sealed.Decision
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		t: t, s: &faultStorage{}, clock: &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)},
		dyn: &fakeDynamic{live: map[string]bool{}}, policies: map[string]func(string, any) sealed.Decision{},
		sys: &fakeSystem{entities: map[string]*logical.Entity{}, groups: map[string][]string{},
			StaticSystemView: logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour}},
	}
	w.sys.person("op", nil, "release-eng")
	w.sys.person("ann", nil, "approvers")
	w.sys.person("bob", nil, "approvers")
	for _, id := range []string{"agent-1", "agent-2"} {
		w.sys.entities[id] = &logical.Entity{ID: id, Name: id, Aliases: []*logical.Alias{
			{Name: "mallory", MountAccessor: "auth_other"}, {Name: testSPIFFE, MountAccessor: jwtMount},
		}}
	}
	w.makeCA()
	w.open()
	w.configure()
	return w
}

// open makes a new process over the same storage.
func (w *world) open() {
	w.t.Helper()
	b, err := newBackend(Deps{
		Clock: w.clock.now,
		OpenBundle: func(ctx context.Context, raw []byte, keys map[string]string) (Bundle, error) {
			if w.openBundle != nil {
				return w.openBundle(ctx, raw, keys)
			}
			var seq uint64
			if _, err := fmt.Sscanf(string(raw), "bundle %d", &seq); err != nil {
				return nil, errors.New("not a bundle")
			}
			decide := w.policies[string(raw)]
			if decide == nil {
				decide = defaultPolicy
			}
			return fakeBundle{raw: raw, seq: seq, decide: decide}, nil
		},
		OpenSource: func(sealed.SourceConfig, *secret.Value) (Source, error) { return w.dyn, nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	b.storage = w.s
	if err := b.Setup(context.Background(), &logical.BackendConfig{
		StorageView: w.s, System: w.sys, Logger: hclog.NewNullLogger(), Config: map[string]string{},
	}); err != nil {
		w.t.Fatal(err)
	}
	w.b = b
}

func (w *world) configure() {
	w.t.Helper()
	w.must("op", "config", map[string]any{"tenant": testTenant, "trust_domain": testTD, "agent_accessor": jwtMount, "second_person": false})
	td := spiffeid.RequireTrustDomainFromString(testTD)
	bundle := spiffebundle.New(td)
	bundle.AddX509Authority(w.ca)
	bundle.SetSequenceNumber(1)
	raw, err := bundle.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	w.must("op", "config/trust-bundle", map[string]any{"bundle": string(raw)})
	der, err := x509.MarshalPKIXPublicKey(&w.caKey.PublicKey)
	if err != nil {
		w.t.Fatal(err)
	}
	pub := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	policy := "bundle 1"
	if w.raw != nil {
		pub, policy = w.policyKey, string(w.raw)
	}
	w.must("op", "config/policy-keys", map[string]any{"keys": w.json(map[string]string{"k1": pub})})
	w.policy(policy)
	w.must("op", "secrets/ci/token", map[string]any{"value": canary})
	w.must("op", "secrets/ci/weak", map[string]any{"value": "abc"})
	w.must("op", "sources/dyn", map[string]any{"source": w.json(sealed.SourceConfig{
		Name: "dyn", Type: sealed.SourceVaultDynamic, Address: "https://vault.example:8200", Mount: "pki"}), "credential": "upstream-login"})
	w.must("op", "agents/"+testAgent, map[string]any{"agent": w.json(sealed.AgentDefinition{
		Name: testAgent, Digests: []string{strings.Repeat("ab", 32)}, AgentEnv: map[string]string{"PROXY": "{proxy}"}})})
	w.must("op", "profiles/workflow/team/release", map[string]any{"profile": w.json(w.profile())})
}

func (w *world) profile() sealed.Profile {
	spec := func(source sealed.Name, path, risk string) sealed.KeySpec {
		return sealed.KeySpec{Source: source, Ref: sealed.KeyRef{Path: path}, Agents: []string{testAgent}, Risk: risk,
			Delivery: sealed.DeliveryProxy, TTL: sealed.Duration(15 * time.Minute), MaxTTL: sealed.Duration(time.Hour),
			Bindings: []sealed.Binding{{Host: "api.example.com", Methods: []string{"GET"}, Paths: []string{"/v1/**"}}}}
	}
	other := spec("builtin", "ci/token", sealed.RiskLow)
	other.Agents = []string{"codex"}
	return sealed.Profile{Name: "team/release", Level: sealed.LevelWorkflow, Requesters: sealed.Requesters{Groups: []string{"release-eng"}},
		AllowedWorkflows: []string{"release"}, Env: map[string]string{"LOG_LEVEL": "debug"}, Keys: map[sealed.KeyName]sealed.KeySpec{
			"LOW":      spec("builtin", "ci/token", sealed.RiskLow),
			"WEAK":     spec("builtin", "ci/weak", sealed.RiskLow),
			"HIGH":     spec("builtin", "ci/token", sealed.RiskHigh),
			"CRITICAL": spec("builtin", "ci/token", sealed.RiskCritical),
			"OTHER":    other,
			"DYN":      spec("dyn", "issue/ci", sealed.RiskLow),
			"DYNHIGH":  spec("dyn", "issue/ci", sealed.RiskHigh),
		}}
}

func (w *world) policy(text string) {
	w.t.Helper()
	w.must("op", "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte(text))})
}

func (w *world) json(v any) string {
	w.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

func (w *world) do(entity, accessor string, op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	req := &logical.Request{
		Operation: op, Path: path, Data: data, Storage: w.storage(), EntityID: entity, ClientTokenAccessor: accessor, DisplayName: entity,
	}
	resp, err := w.handler().HandleRequest(context.Background(), req)
	if err == nil && resp != nil && resp.IsError() {
		err = resp.Error()
	}
	if err == nil {
		checkAnswer(w.t, w.b, req, resp)
	}
	return resp, err
}

func (w *world) storage() logical.Storage {
	if w.store != nil {
		return w.store
	}
	return w.s
}

// handler is the engine that requests go to.
func (w *world) handler() logical.Backend {
	if w.edge != nil {
		return w.edge
	}
	return w.b
}

func (w *world) must(entity, path string, data map[string]any) map[string]any {
	w.t.Helper()
	resp, err := w.do(entity, "", logical.UpdateOperation, path, data)
	if err != nil {
		w.t.Fatalf("%s as %s: %v", path, entity, err)
	}
	if resp == nil {
		return nil
	}
	return resp.Data
}

// code is the HTTP status of an error at the edge; 0 without one.
func code(err error) int {
	if err == nil {
		return 0
	}
	var c logical.HTTPCodedError
	if errors.As(err, &c) {
		return c.Code()
	}
	return -1
}

func wantCode(t testing.TB, err error, want int) {
	t.Helper()
	if got := code(err); got != want {
		t.Fatalf("got status %d (%v), want %d", got, err, want)
	}
}

// ---- the certificate authority and the SVIDs

func (w *world) makeCA() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: w.clock.now().Add(-time.Hour), NotAfter: w.clock.now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: testTD}}}
	w.caKey, w.ca = key, w.certify(tmpl, tmpl, &key.PublicKey, key)
}

func (w *world) certify(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

type svid struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (w *world) svid(id string, dns ...string) svid {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		w.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: w.clock.now().Add(-time.Minute), NotAfter: w.clock.now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{u}, DNSNames: dns}
	return svid{cert: w.certify(tmpl, w.ca, &key.PublicKey, w.caKey), key: key}
}

func (w *world) ownUID() svid { return w.svid(testSPIFFE, "own-uid.isolation.sealed.internal") }

// ---- one run, as launcher and init see it

// A guest is a sealed-init.
type guest struct {
	w                *world
	run              sealed.RunID
	entity, accessor string
	key              ed25519.PrivateKey
	hpke             *secret.PrivateKey
	answer           sealed.ClaimAnswer
}

func enqueueSpec(idem string) sealed.EnqueueRequest {
	return sealed.EnqueueRequest{
		IdempotencyKey: idem, Agent: testAgent, Mode: sealed.ModeJIT, Profile: "team/release", Workflow: "release",
		Tags: []sealed.Name{"production"}, CommandDigest: sealed.CommandDigest([]string{"claude", "-p", "fix it"}),
		InputDigest:     sealed.DigestOf(sealed.DomainInput, []byte("in")),
		WorkspaceDigest: sealed.DigestOf(sealed.DomainWorkspace, []byte("ws")),
		Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID,
			Network: sealed.NetworkNone, WallTime: sealed.Duration(time.Hour)},
	}
}

func (w *world) enqueue(idem string) sealed.Enqueued {
	w.t.Helper()
	out, err := w.tryEnqueue("op", enqueueSpec(idem))
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) tryEnqueue(entity string, er sealed.EnqueueRequest) (out sealed.Enqueued, err error) {
	resp, err := w.do(entity, "acc-op", logical.UpdateOperation, "runs", map[string]any{"spec": w.json(er)})
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal([]byte(resp.Data["enqueued"].(string)), &out)
}

func goodMeasurement() sealed.Measurement {
	er := enqueueSpec("")
	return sealed.Measurement{
		InitVersion: "test", ExeDigest: strings.Repeat("ab", 32), CommandDigest: er.CommandDigest, InputDigest: er.InputDigest,
		WorkspaceDigest: er.WorkspaceDigest, TrustDigest: sealed.DigestOf(sealed.DomainTrust, nil), Backend: sealed.BackendLocal,
		PID: 1, UID: 1000, UIDMap: "1000 65536 1", Interfaces: []string{"lo"}, CapEff: "0000000000000000", CapBnd: "0000000000000000",
		NoNewPrivs: true, Seccomp: 2, RootReadOnly: true, Writable: []string{"/work", "/tmp"},
	}
}

func (w *world) guest(q sealed.Enqueued, entity, accessor string) *guest {
	w.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	hpke, err := secret.GenerateKey()
	if err != nil {
		w.t.Fatal(err)
	}
	return &guest{w: w, run: q.Run, entity: entity, accessor: accessor, key: key, hpke: hpke}
}

// claimDoc makes a claim; change may spoil the document before it is signed,
// spoil the request after.
func (g *guest) claimDoc(ticket string, sv svid, change func(*sealed.Claim), spoil func(*sealed.ClaimRequest)) sealed.ClaimRequest {
	c := sealed.Claim{
		Run: g.run, Ticket: ticket, RunKey: base64.StdEncoding.EncodeToString(g.key.Public().(ed25519.PublicKey)),
		HPKEKey: g.hpke.Public(), Nonce: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)), Measurement: goodMeasurement(),
	}
	if change != nil {
		change(&c)
	}
	payload := []byte(g.w.json(c))
	msg := sealed.SigningBytes(sealed.DomainClaim, payload)
	sum := sha256.Sum256(msg)
	sig, err := ecdsa.SignASN1(rand.Reader, sv.key, sum[:])
	if err != nil {
		g.w.t.Fatal(err)
	}
	cr := sealed.ClaimRequest{
		Payload: string(payload), SVID: []string{base64.StdEncoding.EncodeToString(sv.cert.Raw)},
		SVIDSignature: base64.StdEncoding.EncodeToString(sig),
		RunSignature:  base64.StdEncoding.EncodeToString(ed25519.Sign(g.key, msg)),
	}
	if spoil != nil {
		spoil(&cr)
	}
	return cr
}

func (g *guest) sendClaim(cr sealed.ClaimRequest) error {
	resp, err := g.w.do(g.entity, g.accessor, logical.UpdateOperation, "runs/"+string(g.run)+"/claim", map[string]any{"claim": g.w.json(cr)})
	if err != nil {
		return err
	}
	return g.openAnswer(resp, &g.answer)
}

func (g *guest) openAnswer(resp *logical.Response, v any) error {
	keys, err := g.w.b.engineKeys(context.Background(), g.w.s)
	if err != nil {
		return err
	}
	var signed sealed.Signed
	if err := json.Unmarshal([]byte(resp.Data["answer"].(string)), &signed); err != nil {
		return err
	}
	return signed.Open(sealed.DomainAnswer, keys.answer.Public().(ed25519.PublicKey), v)
}

// claimed enqueues and claims a run.
func (w *world) claimed(idem string) *guest {
	w.t.Helper()
	q := w.enqueue(idem)
	g := w.guest(q, "agent-1", "acc-"+idem)
	if err := g.sendClaim(g.claimDoc(q.Ticket, w.ownUID(), nil, nil)); err != nil {
		w.t.Fatal(err)
	}
	return g
}

func (g *guest) path(sub string) string { return "runs/" + string(g.run) + "/" + sub }

// call signs doc and sends it to a path of the run.
func (g *guest) call(sub string, doc any) (*logical.Response, error) {
	return g.callAs(g.entity, g.accessor, g.key, g.path(sub), doc)
}

func (g *guest) callAs(entity, accessor string, key ed25519.PrivateKey, path string, doc any) (*logical.Response, error) {
	signed, err := sealed.Sign(sealed.DomainRequest, doc, key)
	if err != nil {
		return nil, err
	}
	op := logical.Operation(logical.UpdateOperation)
	if strings.Contains(path, "/creds/") || strings.HasSuffix(path, "/watch") {
		op = logical.ReadOperation
	}
	return g.w.do(entity, accessor, op, path, map[string]any{"request": g.w.json(signed)})
}

func (g *guest) creds(key, idem string) (sealed.CredsAnswer, *logical.Response, error) {
	var a sealed.CredsAnswer
	resp, err := g.call("creds/"+key, sealed.CredsRequest{Run: g.run, Path: g.path("creds/" + key), Idempotency: idem, Delivery: sealed.DeliveryProxy})
	if err != nil {
		return a, nil, err
	}
	return a, resp, g.openAnswer(resp, &a)
}

func (g *guest) confirm(a sealed.CredsAnswer) error {
	resp, err := g.call("confirm", sealed.ConfirmRequest{Run: g.run, Path: g.path("confirm"), Grant: a.Grant,
		LeaseID: "sealed/" + g.path("creds/"+string(a.Key)) + "/lease1", Epoch: a.Epoch})
	if err != nil {
		return err
	}
	return g.openAnswer(resp, &sealed.ConfirmAnswer{})
}

func (g *guest) value(a sealed.CredsAnswer) string {
	g.w.t.Helper()
	v, err := g.hpke.Open(secret.Context{Run: string(a.Run), Grant: string(a.Grant), Key: string(a.Key)}, a.Ciphertext)
	if err != nil {
		g.w.t.Fatal(err)
	}
	var out string
	_ = v.Reveal(func(b []byte) error { out = string(b); return nil })
	return out
}

func (g *guest) watch(epoch uint64) sealed.WatchAnswer {
	g.w.t.Helper()
	resp, err := g.call("watch", sealed.WatchRequest{Run: g.run, Path: g.path("watch"), Epoch: epoch})
	if err != nil {
		g.w.t.Fatal(err)
	}
	var a sealed.WatchAnswer
	if err := g.openAnswer(resp, &a); err != nil {
		g.w.t.Fatal(err)
	}
	return a
}

// view reads an approval.
func (w *world) view(id sealed.ApprovalID) sealed.ApprovalView {
	w.t.Helper()
	resp, err := w.do("op", "", logical.ReadOperation, "approvals/"+string(id), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	var v sealed.ApprovalView
	if err := json.Unmarshal([]byte(resp.Data["approval"].(string)), &v); err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) vote(entity string, id sealed.ApprovalID, verb string) error {
	w.t.Helper()
	_, err := w.do(entity, "", logical.UpdateOperation, "approvals/"+string(id)+"/"+verb, map[string]any{"digest": string(w.view(id).Digest)})
	return err
}

// pendingID asks for a key and returns the approval that is pending.
func (g *guest) pendingID(key, idem string) sealed.ApprovalID {
	g.w.t.Helper()
	_, _, err := g.creds(key, idem)
	wantCode(g.w.t, err, 428)
	return sealed.ApprovalID(err.Error()[len(err.Error())-26:])
}

func (w *world) revoke(kind, target string, hard bool) map[string]any {
	w.t.Helper()
	return w.must("op", "revocations", map[string]any{"kind": kind, "target": target, "hard": hard, "reason": "test"})
}

// logged returns the types of all entries with what their bodies say.
func (w *world) logged() []string {
	w.t.Helper()
	l, err := w.b.auditLog(context.Background(), w.s)
	if err != nil {
		w.t.Fatal(err)
	}
	entries, err := l.Entries(context.Background(), 0, 10000)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Leaf.Type+" "+string(e.Side.Body))
	}
	return out
}

func (w *world) wantEntry(parts ...string) {
	w.t.Helper()
	if !slices.ContainsFunc(w.logged(), func(line string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) })
	}) {
		w.t.Fatalf("no entry with %q in the log", parts)
	}
}

// idem makes an idempotency key.
func idem(n int) string { return fmt.Sprintf("idempotency-%06d", n) }
