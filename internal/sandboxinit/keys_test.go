package sandboxinit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sandboxinit/proxy"
	"sealed.dev/sealed/internal/sealed"
)

// A keyRig is a keyring on a double, with a real proxy in front of a real TLS
// upstream.
type keyRig struct {
	*keyring
	t    *testing.T
	d    *engineDouble
	addr string
	stop context.CancelFunc

	mu   sync.Mutex
	seen []string // Authorization headers that the upstream got
}

func newKeyRig(t *testing.T, d *engineDouble, upstream http.HandlerFunc) *keyRig {
	t.Helper()
	r := &keyRig{t: t, d: d}
	caKey, caCert := newLeaf(t, nil, nil, "upstream CA")
	key, cert := newLeaf(t, caCert, caKey, boundHost)
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, req.Header.Get("Authorization"))
		r.mu.Unlock()
		if upstream != nil {
			upstream(w, req)
		}
	}))
	up.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	up.Config.ErrorLog = quiet()
	up.StartTLS()
	t.Cleanup(up.Close)
	roots := x509.NewCertPool()
	roots.AddCert(caCert)
	s := d.session()
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	k, err := newKeyring(ctx, s, redact.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	r.keyring = k
	k.proxy, err = proxy.New(proxy.Config{
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", up.Listener.Addr().String())
		},
		Roots: roots, Network: sealed.NetworkNone, Set: k.set, ControlToken: "control", Hosts: boundHosts(s.answer.Keys),
	})
	if err != nil {
		t.Fatal(err)
	}
	k.contact = &contact{session: s, dead: k.drop}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = k.proxy.Serve(ctx, l) }()
	t.Cleanup(func() { stop(); <-done })
	return r
}

// use calls the upstream through a key's endpoint, as the agent would.
func (r *keyRig) use(key sealed.KeyName) int {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://"+r.addr+"/b/"+string(key)+"/v1/things", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.placeholders[key])
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	noLeak(r.t, "answer", string(b))
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

func (r *keyRig) leaked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(strings.Join(r.seen, " "), valueCanary)
}

func claimKeys(keys ...sealed.ClaimKey) func(*sealed.ClaimAnswer) {
	return func(a *sealed.ClaimAnswer) { a.Keys = keys }
}

func with(name sealed.KeyName, effect sealed.Effect, delivery sealed.Delivery) sealed.ClaimKey {
	k := testKey(name)
	k.Effect, k.Delivery = effect, delivery
	return k
}

// deliver makes the double answer with the delivery of the claim.
func deliver(d *engineDouble, keys ...sealed.ClaimKey) {
	d.claimed = claimKeys(keys...)
	d.creds = func(a *sealed.CredsAnswer) {
		for _, k := range keys {
			if k.Name == a.Key {
				a.Delivery, a.Bindings = k.Delivery, k.Bindings
			}
		}
	}
}

// failing makes creds refuse one key.
func failing(key string) func(http.ResponseWriter, *http.Request, string, int) bool {
	return func(w http.ResponseWriter, r *http.Request, verb string, _ int) bool {
		return verb == "creds" && strings.HasSuffix(r.URL.Path, "/"+key) && refuse(w, 403)
	}
}

func TestIssueAllowed(t *testing.T) {
	proxied := func(name sealed.KeyName) sealed.ClaimKey { return with(name, sealed.EffectAllow, sealed.DeliveryProxy) }
	inEnv := with("ENV_KEY", sealed.EffectAllow, sealed.DeliveryEnv)
	keys := []sealed.ClaimKey{
		proxied("ONE"), proxied("TWO"), inEnv,
		with("ASK", sealed.EffectRequireApproval, sealed.DeliveryProxy), with("NO", sealed.EffectDeny, sealed.DeliveryProxy),
	}
	for name, tt := range map[string]struct {
		fail    string
		missing int
		err     error
		live    []sealed.KeyName
	}{
		"all":                   {"", 0, nil, []sealed.KeyName{"ENV_KEY", "ONE", "TWO"}},
		"a proxied one missing": {"ONE", 1, nil, []sealed.KeyName{"ENV_KEY", "TWO"}},
		"one of env missing":    {"ENV_KEY", 0, sealed.ErrDenied, []sealed.KeyName{"ONE", "TWO"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			deliver(d, keys...)
			d.value = func(key string) string { return valueCanary + key }
			d.before = failing(tt.fail)
			r := newKeyRig(t, d, nil)
			missing, err := r.issueAllowed(t.Context())
			if len(missing) != tt.missing || !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Fatalf("missing %v, error %v", missing, err)
			}
			for _, e := range append(missing, err) {
				if e != nil {
					noLeak(t, "error", e.Error())
				}
			}
			var live []sealed.KeyName
			for _, k := range []sealed.KeyName{"ASK", "ENV_KEY", "NO", "ONE", "TWO"} {
				if r.live(k) {
					live = append(live, k)
				}
			}
			if diff := cmp.Diff(tt.live, live); diff != "" {
				t.Error(diff)
			}
			if _, ok := r.placeholders["ENV_KEY"]; ok || r.placeholders["NO"] != "" || r.placeholders["ASK"] == "" {
				t.Errorf("placeholders %v", r.placeholders)
			}
		})
	}
}

