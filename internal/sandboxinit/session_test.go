package sandboxinit

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func revealed(v *secret.Value) (out string) {
	_ = v.Reveal(func(b []byte) error { out = string(b); return nil })
	return out
}

// The whole way over real TLS, signatures and HPKE.
func TestClaimIssueConfirm(t *testing.T) {
	d := newDouble(t)
	ca, dial := d.serveTLS()
	trust := d.trust(ca)
	e, err := newEngine(trust, dial)
	if err != nil {
		t.Fatal(err)
	}
	ttl, err := e.login(t.Context(), trust, jwtCanary)
	if err != nil || ttl.Seconds() != 600 {
		t.Fatalf("login: %v, %v", ttl, err)
	}
	s, err := claim(t.Context(), e, trust, d.id, testBoot(), testMeasurement())
	if err != nil {
		t.Fatal(err)
	}
	g, err := s.issue(t.Context(), "API_KEY", sealed.DeliveryProxy)
	if err != nil {
		t.Fatal(err)
	}
	if revealed(g.value) != valueCanary || g.ttl.Seconds() != 60 || g.lease == "" || len(g.bindings) != 1 {
		t.Errorf("grant %+v", g)
	}
	for i, c := range d.calls {
		if want := map[bool]string{true: "", false: tokenCanary}[i == 0]; c.token != want {
			t.Errorf("%s was sent with token %q", c.path, c.token)
		}
	}
	var confirm sealed.ConfirmRequest
	if err := json.Unmarshal([]byte(d.of("confirm")[0].payload), &confirm); err != nil || confirm.Grant != g.id || confirm.LeaseID != g.lease || confirm.Epoch != 7 {
		t.Errorf("confirmed %+v: %v", confirm, err)
	}
	if login := d.of("login")[0].payload; !strings.Contains(login, jwtCanary) {
		t.Errorf("login sent %s", login)
	}
}

// A Vault that the launcher put in place is found out by its certificate: not
// one byte of a request body arrives, so neither does the JWT (R04).
func TestFakeVaultGetsNothing(t *testing.T) {
	login := func(t *testing.T, d *engineDouble, trust sealed.TrustFile, dial dialFunc) error {
		e, err := newEngine(trust, dial)
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.login(t.Context(), trust, jwtCanary)
		return err
	}
	d := newDouble(t)
	ca, dial := d.serveTLS()
	_, other := newLeaf(t, nil, nil, "other CA")
	wrongName := d.trust(ca)
	wrongName.VaultAddr = "https://other.test:8200"
	for name, trust := range map[string]sealed.TrustFile{"other CA": d.trust(pemOf(other)), "other name": wrongName} {
		err := login(t, d, trust, dial)
		if !errors.Is(err, sealed.ErrUnavailable) || exitStatus(err) != sealed.ExitSealed {
			t.Errorf("%s: %v", name, err)
		}
		noLeak(t, "error", err.Error())
		if n := d.bodyBytes(); n != 0 {
			t.Errorf("%s: %d bytes of a request body arrived", name, n)
		}
	}
	t.Run("control off", func(t *testing.T) { // the fake's CA is trusted: the JWT arrives
		if err := login(t, d, d.trust(ca), dial); err != nil || d.bodyBytes() == 0 {
			t.Errorf("%v, %d bytes arrived", err, d.bodyBytes())
		}
	})
}

