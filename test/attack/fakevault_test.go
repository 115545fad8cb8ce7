package attack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// A double is a false Vault. It answers every login with a token and everything
// else with a document that looks right and is signed by nobody. It keeps all
// that it hears.
type double struct {
	addr  string
	ca    []byte
	conns atomic.Int32

	mu    sync.Mutex
	calls []call
}

// A call is one request that the double heard.
type call struct {
	Path, Token string
	Body        []byte
}

func (d *double) heard() []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]call{}, d.calls...)
}

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	d.mu.Lock()
	d.calls = append(d.calls, call{strings.TrimPrefix(r.URL.Path, "/v1/"), r.Header.Get("X-Vault-Token"), body})
	d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/login") {
		_, _ = io.WriteString(w, `{"auth":{"client_token":"`+falseToken+`","lease_duration":120}}`)
		return
	}
	_, _ = io.WriteString(w, `{"data":{"answer":"{\"payload\":\"{}\",\"signature\":\"`+strings.Repeat("A", 86)+`==\"}"}}`)
}

// falseToken is what the double gives out.
const falseToken = "hvs.false"

// newDouble starts a false Vault with a certificate.
func newDouble(t *testing.T, cert tls.Certificate) *double {
	t.Helper()
	d := &double{ca: pemOf(cert.Certificate[len(cert.Certificate)-1])}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	harness.Must(t, err)
	d.addr = l.Addr().String()
	srv := &http.Server{
		Handler: d, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, ErrorLog: log.New(io.Discard, "", 0),
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				d.conns.Add(1)
			}
		},
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = srv.Close() })
	return d
}

// vaultCertificate is the one that Vault itself has.
func (w *world) vaultCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	private := filepath.Join(w.Status.Dir, "private")
	cert, err := tls.LoadX509KeyPair(filepath.Join(private, "vault-cert.pem"), filepath.Join(private, "vault-key.pem"))
	harness.Must(t, err)
	return cert
}

// otherName is a certificate by the CA that init trusts, for another address.
func (w *world) otherName(t *testing.T) tls.Certificate {
	t.Helper()
	ca, err := parseCertificate(w.forge.Trust.VaultCA)
	harness.Must(t, err)
	b, err := os.ReadFile(filepath.Join(w.Status.Dir, "private", "ca-key.pem"))
	harness.Must(t, err)
	block, _ := pem.Decode(b)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	harness.Must(t, err)
	return serverCertificate(t, ca, ca, key, net.IPv4(127, 0, 0, 2))
}

// otherCA is a certificate for Vault's address by a CA that calls itself what
// the one that init trusts does.
func (w *world) otherCA(t *testing.T) tls.Certificate {
	t.Helper()
	genuine, err := parseCertificate(w.forge.Trust.VaultCA)
	harness.Must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	harness.Must(t, err)
	ca := &x509.Certificate{SerialNumber: genuine.SerialNumber, RawSubject: genuine.RawSubject, SubjectKeyId: genuine.SubjectKeyId, NotBefore: genuine.NotBefore, NotAfter: genuine.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	harness.Must(t, err)
	parsed, err := x509.ParseCertificate(der)
	harness.Must(t, err)
	return serverCertificate(t, parsed, ca, key, net.IPv4(127, 0, 0, 1))
}

// serverCertificate makes a certificate for an address. ca is what is sent
// along, parent what signs.
func serverCertificate(t *testing.T, ca, parent *x509.Certificate, caKey *ecdsa.PrivateKey, ip net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	harness.Must(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "vault"}, IPAddresses: []net.IP{ip},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, parent, key.Public(), caKey)
	harness.Must(t, err)
	return tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: key}
}

