package sandboxinit

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	testRun     = sealed.RunID("01JAAAAAAAAAAAAAAAAAAAAAAA")
	testSPIFFE  = "spiffe://embedded.sealed.invalid/sealed/tenant/acme/agent/codex"
	valueCanary = "cnry_value_4f9a0b7c1d2e8f3a5b6c7d8e9f0a1b2c"
	jwtCanary   = "cnry_jwt_ZXlKaGJHY2lPaUpGVXpJMU5pSjkuZQ"
	ticket      = "cnry_ticket_9d8c7b6a5f4e3d2c1b0a"
	tokenCanary = "cnry_token_hvs.0a1b2c3d4e5f6a7b8c9d"
	boundHost   = "api.bound.test"
	testEvery   = 3750 * time.Millisecond // a quarter of the engine's default for silence
)

// noLeak fails if text that leaves init holds a credential or a value.
func noLeak(t *testing.T, what, text string) {
	t.Helper()
	for _, canary := range []string{valueCanary, jwtCanary, ticket, tokenCanary} {
		if strings.Contains(text, canary) {
			t.Errorf("%s holds %s: %s", what, canary[:10], text)
		}
	}
}

// A call is one request as the double got it.
type call struct {
	path, token string
	payload     string // of the signed request, or the body
}

// An engineDouble stands in for Vault with the sealed engine. It speaks the
// engine's wire shapes with real keys: it verifies the signatures of the claim
// and of every request, signs its answers, and seals values to the run's key.
// It decides nothing; tests change what it answers.
type engineDouble struct {
	t         *testing.T
	answerPub ed25519.PublicKey
	answerKey ed25519.PrivateKey
	id        *identity

	// Hooks, set before the first call.
	before  func(w http.ResponseWriter, r *http.Request, verb string, n int) bool // true: answered; n counts calls of the verb from 1
	claimed func(*sealed.ClaimAnswer)
	creds   func(*sealed.CredsAnswer)
	confirm func(*sealed.ConfirmAnswer)
	watch   func(*sealed.WatchAnswer)
	clock   func() time.Time // nil: time.Now

	hostWatch func(sealed.HostWatchRequest) // waits as the engine would
	more      func(*sealed.MoreAnswer)
	lease     func(key string) string
	value     func(key string) string

	mu     sync.Mutex
	runKey ed25519.PublicKey
	hpke   string
	calls  []call
	counts map[string]int
	grants int
	bytes  int // of request bodies
}

func newDouble(t *testing.T) *engineDouble {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, cert := newLeaf(t, nil, nil, "svid")
	d := &engineDouble{
		t: t, answerPub: pub, answerKey: priv, counts: map[string]int{},
		id: &identity{jwt: jwtCanary, svid: &x509svid.SVID{ID: spiffeid.RequireFromString(testSPIFFE), Certificates: []*x509.Certificate{cert}, PrivateKey: key}},
	}
	d.lease = func(key string) string { return "sealed/runs/" + string(testRun) + "/creds/" + key + "/lease" }
	d.value = func(string) string { return valueCanary }
	return d
}

// newLeaf makes a certificate: self-signed and a CA without a parent.
func newLeaf(t *testing.T, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, names ...string) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if parent == nil {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// trust is a trust file that names the double's answer key and the given CA.
func (d *engineDouble) trust(ca string) sealed.TrustFile {
	return sealed.TrustFile{
		V: 1, Tenant: "acme", TrustDomain: sealed.ReservedTrustDomain, VaultAddr: "https://vault.test:8200", VaultCA: ca,
		VaultMount: "sealed", AuthMount: "auth/jwt", AuthRole: "sealed-agent", Audience: "vault",
		AnswerKey: base64.StdEncoding.EncodeToString(d.answerPub), SPIFFESocket: "/run/spire.sock", UpstreamRoots: ca,
	}
}

// serveTLS serves the double over TLS 1.3 under a CA of its own.
func (d *engineDouble) serveTLS() (ca string, dial dialFunc) {
	d.t.Helper()
	caKey, caCert := newLeaf(d.t, nil, nil, "test CA")
	key, cert := newLeaf(d.t, caCert, caKey, "vault.test")
	srv := httptest.NewUnstartedServer(d)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	srv.Config.ErrorLog = quiet()
	srv.StartTLS()
	d.t.Cleanup(srv.Close)
	addr := srv.Listener.Addr().String()
	return pemOf(caCert), func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) }
}

// RoundTrip serves a request in the caller's goroutine, with no network, so
// that it works under a fake clock.
func (d *engineDouble) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// direct is an engine client that calls the double without a network.
func (d *engineDouble) direct() *engine {
	return &engine{http: &http.Client{Transport: d, Timeout: 20 * time.Second}, base: "https://vault.test/v1/", mount: "sealed"}
}

func testBoot() sealed.Boot {
	return sealed.Boot{Run: testRun, Ticket: ticket, Argv: []string{"codex", "exec"}}
}