func TestTrustFileIsChecked(t *testing.T) {
	d := newDouble(t)
	for name, change := range map[string]func(*sealed.TrustFile){
		"no certificate": func(f *sealed.TrustFile) { f.VaultCA = "nothing" },
		"no host":        func(f *sealed.TrustFile) { f.VaultAddr = "https://" },
		"malformed":      func(f *sealed.TrustFile) { f.VaultAddr = "https://a b" },
	} {
		_, cert := newLeaf(t, nil, nil, "CA")
		trust := d.trust(pemOf(cert))
		change(&trust)
		if _, err := newEngine(trust, nil); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A redirect could carry token and JWT elsewhere.
func TestRedirectsAreNotFollowed(t *testing.T) {
	login := func(t *testing.T, status int, control bool) (calls int, err error) {
		d := newDouble(t)
		d.before = func(w http.ResponseWriter, _ *http.Request, _ string, n int) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Location", "https://elsewhere.test/v1/auth/jwt/login")
			w.WriteHeader(status)
			return true
		}
		ca, dial := d.serveTLS()
		e, err := newEngine(d.trust(ca), dial)
		if err != nil {
			t.Fatal(err)
		}
		if !control {
			e.http.CheckRedirect = nil
		}
		_, err = e.login(t.Context(), d.trust(ca), jwtCanary)
		return len(d.of("login")), err
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		if calls, err := login(t, status, true); !errors.Is(err, sealed.ErrUnavailable) || calls != 1 {
			t.Errorf("%d: %v, %d calls", status, err, calls)
		}
	}
	t.Run("control off", func(t *testing.T) {
		if calls, err := login(t, http.StatusTemporaryRedirect, false); err != nil || calls != 2 {
			t.Errorf("%v, %d calls", err, calls)
		}
	})
}

func TestClaimAnswerIsChecked(t *testing.T) {
	foreignPub, foreignKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*engineDouble)
		err    error
	}{
		"other answer key": {func(d *engineDouble) { d.answerKey = foreignKey }, sealed.ErrInvalid},
		"other nonce":      {func(d *engineDouble) { d.claimed = func(a *sealed.ClaimAnswer) { a.Nonce = "AAAA" } }, sealed.ErrInvalid},
		"no nonce":         {func(d *engineDouble) { d.claimed = func(a *sealed.ClaimAnswer) { a.Nonce = "" } }, sealed.ErrInvalid},
		"other run": {func(d *engineDouble) {
			d.claimed = func(a *sealed.ClaimAnswer) { a.Run = "01JZZZZZZZZZZZZZZZZZZZZZZZ" }
		}, sealed.ErrInvalid},
		"other command": {func(d *engineDouble) {
			d.claimed = func(a *sealed.ClaimAnswer) { a.CommandDigest = sealed.CommandDigest([]string{"sh"}) }
		}, sealed.ErrDenied},
		"arguments joined": {func(d *engineDouble) {
			d.claimed = func(a *sealed.ClaimAnswer) { a.CommandDigest = sealed.CommandDigest([]string{"codex exec"}) }
		}, sealed.ErrDenied},
		"other input": {func(d *engineDouble) {
			d.claimed = func(a *sealed.ClaimAnswer) { a.InputDigest = sealed.DigestOf(sealed.DomainInput, nil) }
		}, sealed.ErrDenied},
		"other tenant":        {func(d *engineDouble) { d.claimed = func(a *sealed.ClaimAnswer) { a.Tenant = "evil" } }, sealed.ErrInvalid},
		"other identity":      {func(d *engineDouble) { d.claimed = func(a *sealed.ClaimAnswer) { a.SPIFFEID += "x" } }, sealed.ErrInvalid},
		"refused":             {func(d *engineDouble) { d.before = onVerb("claim", 403) }, sealed.ErrDenied},
		"unknown":             {func(d *engineDouble) { d.before = onVerb("claim", 404) }, sealed.ErrDenied},
		"bad request":         {func(d *engineDouble) { d.before = onVerb("claim", 400) }, sealed.ErrInvalid},
		"conflict":            {func(d *engineDouble) { d.before = onVerb("claim", 409) }, sealed.ErrConflict},
		"not signed":          {func(d *engineDouble) { d.before = onVerb("claim", 200) }, sealed.ErrInvalid},
		"lost answer":         {func(d *engineDouble) { d.before = onVerb("claim", 503) }, sealed.ErrUnavailable},
		"answer is not JSON":  {func(d *engineDouble) { d.before = body("claim", "<html>") }, sealed.ErrUnavailable},
		"answer is no string": {func(d *engineDouble) { d.before = body("claim", `{"data":{"answer":7}}`) }, sealed.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			tt.change(d)
			e, trust := d.direct(), d.trust("unused")
			if _, err := e.login(t.Context(), trust, jwtCanary); err != nil {
				t.Fatal(err)
			}
			s, err := claim(t.Context(), e, trust, d.id, testBoot(), testMeasurement())
			if s != nil || !errors.Is(err, tt.err) {
				t.Fatalf("claim: %v, want %v", err, tt.err)
			}
			noLeak(t, "error", err.Error())
			if n := len(d.of("claim")); n != 1 { // a ticket is good once (R19)
				t.Errorf("%d claims were sent", n)
			}
		})
	}
	t.Run("control off", func(t *testing.T) { // the foreign key is trusted: its answer is obeyed
		d := newDouble(t)
		d.answerPub, d.answerKey = foreignPub, foreignKey
		d.session()
	})
}

