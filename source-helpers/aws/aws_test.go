package aws_test

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
	"sealed.dev/sealed/internal/source/sourcetest"
	"sealed.dev/sealed/source-helpers/aws"
)

const (
	oldID     = "11111111-1111-1111-1111-111111111111"
	currentID = "22222222-2222-2222-2222-222222222222"
	static    = `{"access_key_id":"` + accessKey + `","secret_access_key":"` + secretKey + `"}`
)

func secrets() map[string][]version {
	return map[string][]version{
		"prod/ci/github": {{id: oldID, stages: []string{"AWSPREVIOUS"}, text: "the-previous-value"}, {id: currentID, stages: []string{"AWSCURRENT", "blue"}, text: "the-current-value"}},
		"prod/json":      {{id: currentID, stages: []string{"AWSCURRENT"}, text: `{"user":"u","password":"the-password","port":5432}`}},
		"prod/binary":    {{id: currentID, stages: []string{"AWSCURRENT"}, binary: []byte{0, 1, 0xff}}},
		"prod/empty":     {{id: currentID, stages: []string{"AWSCURRENT"}}},
		"test/other":     {{id: currentID, stages: []string{"AWSCURRENT"}, text: "canary-of-another-prefix"}},
	}
}

func config(address, ca string) sealed.SourceConfig {
	return sealed.SourceConfig{Name: "sm", Type: sealed.SourceAWS, Address: address, CA: ca, Region: region, Mount: "prod/"}
}

func federated(address, ca string) sealed.SourceConfig {
	cfg := config(address, ca)
	cfg.Auth = sealed.SourceAuth{Method: sealed.AuthWebIdentity, Role: roleARN, Address: address}
	return cfg
}

func TestConformance(t *testing.T) {
	for name, c := range map[string]sourcetest.Case{
		"static": {
			Config: config, Type: "application/x-amz-json-1.1",
			Open: func(cfg sealed.SourceConfig) (sourcetest.Source, error) {
				return aws.Open(cfg, secret.New([]byte(static)))
			},
			Good: func() http.Handler { return &double{secrets: secrets()} },
		},
		"web identity": {
			Config: federated, Type: "text/xml",
			Open: func(cfg sealed.SourceConfig) (sourcetest.Source, error) {
				return aws.Open(cfg, secret.New([]byte(jwt)))
			},
			Good: func() http.Handler { return &double{secrets: secrets(), session: "session-token"} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.Ref, c.Want = sealed.KeyRef{Path: "ci/github"}, "the-current-value"
			c.BadRefs = []sealed.KeyRef{
				{Path: "arn:aws:secretsmanager:eu-central-1:1:secret:x"}, {Path: "a b"}, {Path: "a?stage=x&version=" + oldID}, {Path: "a?x=y"}, {Path: "a?version=short"},
				{Path: "a?stage="}, {Path: "ci/github", Version: "1"}, {Path: "ci/github?version=" + oldID, Version: "00000000-0000-0000-0000-000000000000"}, {Path: strings.Repeat("a", 600)},
			}
			sourcetest.Run(t, c)
		})
	}
}

// serve starts a double and opens a source on it.
func serve(t *testing.T, d *double, conf func(address, ca string) sealed.SourceConfig, credential string) *aws.Source {
	t.Helper()
	srv := httptest.NewTLSServer(d)
	t.Cleanup(srv.Close)
	s, err := aws.Open(conf(srv.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))), secret.New([]byte(credential)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mint(t *testing.T, s *aws.Source, ref sealed.KeyRef) (got string, err error) {
	t.Helper()
	m, err := s.Mint(t.Context(), ref, "")
	_ = m.Value.Reveal(func(b []byte) error { got = string(b); return nil })
	return got, err
}

func TestStagesAndVersions(t *testing.T) {
	s := serve(t, &double{secrets: secrets()}, config, static)
	for _, tt := range []struct {
		ref  sealed.KeyRef
		want string
		err  error
	}{
		{sealed.KeyRef{Path: "ci/github"}, "the-current-value", nil},
		{sealed.KeyRef{Path: "ci/github?stage=AWSPREVIOUS"}, "the-previous-value", nil},
		{sealed.KeyRef{Path: "ci/github?stage=blue"}, "the-current-value", nil},
		{sealed.KeyRef{Path: "ci/github?version=" + oldID}, "the-previous-value", nil},
		{sealed.KeyRef{Path: "ci/github", Version: oldID}, "the-previous-value", nil},
		{sealed.KeyRef{Path: "ci/github?stage=AWSCURRENT", Version: oldID}, "the-previous-value", nil},
		{sealed.KeyRef{Path: "ci/github?stage=none"}, "", sealed.ErrNotFound},
		{sealed.KeyRef{Path: "ci/none"}, "", sealed.ErrNotFound},
		{sealed.KeyRef{Path: "json", Field: "password"}, "the-password", nil},
		{sealed.KeyRef{Path: "json", Field: "port"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "json", Field: "none"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "ci/github", Field: "x"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "binary"}, "\x00\x01\xff", nil},
		{sealed.KeyRef{Path: "empty"}, "", sealed.ErrUnavailable},
		{sealed.KeyRef{Path: "../test/other"}, "", sealed.ErrNotFound}, // a name, not a path
	} {
		got, err := mint(t, s, tt.ref)
		if got != tt.want || !errors.Is(err, tt.err) || strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("%+v: %q, %v", tt.ref, got, err)
		}
	}
}