func testMeasurement() sealed.Measurement {
	return sealed.Measurement{CommandDigest: sealed.CommandDigest(testBoot().Argv)}
}

// session logs in and claims the run.
func (d *engineDouble) session() *session {
	d.t.Helper()
	e, t := d.direct(), d.trust("unused")
	ttl, err := e.login(d.t.Context(), t, jwtCanary)
	if err != nil {
		d.t.Fatal(err)
	}
	s, err := claim(d.t.Context(), e, t, d.id, testBoot(), testMeasurement())
	if err != nil {
		d.t.Fatal(err)
	}
	s.tokenTTL = ttl
	return s
}

func (d *engineDouble) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body []byte
	if r.Body != nil { // direct has none of a read
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
	}
	came := d.now()
	p := strings.TrimPrefix(r.URL.Path, "/v1/")
	verb := strings.TrimPrefix(p, "sealed/runs/"+string(testRun)+"/")
	verb, key, _ := strings.Cut(verb, "/")
	if !strings.HasPrefix(p, "sealed/") {
		verb = p[strings.LastIndex(p, "/")+1:]
	}
	d.mu.Lock()
	d.bytes += len(body)
	d.counts[verb]++
	n := d.counts[verb]
	if q := r.URL.Query(); r.Method == http.MethodGet { // what the field of a body is elsewhere
		body, _ = json.Marshal(map[string]string{"request": q.Get("request"), "watch": q.Get("watch")})
	}
	if reads := verb == "creds" || verb == "watch" || verb == "sealed"; reads != (r.Method == http.MethodGet) {
		d.t.Errorf("%s %s", r.Method, p)
	}
	payload := d.opened(verb, strings.TrimPrefix(p, "sealed/"), body)
	d.calls = append(d.calls, call{p, r.Header.Get("X-Vault-Token"), payload})
	d.mu.Unlock()
	if d.before != nil && d.before(w, r, verb, n) {
		return
	}
	d.answer(w, verb, key, payload, came)
}

func (d *engineDouble) now() time.Time {
	if d.clock != nil {
		return d.clock().UTC()
	}
	return time.Now().UTC()
}

// opened checks the signatures of a request and returns its payload.
func (d *engineDouble) opened(verb, path string, body []byte) string {
	var in struct{ Claim, Request string }
	if json.Unmarshal(body, &in) != nil || in.Claim == "" && in.Request == "" {
		return string(body)
	}
	if verb == "claim" {
		return d.openClaim(in.Claim)
	}
	var signed sealed.Signed
	var at struct{ Run, Path string }
	if err := sealed.Decode([]byte(in.Request), sealed.MaxDocument, &signed); err != nil {
		d.t.Errorf("%s: %v", path, err)
	}
	if !ed25519.Verify(d.runKey, sealed.SigningBytes(sealed.DomainRequest, []byte(signed.Payload)), unbase64(signed.Signature)) {
		d.t.Errorf("%s: not signed by the run key", path)
	}
	if json.Unmarshal([]byte(signed.Payload), &at) != nil || at.Run != string(testRun) || at.Path != path {
		d.t.Errorf("%s: the request is for run %q, path %q", path, at.Run, at.Path)
	}
	return signed.Payload
}

func (d *engineDouble) openClaim(text string) string {
	var req sealed.ClaimRequest
	var c sealed.Claim
	if sealed.Decode([]byte(text), sealed.MaxDocument, &req) != nil || sealed.Decode([]byte(req.Payload), sealed.MaxDocument, &c) != nil {
		d.t.Errorf("malformed claim")
		return ""
	}
	signed := sealed.SigningBytes(sealed.DomainClaim, []byte(req.Payload))
	sum := sha256.Sum256(signed)
	if len(req.SVID) != 1 || string(unbase64(req.SVID[0])) != string(d.id.svid.Certificates[0].Raw) {
		d.t.Errorf("the claim shows another SVID")
	}
	if !ecdsa.VerifyASN1(d.id.svid.Certificates[0].PublicKey.(*ecdsa.PublicKey), sum[:], unbase64(req.SVIDSignature)) {
		d.t.Errorf("the claim is not signed by the SVID key")
	}
	if !ed25519.Verify(unbase64(c.RunKey), signed, unbase64(req.RunSignature)) {
		d.t.Errorf("the claim is not signed by the run key")
	}
	d.runKey, d.hpke = unbase64(c.RunKey), c.HPKEKey
	return req.Payload
}

func unbase64(s string) []byte {
	b, _ := base64.StdEncoding.DecodeString(s)
	return b
}

