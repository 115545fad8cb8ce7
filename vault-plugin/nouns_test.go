package vaultplugin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const deskCanary = "canary-7b1e-do-not-show"

// A desk is a mount as the people see who configure it: real engine, in-memory
// storage that can be made to fail, an identity store, a clock.
type desk struct {
	t        *testing.T
	b        *backend
	s        *deskStorage
	entities map[string]*logical.Entity
	now      time.Time
	policies map[string]deskBundle // by raw bytes
	opened   []string              // credentials that sources were opened with
}

type deskStorage struct {
	logical.InmemStorage
	mu   sync.Mutex
	fail func(op, key string) error
}

func (s *deskStorage) check(op, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		return nil
	}
	return s.fail(op, key)
}

func (s *deskStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	if err := s.check("put", e.Key); err != nil {
		return err
	}
	return s.InmemStorage.Put(ctx, e)
}

func (s *deskStorage) Delete(ctx context.Context, key string) error {
	if err := s.check("delete", key); err != nil {
		return err
	}
	return s.InmemStorage.Delete(ctx, key)
}

type deskSystem struct {
	logical.StaticSystemView
	d *desk
}

func (s deskSystem) EntityInfo(id string) (*logical.Entity, error) { return s.d.entities[id], nil }
func (s deskSystem) GroupsForEntity(string) ([]*logical.Group, error) {
	return []*logical.Group{{Name: "zeta"}, {Name: "alpha"}}, nil
}

// deskBundle is a policy that always says the same.
type deskBundle struct {
	ref     sealed.BundleRef
	expires time.Time
	effect  sealed.Effect
}

func (b deskBundle) Ref() sealed.BundleRef { return b.ref }
func (b deskBundle) Expires() time.Time    { return b.expires }
func (b deskBundle) IsOverlay() bool       { return false }
func (b deskBundle) Decide(context.Context, string, any, time.Time) sealed.Decision {
	return sealed.Decision{Effect: b.effect}
}

// deskSource checks out only with the right credential.
type deskSource struct {
	builtinSource
	err error
}

func (s deskSource) Check(context.Context) error { return s.err }

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, s: &deskStorage{}, now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), policies: map[string]deskBundle{}}
	d.entities = map[string]*logical.Entity{"ann": {ID: "ann", Name: "Ann"}}
	d.open()
	return d
}

