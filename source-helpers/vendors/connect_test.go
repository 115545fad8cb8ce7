// Package vendors_test drives our doubles of servers that can't be had with
// the vendors' own clients: a double that only we understand proves nothing.
// AWS's is driven by AWS's SDK in package aws. Bitwarden's clients may not be
// used for this; an exchange that Bitwarden published stands in for them.
package vendors_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/1Password/connect-sdk-go/connect"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/onepassword"
	"sealed.dev/sealed/internal/source/sourcetest"
)

const (
	vaultID = "ionaiwtdvgclrixbt6ztpqcxnq"
	itemID  = "p7eflcy7f5mk7vg6zrzf5rjjyu"
)

// TestConnect: 1Password's client and our source read the same from the
// double, and both are refused with another token.
func TestConnect(t *testing.T) {
	srv := httptest.NewTLSServer(sourcetest.Connect("token", vaultID, "CI", map[string]any{
		"id": itemID, "title": "GitHub", "category": "LOGIN", "version": 3, "vault": map[string]any{"id": vaultID},
		"fields": []any{map[string]any{"id": "password", "type": "CONCEALED", "purpose": "PASSWORD", "label": "password", "value": "the-password"}},
	}))
	t.Cleanup(srv.Close)
	// The vendor's client takes no CA: it uses the default transport.
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	transport := http.DefaultTransport.(*http.Transport)
	old := transport.TLSClientConfig
	transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	t.Cleanup(func() { transport.TLSClientConfig = old })
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))

	for token, ok := range map[string]bool{"token": true, "other": false} {
		client := connect.NewClient(srv.URL, token)
		vaults, err := client.GetVaultsByTitle("CI")
		if ok != (err == nil && len(vaults) == 1 && vaults[0].ID == vaultID) {
			t.Errorf("%s: vaults %v, %v", token, vaults, err)
		}
		item, err := client.GetItemByTitle("GitHub", vaultID)
		if ok != (err == nil && item.ID == itemID && item.Version == 3 && item.GetValue("password") == "the-password") {
			t.Errorf("%s: item, %v", token, err)
		}
		s, err := onepassword.Open(sealed.SourceConfig{Name: "op", Type: sealed.SourceOnePassword, Address: srv.URL, CA: ca, Mount: "CI"}, secret.New([]byte(token)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Mint(t.Context(), sealed.KeyRef{Path: "GitHub"}, "")
		got := ""
		_ = m.Value.Reveal(func(b []byte) error { got = string(b); return nil })
		if ok != (err == nil && got == "the-password") {
			t.Errorf("%s: our source: %q, %v", token, got, err)
		}
	}
}