// The redactor knows a value before anything can use it.
func TestIssueArmsTheRedactor(t *testing.T) {
	r := newKeyRig(t, newDouble(t), func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, req.Header.Get("Authorization")) // an upstream that echoes
	})
	if got := redact.Bytes([]byte(valueCanary), r.set); string(got) != valueCanary {
		t.Fatalf("before: %s", got)
	}
	if err := r.issue(t.Context(), testKey("API_KEY")); err != nil {
		t.Fatal(err)
	}
	if got := redact.Bytes([]byte("x "+valueCanary), r.set); string(got) != "x [sealed:API_KEY]" {
		t.Errorf("after: %s", got)
	}
	if status := r.use("API_KEY"); status != http.StatusOK || !r.leaked() {
		t.Errorf("status %d, the upstream had the value: %v", status, r.leaked())
	}
	if e := r.environ(); e != nil {
		t.Errorf("environment of a proxied key: %d variables", len(e))
	}
}

// What is not confirmed or can't be put to use whole is not used at all.
func TestUnusableGrantIsGivenUp(t *testing.T) {
	for name, change := range map[string]func(*engineDouble){
		"confirm refused": func(d *engineDouble) { d.before = onVerb("confirm", 403) },
		"too weak":        func(d *engineDouble) { d.value = func(string) string { return "short" } },
		"empty":           func(d *engineDouble) { d.value = func(string) string { return "" } },
		"host that was not announced": func(d *engineDouble) {
			d.creds = func(a *sealed.CredsAnswer) {
				other := testBinding()
				other.Host = "evil.test"
				a.Bindings = append(a.Bindings, other)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			change(d)
			r := newKeyRig(t, d, nil)
			err := r.issue(t.Context(), testKey("API_KEY"))
			if err == nil {
				t.Fatal("no error")
			}
			noLeak(t, "error", err.Error())
			if r.live("API_KEY") || len(r.grants) != 0 {
				t.Error("the grant is live")
			}
			if status := r.use("API_KEY"); status != http.StatusServiceUnavailable || r.leaked() {
				t.Errorf("status %d, the upstream had the value: %v", status, r.leaked())
			}
		})
	}
}

// A revoked grant is out of use at once: requests under way are cut, the value
// is wiped, and the redactor still knows it.
func TestDrop(t *testing.T) {
	arrived, release := make(chan bool), make(chan bool)
	r := newKeyRig(t, newDouble(t), func(w http.ResponseWriter, req *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		arrived <- true
		<-release
	})
	defer close(release)
	if err := r.issue(t.Context(), testKey("API_KEY")); err != nil {
		t.Fatal(err)
	}
	var g *grant
	for _, g = range r.grants {
	}
	ended := make(chan int)
	go func() { ended <- r.use("API_KEY") }()
	<-arrived
	r.drop([]sealed.GrantID{"unknown"})
	if !r.live("API_KEY") || revealed(g.value) != valueCanary {
		t.Fatal("another grant's end ended this one")
	}
	r.drop([]sealed.GrantID{g.id})
	select {
	case status := <-ended:
		if status == http.StatusOK {
			t.Error("the request under way came to its end")
		}
	case <-time.After(5 * time.Second):
		t.Error("the request under way was not cut")
	}
	if r.live("API_KEY") || revealed(g.value) != "" {
		t.Error("the value is still there")
	}
	if status := r.use("API_KEY"); status != http.StatusServiceUnavailable {
		t.Errorf("status %d after the revocation", status)
	}
	if got := redact.Bytes([]byte(valueCanary), r.set); string(got) != "[sealed:API_KEY]" {
		t.Errorf("redacted: %s", got)
	}
	r.drop([]sealed.GrantID{g.id}) // again
	notes := r.close()
	if len(notes) != 1 || notes[0].outcome != "revoked" || notes[0].ended.IsZero() {
		t.Errorf("history %+v", notes)
	}
}

func TestClose(t *testing.T) {
	d := newDouble(t)
	inEnv := with("ENV_KEY", sealed.EffectAllow, sealed.DeliveryEnv)
	deliver(d, testKey("API_KEY"), inEnv)
	d.value = func(key string) string { return valueCanary + key }
	r := newKeyRig(t, d, nil)
	if _, err := r.issueAllowed(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"ENV_KEY=" + valueCanary + "ENV_KEY"}, r.environ()); diff != "" {
		t.Error(diff)
	}
	var grants []*grant
	for _, g := range r.grants {
		grants = append(grants, g)
	}
	notes := r.close()
	for _, g := range grants {
		if revealed(g.value) != "" {
			t.Errorf("%s is still there", g.key)
		}
	}
	for _, n := range notes {
		if n.outcome != "ended_with_run" || n.ended.IsZero() {
			t.Errorf("history %+v", n)
		}
	}
	if status := r.use("API_KEY"); len(notes) != 2 || r.environ() != nil || status != http.StatusServiceUnavailable {
		t.Errorf("%d notes, %d variables, status %d after the end", len(notes), len(r.environ()), status)
	}
}
