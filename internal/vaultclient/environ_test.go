package vaultclient

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestEnvironmentChangesNothing: what Vault's own client would take from the
// environment must not reach the server, above all not VAULT_WRAP_TTL, which
// would put a run's ticket into a wrapping token.
func TestEnvironmentChangesNothing(t *testing.T) {
	t.Setenv("VAULT_WRAP_TTL", "60s")
	t.Setenv("VAULT_NAMESPACE", "elsewhere")
	t.Setenv("VAULT_TOKEN", "from-the-environment")
	var got http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		_, _ = w.Write([]byte(`{"data":{}}`))
	}))
	defer srv.Close()
	c, err := New(srv.URL, nil, "mine")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(t.Context(), "sealed/runs", map[string]any{"spec": "{}"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"X-Vault-Wrap-Ttl": "", "X-Vault-Namespace": "", "X-Vault-Token": "mine"} {
		if v := got.Get(name); v != want {
			t.Errorf("%s = %q, want %q", name, v, want)
		}
	}
}