// answer is what a willing engine says.
func (d *engineDouble) answer(w http.ResponseWriter, verb, key, payload string, came time.Time) {
	out := map[string]any{}
	switch verb {
	case "login":
		out["auth"] = map[string]any{"client_token": tokenCanary, "lease_duration": 600}
	case "renew":
		out["lease_duration"] = 60
	case "claim":
		out["data"] = d.signed(d.claimAnswer(payload))
	case "creds":
		out["data"], out["lease_id"], out["lease_duration"] = d.signed(d.credsAnswer(key)), d.lease(key), 60
	case "confirm":
		var req sealed.ConfirmRequest
		_ = json.Unmarshal([]byte(payload), &req)
		a := sealed.ConfirmAnswer{Run: req.Run, Grant: req.Grant, Epoch: req.Epoch}
		if d.confirm != nil {
			d.confirm(&a)
		}
		out["data"] = d.signed(a)
	case "watch":
		a := sealed.WatchAnswer{Run: testRun, Came: came, Time: d.now(), Epoch: 1, Mark: "m", Every: sealed.Duration(testEvery), Order: sealed.OrderContinue}
		if d.watch != nil {
			d.watch(&a)
		}
		out["data"] = d.signed(a)
	case "sealed": // the watch of a host: what is asked for goes on
		var in struct{ Watch string }
		_ = json.Unmarshal([]byte(payload), &in)
		req, err := sealed.ParseHostWatchRequest([]byte(in.Watch))
		if err != nil {
			d.t.Errorf("watch: %v", err)
		}
		a := sealed.HostWatchAnswer{Time: d.now(), Epoch: 1, State: "s", Orders: []sealed.HostOrder{}, Continue: []sealed.HostRun{}}
		for _, r := range req.Runs {
			a.Continue = append(a.Continue, sealed.HostRun{Run: r, Mark: "m"})
		}
		if d.hostWatch != nil {
			d.hostWatch(req)
		}
		out["data"] = d.signed(a)
	case "requests":
		a := sealed.MoreAnswer{Effect: sealed.EffectRequireApproval, Approval: "01JBBBBBBBBBBBBBBBBBBBBBBB"}
		if d.more != nil {
			d.more(&a)
		}
		out["data"] = d.signed(a)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func plain(v any) map[string]any {
	b, _ := json.Marshal(v)
	return map[string]any{"answer": string(b)}
}

func (d *engineDouble) signed(v any) map[string]any {
	s, err := sealed.Sign(sealed.DomainAnswer, v, d.answerKey)
	if err != nil {
		d.t.Error(err)
	}
	return plain(s)
}

func (d *engineDouble) claimAnswer(payload string) sealed.ClaimAnswer {
	var c sealed.Claim
	_ = json.Unmarshal([]byte(payload), &c)
	a := sealed.ClaimAnswer{
		Run: c.Run, Nonce: c.Nonce, Tenant: "acme", Agent: "codex", SPIFFEID: testSPIFFE,
		CommandDigest: c.Measurement.CommandDigest, InputDigest: c.Measurement.InputDigest, Network: sealed.NetworkNone,
		Keys:        []sealed.ClaimKey{testKey("API_KEY")},
		FreezeAfter: sealed.Duration(5 * time.Second), StopAfter: sealed.Duration(time.Minute), WallTime: sealed.Duration(time.Hour),
	}
	if d.claimed != nil {
		d.claimed(&a)
	}
	return a
}

// testKey is a key of proxy delivery that needs no person.
func testKey(name sealed.KeyName) sealed.ClaimKey {
	return sealed.ClaimKey{Name: name, Effect: sealed.EffectAllow, Delivery: sealed.DeliveryProxy, Bindings: []sealed.Binding{testBinding()}}
}

func testBinding() sealed.Binding {
	return sealed.Binding{Host: boundHost, Methods: []string{"GET"}, Paths: []string{"/v1/**"}, Header: "Authorization", Format: "Bearer {}"}
}

func (d *engineDouble) credsAnswer(key string) sealed.CredsAnswer {
	d.mu.Lock()
	d.grants++
	grant, hpke := fmt.Sprintf("01JC%022d", d.grants), d.hpke
	d.mu.Unlock()
	ctx := secret.Context{Run: string(testRun), Grant: grant, Key: key}
	text, err := secret.Seal(hpke, ctx, secret.New([]byte(d.value(key))))
	if err != nil {
		d.t.Error(err)
	}
	a := sealed.CredsAnswer{
		Run: testRun, Grant: sealed.GrantID(grant), Key: sealed.KeyName(key), Delivery: sealed.DeliveryProxy,
		Bindings: []sealed.Binding{testBinding()}, Ciphertext: text, TTL: 60, Epoch: 7, Renewable: true,
	}
	if d.creds != nil {
		d.creds(&a)
	}
	return a
}

// of returns the calls whose path holds a segment.
func (d *engineDouble) of(segment string) []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []call
	for _, c := range d.calls {
		if strings.Contains("/"+c.path+"/", "/"+segment+"/") {
			out = append(out, c)
		}
	}
	return out
}

func (d *engineDouble) bodyBytes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bytes
}

// refuse answers as Vault does, and quotes what init sent nowhere.
func refuse(w http.ResponseWriter, status int) bool {
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"errors":["no"]}`)
	return true
}