// R04: the launcher's relay leads to another server than Vault. Init ends with
// one line. With a certificate that init does not accept, nothing leaves at
// all. With Vault's very certificate, three requests leave: a login with the
// JWT-SVID, a claim with the ticket, and the false token that the answer to the
// login gave, to revoke it. No request for a credential does, so no value can.
func TestR04FakeVaultBehindRelay(t *testing.T) {
	t.Parallel()
	w := get(t)
	for _, tt := range []struct {
		name string
		cert tls.Certificate
		all  bool // the handshake works
	}{
		{name: "another CA of the same name", cert: w.otherCA(t)},
		{name: "the right CA, another name", cert: w.otherName(t)},
		{name: "the very certificate of Vault, but no answer key", cert: w.vaultCertificate(t), all: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			profile, c := w.profile(t)
			double := newDouble(t, tt.cert)
			q, _, boot := w.enqueue(t, profile, "/bin/sh", "-c", "echo $KEY")
			out := launcher{boot: boot, vault: double.addr}.run(t, w)
			harness.Must(t, out.registered)
			refused(t, out)
			if double.conns.Load() == 0 {
				t.Error("control: nobody came by")
			}
			var paths, want []string
			for _, call := range double.heard() {
				paths = append(paths, call.Path)
				for _, hit := range canary.Scan(call.Path, call.Body, c) {
					t.Error(hit)
				}
			}
			if tt.all {
				want = []string{"auth/" + w.forge.Trust.AuthMount + "/login", w.Status.Mount + "/runs/" + string(q.Run) + "/claim", "auth/token/revoke-self"}
			}
			if diff := cmp.Diff(want, paths); diff != "" {
				t.Errorf("it heard (-want +got):\n%s", diff)
			}
			if tt.all {
				wantLoot(t, double, q)
			}
			w.wantNoGrant(t, q.Run)
		})
	}
}

// wantLoot checks what exactly a false Vault gets to hear.
func wantLoot(t *testing.T, d *double, q sealed.Enqueued) {
	t.Helper()
	for i, call := range d.heard() {
		var fields map[string]string
		if i < 2 {
			harness.Must(t, json.Unmarshal(call.Body, &fields))
		}
		jwt, ticket := strings.Count(fields["jwt"], ".") == 2, strings.Contains(string(call.Body), q.Ticket)
		switch {
		case i == 0 && (!jwt || len(fields) != 2 || ticket || call.Token != ""):
			t.Errorf("login: fields %v, token %q", len(fields), call.Token)
		case i == 1 && (len(fields) != 1 || fields["claim"] == "" || !ticket || call.Token != falseToken):
			t.Errorf("claim: fields %v, ticket %t, token %q", len(fields), ticket, call.Token)
		case i == 2 && (call.Token != falseToken || ticket):
			t.Errorf("revocation: token %q", call.Token)
		}
	}
}

func (w *world) wantNoGrant(t *testing.T, id sealed.RunID) {
	t.Helper()
	run, err := w.Engine(t, "operator").Run(t.Context(), id)
	harness.Must(t, err)
	if len(run.Grants) > 0 {
		t.Errorf("granted: %+v", run.Grants)
	}
}

// A loot is what a false Vault got from one run.
type loot struct {
	run     sealed.EnqueueRequest
	id      sealed.RunID
	ticket  string
	jwt     string
	request sealed.ClaimRequest
	claim   sealed.Claim
	raw     string // the claim's document
	value   *canary.Canary
}

// rob lets an honest init speak to a false Vault.
func (w *world) rob(t *testing.T) loot {
	t.Helper()
	profile, c := w.profile(t, binding("api.test"))
	d := newDouble(t, w.vaultCertificate(t))
	q, r, boot := w.enqueue(t, profile, "/bin/true")
	refused(t, launcher{boot: boot, vault: d.addr}.run(t, w))
	l := loot{run: r, id: q.Run, value: c}
	for _, call := range d.heard() {
		var fields struct{ JWT, Claim string }
		if len(call.Body) == 0 || json.Unmarshal(call.Body, &fields) != nil {
			continue
		}
		if fields.JWT != "" {
			l.jwt = fields.JWT
		}
		if fields.Claim != "" {
			l.raw = fields.Claim
			harness.Must(t, json.Unmarshal([]byte(fields.Claim), &l.request))
			harness.Must(t, json.Unmarshal([]byte(l.request.Payload), &l.claim))
			l.ticket = l.claim.Ticket
		}
	}
	if l.jwt == "" || l.ticket != q.Ticket {
		t.Fatal("control: the false Vault got no JWT or no ticket")
	}
	return l
}