// open makes a new process over the same storage.
func (d *desk) open() {
	d.t.Helper()
	b, err := newBackend(Deps{
		Clock: func() time.Time { return d.now },
		OpenBundle: func(_ context.Context, raw []byte, keys map[string]string) (Bundle, error) {
			if bundle, ok := d.policies[string(raw)]; ok && keys["k1"] != "" {
				return bundle, nil
			}
			return nil, errors.New("signature does not verify")
		},
		OpenSource: func(_ sealed.SourceConfig, cred *secret.Value) (Source, error) {
			_ = cred.Reveal(func(b []byte) error { d.opened = append(d.opened, string(b)); return nil })
			return deskSource{}, nil
		},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	b.storage = d.s
	err = b.Setup(context.Background(), &logical.BackendConfig{StorageView: d.s, System: deskSystem{d: d}, Logger: hclog.NewNullLogger()})
	if err != nil {
		d.t.Fatal(err)
	}
	d.b = b
}

func (d *desk) request(op logical.Operation, path string, data map[string]any) (map[string]any, error) {
	req := &logical.Request{Operation: op, Path: path, Data: data, Storage: d.s, EntityID: "ann"}
	resp, err := d.b.HandleRequest(context.Background(), req)
	if err == nil && resp.IsError() {
		err = resp.Error()
	}
	if err == nil {
		checkAnswer(d.t, d.b, req, resp)
	}
	if resp == nil {
		return nil, err
	}
	return resp.Data, err
}

func (d *desk) write(path string, data map[string]any) map[string]any {
	d.t.Helper()
	out, err := d.request(logical.UpdateOperation, path, data)
	if err != nil {
		d.t.Fatalf("writing %s: %v", path, err)
	}
	return out
}

func (d *desk) read(path string) map[string]any {
	d.t.Helper()
	out, err := d.request(logical.ReadOperation, path, nil)
	if err != nil {
		d.t.Fatalf("reading %s: %v", path, err)
	}
	return out
}

// refused writes and wants an HTTP status and a text, and nothing written but
// what the log may hold.
func (d *desk) refused(status int, want, path string, data map[string]any) {
	d.t.Helper()
	before := d.dump()
	_, err := d.request(logical.UpdateOperation, path, data)
	var coded logical.HTTPCodedError
	if !errors.As(err, &coded) || coded.Code() != status || !strings.Contains(err.Error(), want) {
		d.t.Errorf("writing %s: got %v, want %d with %q", path, err, status, want)
	}
	if diff := cmp.Diff(before, d.dump()); diff != "" {
		d.t.Errorf("writing %s was refused and yet wrote: %s", path, diff)
	}
}

// dump is everything in storage but the log.
func (d *desk) dump() map[string]string {
	d.t.Helper()
	keys, err := logical.CollectKeys(context.Background(), d.s)
	if err != nil {
		d.t.Fatal(err)
	}
	out := map[string]string{}
	for _, k := range keys {
		if strings.HasPrefix(k, storeLog) {
			continue
		}
		e, err := d.s.Get(context.Background(), k)
		if err != nil {
			d.t.Fatal(err)
		}
		out[k] = string(e.Value)
	}
	return out
}

func (d *desk) corrupt(key string) {
	d.t.Helper()
	if err := d.s.Put(context.Background(), &logical.StorageEntry{Key: key, Value: []byte(`{"broken`)}); err != nil {
		d.t.Fatal(err)
	}
	d.b.dropNouns(context.Background())
}

// entries are the lines of the log of one type.
func (d *desk) entries(typ string) []string {
	d.t.Helper()
	out, err := d.request(logical.ReadOperation, "log/entries", map[string]any{"type": typ, "limit": 1000})
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(out["entries"].(string), "\n"), "\n")
}

func (d *desk) configure() {
	d.t.Helper()
	d.write("config", map[string]any{"tenant": "acme", "trust_domain": "example.org", "agent_accessor": "acc_agents", "second_person": false})
}

func doc(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestConfig(t *testing.T) {
	d := newDesk(t)
	if out := d.read("config"); out != nil {
		t.Errorf("before the first write: %v", out)
	}
	good := map[string]any{"tenant": "acme", "trust_domain": "example.org", "agent_accessor": "acc_agents", "second_person": false}
	with := func(k string, v any) map[string]any {
		m := map[string]any{k: v}
		for name, x := range good {
			if name != k {
				m[name] = x
			}
		}
		return m
	}
	d.refused(400, "tenant", "config", with("tenant", "Acme"))
	d.refused(400, "trust_domain", "config", with("trust_domain", "spiffe://example.org"))
	d.refused(400, "embedded", "config", with("trust_domain", sealed.ReservedTrustDomain)) // R25
	d.refused(400, "agent_accessor", "config", with("agent_accessor", ""))
	d.refused(400, "freeze_after", "config", with("freeze_after", "soon"))
	d.refused(400, "stop_after", "config", with("stop_after", "1s"))
	d.refused(400, "detect", "config", with("detect", "everything"))
	d.refused(400, "detect", "config", with("detect", "credentials,credentials"))
	d.refused(400, "unknown field", "config", with("tenent", "acme"))
	d.refused(503, "not configured", "secrets/a", map[string]any{"value": "x"})
	out := d.write("config", good)
	again := d.read("config")
	if again["answer_key"] != out["answer_key"] || again["log_key"] != out["log_key"] || again["stop_after"] != "1m0s" {
		t.Errorf("read %v after %v", again, out)
	}
	if !strings.HasPrefix(again["log_key"].(string), "sealed.dev/log/acme/") {
		t.Errorf("log key %v", again["log_key"])
	}
	d.refused(400, "tenant", "config", map[string]any{"tenant": "other"})
	d.refused(400, "trust_domain", "config", map[string]any{"trust_domain": "other.org"})
	d.refused(400, "allow_embedded", "config", map[string]any{"allow_embedded": true})
	d.write("config", map[string]any{"person_claim": "mail", "silent_after": "20s"})
	lines := d.entries("config.changed")
	if len(lines) != 2 || !strings.Contains(lines[1], `"fields":["person_claim","silent_after"]`) {
		t.Errorf("log: %q", lines)
	}
	d.open() // restart: same keys
	if got := d.read("config"); got["answer_key"] != out["answer_key"] || got["person_claim"] != "mail" {
		t.Errorf("after restart: %v", got)
	}
	var keys storedKeys
	if ok, err := get(context.Background(), d.s, storeKeys, &keys); err != nil || !ok {
		t.Fatal(ok, err)
	}
	for _, private := range []string{keys.LogSigner, base64.StdEncoding.EncodeToString(keys.AnswerSeed), hex.EncodeToString(keys.AnswerSeed)} {
		if strings.Contains(fmt.Sprint(again, out), private) {
			t.Error("a private key was shown")
		}
	}
}

// TestConfigInterrupted fails the first configuration at each of its writes:
// the same write made again succeeds, with one pair of keys.
func TestConfigInterrupted(t *testing.T) {
	for n := range 3 {
		d := newDesk(t)
		i := 0
		d.s.fail = func(string, string) error {
			if i++; i == n+1 {
				return errors.New("storage failed")
			}
			return nil
		}
		_, err := d.request(logical.UpdateOperation, "config", map[string]any{"tenant": "acme", "trust_domain": "example.org", "agent_accessor": "a", "second_person": false})
		if err == nil {
			t.Fatalf("write %d failed unnoticed", n)
		}
		d.s.fail = nil
		if n > 0 {
			d.refused(400, "another tenant", "config", map[string]any{"tenant": "evil", "trust_domain": "example.org", "agent_accessor": "a", "second_person": false})
		}
		d.open()
		d.configure()
	}
}

func TestEmbedded(t *testing.T) { // R25
	d := newDesk(t)
	d.write("config", map[string]any{"tenant": "acme", "trust_domain": sealed.ReservedTrustDomain, "allow_embedded": true, "agent_accessor": "a", "second_person": false})
	if got := d.read("config"); got["allow_embedded"] != true {
		t.Error(got)
	}
}

// TestWrongTypeIsNotQuoted (F17): a value in a field of the wrong shape does
// not come back in the error. The control is the framework's own answer.
func TestWrongTypeIsNotQuoted(t *testing.T) {
	d := newDesk(t)
	d.configure()
	req := func() *logical.Request {
		return &logical.Request{Operation: logical.UpdateOperation, Path: "secrets/a", Storage: d.s, Data: map[string]any{"value": map[string]any{"x": deskCanary}}}
	}
	_, err := d.b.HandleRequest(context.Background(), req())
	if err == nil || strings.Contains(err.Error(), deskCanary) || !strings.Contains(err.Error(), "field value") {
		t.Errorf("got %v", err)
	}
	t.Run("control off", func(t *testing.T) {
		resp, err := d.b.Backend.HandleRequest(context.Background(), req())
		if err != nil || !strings.Contains(fmt.Sprint(resp.Data), deskCanary) {
			t.Errorf("the framework no longer quotes the value (%v, %v): the control can go", resp, err)
		}
	})
}

// TestCorruptStorage (F15): what does not decode is an error, never a zero value.
func TestCorruptStorage(t *testing.T) {
	for _, tt := range []struct{ key, path string }{
		{storeConfig, "config"},
		{storeKeys, "config"},
		{storeTrustBundle, "config/trust-bundle"},
		{storePolicy, "policy"},
		{storePolicyKeys, "config/policy-keys"},
		{storeSources + "kv", "sources/kv"},
		{storeSourceCreds + "kv", "sources/kv"},
		{storeSecretMeta + "a/b", "secrets/a/b"},
		{storeAgents + "codex", "agents/codex"},
		{storeProfiles + "system/p/current", "profiles/system/p"},
		{storeProfiles + "system/p/1", "profiles/system/p"},
		{storeRevocations + "01ARZ3NDEKTSV4RRFFQ69G5FAV", "revocations/01ARZ3NDEKTSV4RRFFQ69G5FAV"},
	} {
		d := newDesk(t)
		d.configure()
		d.catalog()
		d.corrupt(tt.key)
		if out, err := d.request(logical.ReadOperation, tt.path, nil); err == nil {
			t.Errorf("%s corrupt: %s answers %v", tt.key, tt.path, out)
		}
	}
	d := newDesk(t)
	d.configure()
	d.corrupt(storeRevocations + "01ARZ3NDEKTSV4RRFFQ69G5FAV")
	if _, err := d.b.revoked(context.Background(), d.s, sealed.Subject{Tenant: "acme"}); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("a revocation that can't be read stops nothing: %v", err)
	}
}

// trustDocument makes a SPIFFE bundle document; sequence 0 means none.
func trustDocument(t *testing.T, seq uint64, cas ...*x509.Certificate) string {
	t.Helper()
	bundle := spiffebundle.New(spiffeid.RequireTrustDomainFromString("example.org"))
	for _, ca := range cas {
		bundle.AddX509Authority(ca)
	}
	if seq > 0 {
		bundle.SetSequenceNumber(seq)
	}
	raw, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func newCA(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestTrustBundle(t *testing.T) {
	d := newDesk(t)
	a, z := newCA(t), newCA(t)
	d.refused(503, "not configured", "config/trust-bundle", map[string]any{"bundle": trustDocument(t, 5, a)})
	d.configure()
	if _, err := d.b.trustBundle(context.Background(), d.s); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("no bundle yet: %v", err)
	}
	d.refused(400, "wants a bundle", "config/trust-bundle", nil)
	d.refused(400, "not a SPIFFE bundle", "config/trust-bundle", map[string]any{"bundle": "{"})
	d.refused(400, "spiffe_sequence", "config/trust-bundle", map[string]any{"bundle": trustDocument(t, 0, a)})
	d.refused(400, "bundle", "config/trust-bundle", map[string]any{"bundle": trustDocument(t, 5)})
	d.write("config/trust-bundle", map[string]any{"bundle": trustDocument(t, 5, a)})
	d.write("config/trust-bundle", map[string]any{"bundle": trustDocument(t, 5, a)}) // the same again
	d.refused(409, "below", "config/trust-bundle", map[string]any{"bundle": trustDocument(t, 4, a)})
	d.refused(409, "other content", "config/trust-bundle", map[string]any{"bundle": trustDocument(t, 5, a, z)})
	d.write("config/trust-bundle", map[string]any{"bundle": trustDocument(t, 6, a, z)})
	got, err := d.b.trustBundle(context.Background(), d.s)
	if err != nil || len(got.X509Authorities()) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if n := len(d.entries("trust.changed")); n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
	d.refused(400, "https", "config/trust-bundle", map[string]any{"endpoint": "http://x/", "ca": "x"})
	d.refused(400, "PEM", "config/trust-bundle", map[string]any{"endpoint": "https://x/", "ca": "x"})
	d.refused(400, "ca", "config/trust-bundle", map[string]any{"bundle": trustDocument(t, 7, a), "ca": "x"})
}

// TestTrustRefresh serves the bundle over https with a pinned CA.
func TestTrustRefresh(t *testing.T) {
	d := newDesk(t)
	d.configure()
	a, z := newCA(t), newCA(t)
	served := trustDocument(t, 1, a)
	var mu sync.Mutex
	srv := newTLSServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if served == "redirect" {
			http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusFound)
			return
		}
		_, _ = w.Write([]byte(served))
	})
	serve := func(s string) { mu.Lock(); served = s; mu.Unlock() }
	pinned := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	d.write("config/trust-bundle", map[string]any{"endpoint": srv.URL, "ca": pinned})
	sequence := func() string { return d.read("config/trust-bundle")["sequence"].(string) }
	d.b.housekeep(context.Background())
	if got := sequence(); got != "1" {
		t.Fatalf("not fetched: sequence %s", got)
	}
	serve(trustDocument(t, 2, a, z))
	d.b.housekeep(context.Background())
	if got := sequence(); got != "1" {
		t.Error("refreshed again within 30 s")
	}
	d.now = d.now.Add(trustEvery)
	d.b.housekeep(context.Background())
	if got := sequence(); got != "2" {
		t.Errorf("sequence %s after a rotation, want 2", got)
	}
	for _, bad := range []string{trustDocument(t, 1, a), trustDocument(t, 2, z), "redirect", strings.Repeat("x", maxTrustBundle+1)} {
		serve(bad)
		if err := d.b.refreshTrustBundle(context.Background()); err == nil || sequence() != "2" {
			t.Errorf("accepted a bundle that rolls back or is no bundle (%.20q): %v", bad, err)
		}
	}
	serve(trustDocument(t, 3, a))
	other := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw}))
	d.write("config/trust-bundle", map[string]any{"endpoint": srv.URL, "ca": other})
	if err := d.b.refreshTrustBundle(context.Background()); err == nil || sequence() != "2" {
		t.Errorf("fetched from a server that the pinned CA did not sign: %v", err)
	}
}

