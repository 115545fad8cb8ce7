package source_test

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
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
	"sealed.dev/sealed/internal/source/sourcetest"
)

const readPolicy = `
path "kv/data/*" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }`

// signedJWT makes an ES256 token (RFC 7519) and the public key for it.
func signedJWT(t *testing.T, claims map[string]any) (token, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + enc(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return text + "." + enc(sig), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// TestRealLogins reads a real Vault as each kind of login.
func TestRealLogins(t *testing.T) {
	srv := sourcetest.Start(t)
	srv.Do(http.MethodPost, "sys/mounts/kv", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
	srv.Do(http.MethodPost, "kv/data/x", map[string]any{"data": map[string]any{"value": "v"}})
	srv.Do(http.MethodPut, "sys/policies/acl/reader", map[string]any{"policy": readPolicy})
	role := map[string]any{"token_policies": "reader", "token_no_default_policy": true, "token_period": "1h"}

	srv.Do(http.MethodPost, "sys/auth/approle", map[string]any{"type": "approle"})
	srv.Do(http.MethodPost, "auth/approle/role/sealed", role)
	roleID := srv.Do(http.MethodGet, "auth/approle/role/sealed/role-id", nil)["data"].(map[string]any)["role_id"].(string)
	secretID := srv.Do(http.MethodPost, "auth/approle/role/sealed/secret-id", nil)["data"].(map[string]any)["secret_id"].(string)

	jwt, public := signedJWT(t, map[string]any{"iss": "https://idp.example", "sub": "sealed-engine", "aud": "vault", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()})
	srv.Do(http.MethodPost, "sys/auth/team/jwt", map[string]any{"type": "jwt"})
	srv.Do(http.MethodPost, "auth/team/jwt/config", map[string]any{"jwt_validation_pubkeys": []string{public}})
	role["role_type"], role["user_claim"], role["bound_audiences"], role["bound_subject"] = "jwt", "sub", "vault", "sealed-engine"
	srv.Do(http.MethodPost, "auth/team/jwt/role/sealed", role)

	for name, tt := range map[string]struct {
		auth       sealed.SourceAuth
		credential string
		ok         bool
	}{
		"token":           {sealed.SourceAuth{}, string(srv.Token(readPolicy)), true},
		"other token":     {sealed.SourceAuth{}, "hvs.nobody", false},
		"approle":         {sealed.SourceAuth{Method: sealed.AuthAppRole, Role: roleID}, secretID, true},
		"other secret id": {sealed.SourceAuth{Method: sealed.AuthAppRole, Role: roleID}, "00000000-0000-0000-0000-000000000000", false},
		"jwt":             {sealed.SourceAuth{Method: sealed.AuthJWT, Mount: "team/jwt", Role: "sealed"}, jwt, true},
		"forged jwt":      {sealed.SourceAuth{Method: sealed.AuthJWT, Mount: "team/jwt", Role: "sealed"}, jwt[:len(jwt)-8] + "AAAAAAAA", false},
		"other role":      {sealed.SourceAuth{Method: sealed.AuthJWT, Mount: "team/jwt", Role: "none"}, jwt, false},
	} {
		cfg := srv.Config(sealed.SourceVaultKV, "kv")
		cfg.Auth = tt.auth
		v, err := source.NewVault(cfg, secret.New([]byte(tt.credential)), true, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var out struct{ Data map[string]any }
		for range 2 {
			err = v.Do(context.Background(), source.Call{Method: http.MethodGet, Path: "kv/data/x"}, &out)
			if tt.ok != (err == nil) || (err != nil && !errors.Is(err, sealed.ErrUnavailable)) || (err != nil && strings.Contains(err.Error(), tt.credential)) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := v.Keep(context.Background()); tt.ok && err != nil {
			t.Errorf("%s: keeping: %v", name, err)
		}
	}
}

// clock is set by hand.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

// TestRealTokenIsKept: the period of a token starts again when it is kept, and
// not more often than it must.
func TestRealTokenIsKept(t *testing.T) {
	srv := sourcetest.Start(t)
	token := srv.Token(readPolicy)
	c := &clock{time.Unix(1_800_000_000, 0)}
	v, err := source.NewVault(srv.Config(sealed.SourceVaultKV, "kv"), secret.New([]byte(string(token))), true, c.now)
	if err != nil {
		t.Fatal(err)
	}
	renewed := func() any {
		_, out := srv.Try(string(token), http.MethodGet, "auth/token/lookup-self")
		return out["data"].(map[string]any)["last_renewal_time"]
	}
	if renewed() != nil {
		t.Fatal("negative control: a token that nobody kept was renewed")
	}
	if err := v.Keep(t.Context()); err != nil || renewed() == nil {
		t.Errorf("the first keep does not renew: %v", err)
	}
}

// TestLoginOnceAndAgain counts logins and renewals of an AppRole.
func TestLoginOnceAndAgain(t *testing.T) {
	logins, renewals, refuse := 0, 0, false
	_, cfg := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/v1/auth/approle/login":
			logins++
			_, _ = fmt.Fprintf(w, `{"auth":{"client_token":"t%d","lease_duration":1000,"renewable":true}}`, logins)
		case r.URL.Path == "/v1/auth/token/renew-self" && !refuse:
			renewals++
			_, _ = io.WriteString(w, `{"auth":{"client_token":"x","lease_duration":1000,"renewable":true}}`)
		case refuse || r.Header.Get("X-Vault-Token") != fmt.Sprintf("t%d", logins):
			w.WriteHeader(http.StatusForbidden)
		default:
			_, _ = io.WriteString(w, `{}`)
		}
	})
	c := &clock{time.Unix(1_800_000_000, 0)}
	cfg.Auth = sealed.SourceAuth{Method: sealed.AuthAppRole, Role: "r"}
	v, err := source.NewVault(cfg, secret.New([]byte("secret-id")), false, c.now)
	if err != nil {
		t.Fatal(err)
	}
	read := func() error { return v.Do(t.Context(), source.Call{Method: http.MethodGet, Path: "kv/data/x"}, nil) }
	for _, step := range []struct {
		after            time.Duration
		act              func() error
		ok               bool
		logins, renewals int
	}{
		{0, func() error { return v.Keep(t.Context()) }, true, 0, 0}, // nothing to keep yet
		{0, read, true, 1, 0},
		{time.Second, read, true, 1, 0},
		{time.Second, func() error { return v.Keep(t.Context()) }, true, 1, 0},       // not due
		{500 * time.Second, func() error { return v.Keep(t.Context()) }, true, 1, 1}, // half of it is over
		{800 * time.Second, read, true, 1, 1},                                        // lives thanks to that
		{200 * time.Second, read, true, 2, 1},                                        // about to end
		{time.Second, func() error { refuse = true; return read() }, false, 2, 1},
		{time.Second, func() error { refuse = false; return read() }, true, 2, 1}, // a new token is not doubted
		{20 * time.Second, func() error { refuse = true; return read() }, false, 2, 1},
		{time.Second, func() error { refuse = false; return read() }, true, 3, 1},
	} {
		c.at = c.at.Add(step.after)
		if err := step.act(); (err == nil) != step.ok || logins != step.logins || renewals != step.renewals {
			t.Fatalf("after %s: %v, %d logins, %d renewals, want %+v", step.after, err, logins, renewals, step)
		}
	}
}

func TestSplitRef(t *testing.T) {
	for ref, want := range map[string]string{"a/b": "a/b map[]", "a?x=1&y=2": "a map[x:1 y:2]", "a?x=%26": "a map[x:&]", "a?x=": "a map[x:]"} {
		path, params, err := source.SplitRef(ref)
		if got := fmt.Sprint(path, " ", params); err != nil || got != want {
			t.Errorf("%s: %s, %v", ref, got, err)
		}
	}
	for _, bad := range []string{"a?", "a?x=1&x=2", "a?=1", "a?x=%zz", "a?x;y=1"} {
		if p, q, err := source.SplitRef(bad); !errors.Is(err, sealed.ErrInvalid) {
			t.Errorf("%s: %s %v %v", bad, p, q, err)
		}
	}
	if _, _, err := source.SplitRef("a?stage=x", "version"); !errors.Is(err, sealed.ErrInvalid) {
		t.Error("a parameter that is not known was accepted")
	}
}

func FuzzSplitRef(f *testing.F) {
	for _, s := range []string{"a", "a?x=1", "a?x=1&x=2", "?", "a?%", "a??x=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		path, _, err := source.SplitRef(ref)
		if err != nil && !errors.Is(err, sealed.ErrInvalid) {
			t.Fatal(err)
		}
		if err == nil && (strings.Contains(path, "?") || !strings.HasPrefix(ref, path)) {
			t.Fatalf("%q became %q", ref, path)
		}
	})
}