func onVerb(verb string, status int) func(http.ResponseWriter, *http.Request, string, int) bool {
	return func(w http.ResponseWriter, _ *http.Request, got string, _ int) bool {
		return got == verb && refuse(w, status)
	}
}

func body(verb, text string) func(http.ResponseWriter, *http.Request, string, int) bool {
	return func(w http.ResponseWriter, _ *http.Request, got string, _ int) bool {
		if got != verb {
			return false
		}
		_, _ = io.WriteString(w, text)
		return true
	}
}

func TestGrantIsChecked(t *testing.T) {
	_, foreignKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	creds := func(f func(*sealed.CredsAnswer)) func(*engineDouble) { return func(d *engineDouble) { d.creds = f } }
	for name, tt := range map[string]struct {
		change func(*engineDouble)
		err    error
		calls  int // of creds
	}{
		"other answer key": {func(d *engineDouble) { d.answerKey = foreignKey }, sealed.ErrInvalid, 1},
		"other run":        {creds(func(a *sealed.CredsAnswer) { a.Run = "01JZZZZZZZZZZZZZZZZZZZZZZZ" }), sealed.ErrInvalid, 1},
		"other key":        {creds(func(a *sealed.CredsAnswer) { a.Key = "OTHER" }), sealed.ErrInvalid, 1},
		"other delivery":   {creds(func(a *sealed.CredsAnswer) { a.Delivery = sealed.DeliveryEnv }), sealed.ErrInvalid, 1},
		"no lease":         {func(d *engineDouble) { d.lease = func(string) string { return "" } }, sealed.ErrInvalid, 1},
		"tampered": {creds(func(a *sealed.CredsAnswer) {
			b := unbase64(a.Ciphertext)
			b[len(b)-1] ^= 1
			a.Ciphertext = base64.StdEncoding.EncodeToString(b)
		}), secret.ErrOpen, 1},
		"truncated":        {creds(func(a *sealed.CredsAnswer) { a.Ciphertext = a.Ciphertext[:40] }), secret.ErrOpen, 1},
		"no ciphertext":    {creds(func(a *sealed.CredsAnswer) { a.Ciphertext = "" }), secret.ErrOpen, 1},
		"plain text":       {creds(func(a *sealed.CredsAnswer) { a.Ciphertext = valueCanary }), secret.ErrOpen, 1},
		"other grant":      {creds(func(a *sealed.CredsAnswer) { a.Grant += "x" }), secret.ErrOpen, 1},
		"denied":           {func(d *engineDouble) { d.before = onVerb("creds", 403) }, sealed.ErrDenied, 1},
		"needs a person":   {func(d *engineDouble) { d.before = onVerb("creds", 428) }, sealed.ErrApprovalRequired, 1},
		"source is down":   {func(d *engineDouble) { d.before = onVerb("creds", 502) }, sealed.ErrUnavailable, 2},
		"confirm refused":  {func(d *engineDouble) { d.before = onVerb("confirm", 403) }, sealed.ErrDenied, 1},
		"confirm lost":     {func(d *engineDouble) { d.before = onVerb("confirm", 503) }, sealed.ErrUnavailable, 1},
		"other confirmed":  {func(d *engineDouble) { d.confirm = func(a *sealed.ConfirmAnswer) { a.Grant = "x" } }, sealed.ErrInvalid, 1},
		"unsigned confirm": {func(d *engineDouble) { d.before = onVerb("confirm", 200) }, sealed.ErrInvalid, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			s := d.session()
			tt.change(d)
			g, err := s.issue(t.Context(), "API_KEY", sealed.DeliveryProxy)
			if g != nil || !errors.Is(err, tt.err) {
				t.Fatalf("issue: %+v, %v, want %v", g, err, tt.err)
			}
			noLeak(t, "error", err.Error())
			if n := len(d.of("creds")); n != tt.calls {
				t.Errorf("creds was called %d times, want %d", n, tt.calls)
			}
		})
	}
}

