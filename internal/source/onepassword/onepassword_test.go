package onepassword_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/onepassword"
	"sealed.dev/sealed/internal/source/sourcetest"
)

const (
	vaultID = "ionaiwtdvgclrixbt6ztpqcxnq"
	itemID  = "p7eflcy7f5mk7vg6zrzf5rjjyu"
	token   = "connect.jwt.token"
)

func double(items ...map[string]any) http.Handler {
	return sourcetest.Connect(token, vaultID, "CI", items...)
}

func login(change func(map[string]any)) map[string]any {
	it := map[string]any{
		"id": itemID, "title": "GitHub/CI", "category": "LOGIN", "version": 3, "vault": map[string]any{"id": vaultID},
		"sections": []any{map[string]any{"id": "s1", "label": "prod"}, map[string]any{"id": "s2", "label": "test"}},
		"fields": []any{
			map[string]any{"id": "username", "type": "STRING", "purpose": "USERNAME", "label": "username", "value": "bot"},
			map[string]any{"id": "password", "type": "CONCEALED", "purpose": "PASSWORD", "label": "password", "value": "the-password-of-it"},
			map[string]any{"id": "f1", "type": "CONCEALED", "label": "token", "section": map[string]any{"id": "s1"}, "value": "token-of-prod"},
			map[string]any{"id": "f2", "type": "CONCEALED", "label": "token", "section": map[string]any{"id": "s2"}, "value": "token-of-test"},
			map[string]any{"id": "f3", "type": "STRING", "label": "empty"},
			map[string]any{"id": "f4", "type": "STRING", "label": "number", "value": 7},
		},
	}
	if change != nil {
		change(it)
	}
	return it
}

func config(address, ca string) sealed.SourceConfig {
	return sealed.SourceConfig{Name: "op", Type: sealed.SourceOnePassword, Address: address, CA: ca, Mount: "CI"}
}

func open(cfg sealed.SourceConfig) (sourcetest.Source, error) {
	return onepassword.Open(cfg, secret.New([]byte(token)))
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, sourcetest.Case{
		Config: config, Open: open, Good: func() http.Handler { return double(login(nil)) }, Retries: true,
		Ref: sealed.KeyRef{Path: "GitHub/CI"}, Want: "the-password-of-it",
		BadRefs: []sealed.KeyRef{{}, {Path: `a" or title eq "b`}, {Path: `a\`}, {Path: "a\nb"}, {Path: strings.Repeat("a", 257)}},
	})
}

// serve starts a double and opens a source on it.
func serve(t *testing.T, change func(*sealed.SourceConfig), items ...map[string]any) sourcetest.Source {
	t.Helper()
	srv := httptest.NewTLSServer(double(items...))
	t.Cleanup(srv.Close)
	cfg := config(srv.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	if change != nil {
		change(&cfg)
	}
	s, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mint(t *testing.T, s sourcetest.Source, ref sealed.KeyRef) (got string, err error) {
	m, err := s.Mint(t.Context(), ref, "")
	_ = m.Value.Reveal(func(b []byte) error { got = string(b); return nil })
	return got, err
}

func TestFields(t *testing.T) {
	for _, vault := range []string{"CI", vaultID} {
		s := serve(t, func(c *sealed.SourceConfig) { c.Mount = vault }, login(nil))
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
		for _, tt := range []struct {
			ref  sealed.KeyRef
			want string
			err  error
		}{
			{sealed.KeyRef{Path: itemID}, "the-password-of-it", nil},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "password", Version: "3"}, "the-password-of-it", nil},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "username"}, "bot", nil},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "prod/token"}, "token-of-prod", nil},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "s2/f2"}, "token-of-test", nil},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "f1"}, "token-of-prod", nil},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "token"}, "", sealed.ErrUnavailable},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "none"}, "", sealed.ErrUnavailable},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "empty"}, "", sealed.ErrUnavailable},
			{sealed.KeyRef{Path: "GitHub/CI", Field: "number"}, "", sealed.ErrUnavailable},
			{sealed.KeyRef{Path: "GitHub/CI", Version: "2"}, "", sealed.ErrNotFound},
			{sealed.KeyRef{Path: "github/ci"}, "", sealed.ErrNotFound},
			{sealed.KeyRef{Path: strings.Repeat("a", 26)}, "", sealed.ErrNotFound},
		} {
			got, err := mint(t, s, tt.ref)
			if got != tt.want || !errors.Is(err, tt.err) || (err != nil && !errors.Is(err, sealed.ErrUnavailable)) {
				t.Errorf("%s %+v: %q, %v", vault, tt.ref, got, err)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	ref := sealed.KeyRef{Path: "GitHub/CI"}
	for name, items := range map[string][]map[string]any{
		"archived":      {login(func(it map[string]any) { it["state"] = "ARCHIVED" })},
		"two of a name": {login(nil), login(func(it map[string]any) { it["id"] = strings.Repeat("b", 26) })},
		"other vault":   {login(func(it map[string]any) { it["vault"] = map[string]any{"id": strings.Repeat("c", 26)} })},
		"two passwords": {login(func(it map[string]any) {
			it["fields"] = append(it["fields"].([]any), map[string]any{"id": "p2", "purpose": "PASSWORD", "value": "x"})
		})},
		"odd id": {login(func(it map[string]any) { it["id"] = "../../health" })},
	} {
		if got, err := mint(t, serve(t, nil, items...), ref); !errors.Is(err, sealed.ErrUnavailable) || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := mint(t, serve(t, nil, login(nil)), ref); got != "the-password-of-it" {
		t.Errorf("negative control: %q, %v", got, err)
	}
	for _, vault := range []string{"other", strings.Repeat("z", 26)} {
		s := serve(t, func(c *sealed.SourceConfig) { c.Mount = vault }, login(nil))
		if err := s.Check(t.Context()); err == nil {
			t.Errorf("vault %s passes the check", vault)
		}
	}
	for _, cred := range []string{"", "two words", "a\r\nX: y", strings.Repeat("a", 9<<10)} {
		if _, err := onepassword.Open(config("https://x", ""), secret.New([]byte(cred))); !errors.Is(err, sealed.ErrInvalid) || (cred != "" && strings.Contains(fmt.Sprint(err), cred)) {
			t.Errorf("credential %q: %v", cred, err)
		}
	}
}