// R04: what a false Vault with Vault's own certificate steals from an honest
// init is a JWT-SVID and the ticket. Both are good: with them it logs in at the
// real Vault. It can't claim the run for itself: a claim is signed with the key
// of the SVID, which never leaves init. Passing the very claim on binds the run
// to the keys of that init, which has ended; nobody can ask for a credential
// then, or open one.
func TestR04StolenTicketAndJWT(t *testing.T) {
	t.Parallel()
	w := get(t)
	ctx := t.Context()
	// thief has its own run keys, the stolen token, and an SVID key.
	thief := func(t *testing.T, l loot, svid guest.SVID) *guest.Guest {
		t.Helper()
		c, login, err := w.forge.Login(ctx, l.jwt)
		if err != nil {
			t.Fatalf("control: the stolen JWT does not log in: %v", err)
		}
		g, err := w.forge.Stranger(l.id, c, login, svid)
		harness.Must(t, err)
		return g
	}
	ownKey := func(t *testing.T, chain []string) guest.SVID {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		harness.Must(t, err)
		return guest.SVID{Chain: chain, Key: key}
	}
	for name, svid := range map[string]func(*testing.T, loot) guest.SVID{
		"init's chain, another key": func(t *testing.T, l loot) guest.SVID { return ownKey(t, l.request.SVID) },
		"a chain of its own":        func(t *testing.T, _ loot) guest.SVID { return ownSVID(t, w.forge.ID(agentName)) },
		"no chain":                  func(t *testing.T, _ loot) guest.SVID { return ownKey(t, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			l := w.rob(t)
			g := thief(t, l, svid(t, l))
			if err := g.Claim(ctx, l.ticket, guest.Measure(l.run), nil); !errors.Is(err, sealed.ErrDenied) {
				t.Errorf("claimed: %v", err)
			}
			w.wantEntry(t, l.id, "claim.refused", `"svid`)
			w.wantPowerless(t, g, l)
		})
	}
	t.Run("init's signature, other run keys", func(t *testing.T) {
		l := w.rob(t)
		g := thief(t, l, ownKey(t, l.request.SVID))
		forged := l.request
		forged.Payload = strings.Replace(forged.Payload, l.claim.RunKey, g.PublicKey(), 1)
		if forged.Payload == l.request.Payload {
			t.Fatal("the payload did not change")
		}
		doc, err := json.Marshal(forged)
		harness.Must(t, err)
		if err := sendClaim(t, w, g.Client, l.id, string(doc)); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("claimed: %v", err)
		}
		w.wantPowerless(t, g, l)
	})
	t.Run("the very claim, passed on", func(t *testing.T) {
		l := w.rob(t)
		g := thief(t, l, ownKey(t, l.request.SVID))
		if err := sendClaim(t, w, g.Client, l.id, l.raw); err != nil {
			t.Logf("refused: %v", err)
		} else {
			w.wantEntry(t, l.id, "run.claimed", l.claim.RunKey) // the run is spent, and bound to a key that is gone
		}
		w.wantPowerless(t, g, l)
	})
	t.Run("control: with the key of an SVID the same loot claims the run", func(t *testing.T) {
		l := w.rob(t)
		svid, err := w.forge.X509(ctx, w.forge.ID(agentName), guest.OwnUID)
		harness.Must(t, err)
		g := thief(t, l, svid)
		harness.Must(t, g.Claim(ctx, l.ticket, guest.Measure(l.run), nil))
		grant, err := g.Creds(ctx, "KEY", "control-00000001")
		harness.Must(t, err)
		harness.Must(t, g.Confirm(ctx, grant))
		if v, err := g.Reveal(grant); err != nil || v != l.value.Value {
			t.Errorf("the value did not arrive: %v", err)
		}
	})
}

// ownSVID is an SVID by a CA of the attacker's.
func ownSVID(t *testing.T, id string) guest.SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	harness.Must(t, err)
	uri, err := url.Parse(id)
	harness.Must(t, err)
	now := time.Now()
	leaf := &x509.Certificate{SerialNumber: big.NewInt(3), URIs: []*url.URL{uri}, DNSNames: []string{guest.OwnUID}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	harness.Must(t, err)
	return guest.SVID{Chain: []string{base64.StdEncoding.EncodeToString(der)}, Key: key}
}

// wantPowerless checks that a guest can do nothing for a run.
func (w *world) wantPowerless(t *testing.T, g *guest.Guest, l loot) {
	t.Helper()
	ctx := t.Context()
	if _, err := g.Creds(ctx, "KEY", "powerless-000001"); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("creds: %v", err)
	}
	if _, err := g.Watch(ctx, 0, 0); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("watch: %v", err)
	}
	if err := g.Claim(ctx, l.ticket, guest.Measure(l.run), nil); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("claimed at a second try: %v", err)
	}
	w.wantNoGrant(t, l.id)
}

func sendClaim(t *testing.T, w *world, c *vaultclient.Client, run sealed.RunID, doc string) error {
	t.Helper()
	_, err := c.Sys(t.Context(), http.MethodPut, w.Status.Mount+"/runs/"+string(run)+"/claim", map[string]any{"claim": doc})
	return err
}