// A lost answer of creds is asked for again with the same key, once: the
// engine resumes the grant and mints no second credential (R19).
func TestLostAnswerIsResumed(t *testing.T) {
	d := newDouble(t)
	s := d.session()
	d.before = func(w http.ResponseWriter, _ *http.Request, verb string, n int) bool {
		return verb == "creds" && n == 1 && refuse(w, http.StatusInternalServerError)
	}
	g, err := s.issue(t.Context(), "API_KEY", sealed.DeliveryProxy)
	if err != nil || revealed(g.value) != valueCanary {
		t.Fatalf("issue: %v", err)
	}
	calls := d.of("creds")
	if len(calls) != 2 {
		t.Fatalf("creds was called %d times", len(calls))
	}
	var keys [2]sealed.CredsRequest
	for i := range keys {
		if err := json.Unmarshal([]byte(calls[i].payload), &keys[i]); err != nil {
			t.Fatal(err)
		}
	}
	if keys[0].Idempotency == "" || keys[0].Idempotency != keys[1].Idempotency {
		t.Errorf("idempotency %q, then %q", keys[0].Idempotency, keys[1].Idempotency)
	}
	if _, err := s.issue(t.Context(), "API_KEY", sealed.DeliveryProxy); err != nil {
		t.Fatal(err)
	}
	if third := d.of("creds")[2]; strings.Contains(third.payload, keys[0].Idempotency) {
		t.Error("two requests share an idempotency key")
	}
	t.Run("not after the run", func(t *testing.T) {
		d := newDouble(t)
		s := d.session()
		ctx, cancel := context.WithCancel(t.Context())
		d.before = func(http.ResponseWriter, *http.Request, string, int) bool { cancel(); return true }
		if _, err := s.issue(ctx, "API_KEY", sealed.DeliveryProxy); !errors.Is(err, sealed.ErrUnavailable) || len(d.of("creds")) != 1 {
			t.Errorf("issue: %v, %d calls", err, len(d.of("creds")))
		}
	})
}

func TestLoginAnswerIsChecked(t *testing.T) {
	for name, text := range map[string]string{"no auth": `{}`, "no token": `{"auth":{"client_token":""}}`, "not JSON": `<html>`} {
		d := newDouble(t)
		d.before = body("login", text)
		e := d.direct()
		_, err := e.login(t.Context(), d.trust("unused"), jwtCanary)
		if !errors.Is(err, sealed.ErrUnavailable) || e.token != "" || len(d.of("login")) != 1 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		noLeak(t, "error", err.Error())
	}
}

// An answer without an end must not fill memory.
func TestAnswersAreBounded(t *testing.T) {
	d := newDouble(t)
	d.before = body("login", `{"auth":{"client_token":"`+strings.Repeat("x", maxAnswer)+`"}}`)
	if _, err := d.direct().login(t.Context(), d.trust("unused"), jwtCanary); !errors.Is(err, sealed.ErrUnavailable) {
		t.Errorf("login: %v", err)
	}
}