func newPolicyKey(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func signKeys(t *testing.T, key *ecdsa.PrivateKey, version int, keys string) string {
	t.Helper()
	sum := sha256.Sum256(sealed.PolicyKeysMessage("acme", version, keys))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}

func TestPolicyKeys(t *testing.T) {
	d := newDesk(t)
	d.configure()
	key, pub := newPolicyKey(t)
	evil, evilPub := newPolicyKey(t)
	one := doc(t, map[string]string{"k1": pub})
	two := doc(t, map[string]string{"k1": pub, "k2": evilPub})
	d.refused(400, "1 to 16", "config/policy-keys", map[string]any{"keys": "{}"})
	d.refused(400, "P-256", "config/policy-keys", map[string]any{"keys": `{"k1":"` + deskCanary + `"}`})
	d.refused(400, "name", "config/policy-keys", map[string]any{"keys": doc(t, map[string]string{"../k": pub})})
	d.write("config/policy-keys", map[string]any{"keys": one}) // the first is free
	d.refused(400, "signed_by", "config/policy-keys", map[string]any{"keys": two})
	d.refused(400, "signed_by", "config/policy-keys", map[string]any{"keys": two, "signed_by": "k2", "signature": signKeys(t, evil, 2, two)})
	d.refused(400, "signature", "config/policy-keys", map[string]any{"keys": two, "signed_by": "k1", "signature": signKeys(t, evil, 2, two)})
	d.refused(400, "signature", "config/policy-keys", map[string]any{"keys": two, "signed_by": "k1", "signature": signKeys(t, key, 9, two)})
	signed := map[string]any{"keys": two, "signed_by": "k1", "signature": signKeys(t, key, 2, two)}
	d.write("config/policy-keys", signed)
	d.write("config/policy-keys", map[string]any{"keys": one}) // removing is free
	d.refused(400, "signature", "config/policy-keys", signed)  // and can't be undone by a replay
	d.refused(400, "1 to 16", "config/policy-keys", map[string]any{"keys": "{}"})
}

func (d *desk) bundle(text string, seq uint64, effect sealed.Effect) string {
	sum := sha256.Sum256([]byte(text))
	d.policies[text] = deskBundle{ref: sealed.BundleRef{Digest: sealed.Digest(hex.EncodeToString(sum[:])), Sequence: seq}, expires: d.now.Add(time.Hour), effect: effect}
	return base64.StdEncoding.EncodeToString([]byte(text))
}

func TestPolicy(t *testing.T) {
	d := newDesk(t)
	d.configure()
	ctx := context.Background()
	if out := d.read("policy"); out != nil {
		t.Error(out)
	}
	if _, err := d.b.currentRules(ctx, d.s); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("no bundle: %v", err)
	}
	big := strings.Repeat("five", 200_000) // more than one part
	five := d.bundle(big, 5, sealed.EffectAllow)
	d.refused(400, "policy-keys", "policy", map[string]any{"bundle": five})
	_, pub := newPolicyKey(t)
	d.write("config/policy-keys", map[string]any{"keys": doc(t, map[string]string{"k1": pub})})
	d.write("policy", map[string]any{"bundle": five})
	d.write("policy", map[string]any{"bundle": five}) // the same again changes nothing
	d.refused(400, "base64", "policy", map[string]any{"bundle": "%"})
	d.refused(400, "does not verify", "policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString([]byte("unsigned"))}) // E06
	d.refused(400, "below the floor", "policy", map[string]any{"bundle": d.bundle("four", 4, sealed.EffectAllow)})               // E10
	d.refused(400, "another digest", "policy", map[string]any{"bundle": d.bundle("five'", 5, sealed.EffectAllow)})               // E10
	stale := d.bundle("six", 6, sealed.EffectAllow)
	d.now = d.now.Add(2 * time.Hour)
	d.refused(400, "expired", "policy", map[string]any{"bundle": stale}) // E11
	d.write("policy", map[string]any{"bundle": d.bundle("seven", 7, sealed.EffectDeny)})
	if got := d.entries("bundle.activated"); len(got) != 2 {
		t.Errorf("%q", got)
	}
	rejected := strings.Join(d.entries("bundle.rejected"), "\n")
	for _, why := range []string{"no_keys", "not_verified", "older", "same_sequence", "expired"} {
		if !strings.Contains(rejected, `"why":"`+why+`"`) {
			t.Errorf("no entry says %s", why)
		}
	}
	d.open()
	out := d.write("policy/decide", map[string]any{"input": `{}`})
	if !strings.Contains(out["decision"].(string), `"deny"`) {
		t.Errorf("decision %v", out)
	}
	d.refused(400, "unknown field", "policy/decide", map[string]any{"input": `{"x":1}`})
	five5 := digestOfBundle([]byte(big))
	if b, err := d.b.bundleByDigest(ctx, d.s, five5); err != nil || b.Ref().Sequence != 5 {
		t.Errorf("the previous bundle is gone: %v", err)
	}
	d.write("policy", map[string]any{"bundle": d.bundle("eight", 8, sealed.EffectDeny)})
	if err := d.b.sweepBundles(ctx, d.s); err != nil {
		t.Fatal(err)
	}
	d.open()
	if _, err := d.b.bundleByDigest(ctx, d.s, five5); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("a bundle that nobody pins was kept: %v", err)
	}
}

// TestStoredBundleTampered (E16).
func TestStoredBundleTampered(t *testing.T) {
	d := newDesk(t)
	d.configure()
	_, pub := newPolicyKey(t)
	d.write("config/policy-keys", map[string]any{"keys": doc(t, map[string]string{"k1": pub})})
	d.write("policy", map[string]any{"bundle": d.bundle("good", 1, sealed.EffectDeny)})
	d.bundle("evil", 1, sealed.EffectAllow)
	key := partKey(digestOfBundle([]byte("good")), 0)
	e, err := d.s.Get(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	evil := bytes.Replace(e.Value, []byte(base64.StdEncoding.EncodeToString([]byte("good"))), []byte(base64.StdEncoding.EncodeToString([]byte("evil"))), 1)
	if err := d.s.Put(context.Background(), &logical.StorageEntry{Key: key, Value: evil}); err != nil {
		t.Fatal(err)
	}
	d.open()
	if b, err := d.b.currentRules(context.Background(), d.s); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("got %v, %v", b, err)
	}
}
