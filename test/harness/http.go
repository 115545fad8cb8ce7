package harness

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
)

// HTTP sends one request to the stack's Vault, past every client of ours. body
// nil sends none, token "" is nobody's.
func (s *Stack) HTTP(t testing.TB, client *http.Client, token, method, path string, body []byte) (status int, answer []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, s.Status.VaultAddr+"/v1/"+path, bytes.NewReader(body))
	Must(t, err)
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := client.Do(req)
	Must(t, err)
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	Must(t, err)
	return resp.StatusCode, answer
}