// TestSignature: the double refuses a key that is not the right one; with the
// right one it serves the same calls (negative control).
func TestSignature(t *testing.T) {
	ref := sealed.KeyRef{Path: "ci/github"}
	for name, tt := range map[string]struct {
		credential string
		conf       func(address, ca string) sealed.SourceConfig
		session    string
		ok         bool
	}{
		"right":         {static, config, "", true},
		"other secret":  {strings.Replace(static, "wJal", "xJal", 1), config, "", false},
		"other id":      {strings.Replace(static, "AKID", "BKID", 1), config, "", false},
		"session":       {strings.Replace(static, "}", `,"session_token":"s"}`, 1), config, "s", true},
		"no session":    {static, config, "s", false},
		"web identity":  {jwt, federated, "s2", true},
		"other jwt":     {"x" + jwt, federated, "s2", false},
		"other region":  {static, func(a, ca string) sealed.SourceConfig { c := config(a, ca); c.Region = "us-east-1"; return c }, "", false},
		"other account": {jwt, func(a, ca string) sealed.SourceConfig { c := federated(a, ca); c.Auth.Role += "2"; return c }, "s2", true}, // a prefix, as the double compares
	} {
		d := &double{secrets: secrets(), session: tt.session}
		s := serve(t, d, tt.conf, tt.credential)
		if err := s.Check(t.Context()); tt.ok != (err == nil) {
			t.Errorf("%s: check: %v, %v", name, err, d.refused)
		}
		got, err := mint(t, s, ref)
		if tt.ok != (err == nil) || tt.ok != (got == "the-current-value") || (err != nil && !errors.Is(err, sealed.ErrUnavailable)) || strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("%s: %q, %v, %v", name, got, err, d.refused)
		}
		if d.logins > 1 {
			t.Errorf("%s: %d logins", name, d.logins)
		}
	}
}

func TestLies(t *testing.T) {
	for name, lie := range map[string]func(map[string]any){
		"other name":  func(m map[string]any) { m["Name"] = "test/other" },
		"no name":     func(m map[string]any) { delete(m, "Name") },
		"other stage": func(m map[string]any) { m["VersionStages"] = []string{"AWSPREVIOUS"} },
		"no value":    func(m map[string]any) { delete(m, "SecretString") },
		"number":      func(m map[string]any) { m["SecretString"] = 7 },
	} {
		if got, err := mint(t, serve(t, &double{secrets: secrets(), lie: lie}, config, static), sealed.KeyRef{Path: "ci/github"}); !errors.Is(err, sealed.ErrUnavailable) || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	other := func(m map[string]any) { m["VersionId"] = currentID }
	if got, err := mint(t, serve(t, &double{secrets: secrets(), lie: other}, config, static), sealed.KeyRef{Path: "ci/github?version=" + oldID}); !errors.Is(err, sealed.ErrUnavailable) || got != "" {
		t.Errorf("other version: %q, %v", got, err)
	}
}

// TestNothingFromTheEnvironment: the SDK's chain of defaults has no say.
func TestNothingFromTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "CANARY", "AWS_SECRET_ACCESS_KEY": "canary", "AWS_SESSION_TOKEN": "canary", "AWS_ENDPOINT_URL": "https://192.0.2.1", "AWS_ENDPOINT_URL_SECRETS_MANAGER": "https://192.0.2.1",
		"AWS_REGION": "us-gov-west-1", "AWS_CA_BUNDLE": "/nonexistent", "HTTPS_PROXY": "http://192.0.2.1:1", "AWS_MAX_ATTEMPTS": "9",
	} {
		t.Setenv(name, value)
	}
	if got, err := mint(t, serve(t, &double{secrets: secrets()}, config, static), sealed.KeyRef{Path: "ci/github"}); got != "the-current-value" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, cred := range []string{"", "canary", "{}", `{"access_key_id":"canary"}`, `{"access_key_id":"a","secret_access_key":"b","canary":"c"}`, static + static} {
		if _, err := aws.Open(config("https://x", ""), secret.New([]byte(cred))); !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), "canary") {
			t.Errorf("credential %q: %v", cred, err)
		}
	}
	if _, err := aws.Open(federated("https://x", ""), secret.New([]byte("two words"))); !errors.Is(err, sealed.ErrInvalid) {
		t.Error(err)
	}
	if _, err := aws.Open(config("https://x", "no PEM"), secret.New([]byte(static))); !errors.Is(err, sealed.ErrInvalid) {
		t.Error(err)
	}
}
