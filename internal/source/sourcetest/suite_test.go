package sourcetest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

// careless is a source with every control switched off: it trusts anybody,
// follows, retries, reads whatever comes, and repeats it in its errors.
type careless struct {
	address string
	client  http.Client
	tries   int
}

func (careless) Prepare(context.Context, sealed.KeyRef) (string, error) { return "", nil }
func (careless) Renew(context.Context, string) (time.Duration, error)   { return time.Hour, nil }
func (careless) Revoke(context.Context, string) error                   { return nil }
func (careless) Check(context.Context) error                            { return nil }
func (careless) Keep(context.Context) error                             { return nil }
func (careless) Revocable() bool                                        { return false }
func (c careless) Mint(_ context.Context, ref sealed.KeyRef, _ string) (m source.Minted, err error) {
	for range c.tries {
		var resp *http.Response
		if resp, err = c.client.Get(c.address + "/" + ref.Path); err != nil {
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var doc struct{ Value string }
		if err = json.Unmarshal(body, &doc); err != nil || resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("the upstream says %s", body)
			continue
		}
		return source.Minted{Value: secret.New([]byte(doc.Value))}, nil
	}
	return m, err
}

// TestSuiteFindsCarelessness is the negative control of the suite.
func TestSuiteFindsCarelessness(t *testing.T) {
	for tries, wants := range map[int][]string{
		1: {"malformed JSON at call 0: the error is", "status 403 at call 0: the error is", "gzip bomb at call 0: the error is", "redirect 302 at call 0: the redirect was followed"},
		2: {
			"reference {Path:../x", "renewing what can't be renewed", "minting for a caller who is gone", "trusting another CA", "trusting the system's roots", "the check trusts a stranger", "it tells no version",
			"null at call 0: it gave a value", "wrong content type at call 0: it gave a value", "status 500 at call 0: it gave a value", "slow body at call 0: it gave a value",
		},
	} {
		found := strings.Join(Case{
			Config: func(address, ca string) sealed.SourceConfig {
				return sealed.SourceConfig{Name: "x", Type: sealed.SourceVaultKV, Address: address, CA: ca, Mount: "x"}
			},
			Open: func(cfg sealed.SourceConfig) (Source, error) {
				transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
				return careless{cfg.Address, http.Client{Timeout: 5 * time.Second, Transport: transport}, tries}, nil
			},
			Good: func() http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					_, _ = io.WriteString(w, `{"value":"right-value-of-the-upstream"}`)
				})
			},
			Ref:     sealed.KeyRef{Path: "a"},
			BadRefs: []sealed.KeyRef{{Path: "../x"}},
		}.Violations(t), "\n")
		for _, want := range wants {
			if !strings.Contains(found, want) {
				t.Errorf("with %d tries, the suite does not find %q in\n%s", tries, want, found)
			}
		}
	}
}
