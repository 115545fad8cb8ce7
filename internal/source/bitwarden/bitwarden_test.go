package bitwarden

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/sourcetest"
)

const (
	orgID    = "f4e44a7f-1190-432a-9d4a-af96013127cb"
	secretID = "15744a66-341a-4c62-af50-af960166b6bc"
	// What the servers answered in Bitwarden's own tests of its clients.
	recordedPayload = "2.E9fE8+M/VWMfhhim1KlCbQ==|eLsHR484S/tJbIkM6spnG/HP65tj9A6Tba7kAAvUp+rYuQmGLixiOCfMsqt5OvBctDfvvr/AesBu7cZimPLyOEhqEAjn52jF0eaI38XZfeOG2VJl0LOf60Wkfh3ryAMvfvLj3G4ZCNYU8sNgoC2+IQ==|lNApuCQ4Pyakfo/wwuuajWNaEX/2MW8/3rjXB/V7n+k="
	recordedValue   = "2.Gl34n9JYABC7V21qHcBzHg==|c1Ds244pob7i+8+MXe4++w==|Shimz/qKMYZmzSFWdeBzFb9dFz7oF6Uv9oqkws7rEe0="
	recordedNote    = "2.Cn9ABJy7+WfR4uUHwdYepg==|+nbJyU/6hSknoa5dcEJEUg==|1DTp/ZbwGO3L3RN+VMsCHz8XDr8egn/M5iSitGGysPA="
)

// A double is both servers, under /identity and /api. It is a double: it
// checks the login as OAuth 2.0 says and answers as the servers do.
type double struct {
	payload, value, note, org string
	logins                    int
	refuse                    bool
}

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	send := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
	if r.Method == http.MethodPost && r.URL.Path == "/identity/connect/token" {
		body, _ := io.ReadAll(r.Body)
		want := "client_id=ec2c1d46-6a4b-4751-a310-af9601317f2d&client_secret=C2IgxjjLF7qSshsbwe8JGcbM075YXw&grant_type=client_credentials&scope=api.secrets"
		if string(body) != want || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.Header.Get("Authorization") != "" {
			send(http.StatusBadRequest, map[string]any{"error": "invalid_client"})
			return
		}
		d.logins++
		send(http.StatusOK, map[string]any{"access_token": fmt.Sprintf("jwt-%d", d.logins), "expires_in": 3600, "token_type": "Bearer", "scope": "api.secrets", "encrypted_payload": d.payload})
		return
	}
	if d.refuse || r.Header.Get("Authorization") != fmt.Sprintf("Bearer jwt-%d", d.logins) {
		send(http.StatusUnauthorized, map[string]any{"message": "Unauthorized"})
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /api/secrets/" + secretID:
		send(http.StatusOK, map[string]any{"id": secretID, "organizationId": d.org, "key": d.value, "value": d.value, "note": d.note, "object": "secret", "revisionDate": "2024-01-02T03:04:05.67Z"})
	case "GET /api/organizations/" + orgID + "/secrets":
		send(http.StatusOK, map[string]any{"secrets": []any{map[string]any{"id": secretID}}, "projects": []any{}, "object": "SecretsWithProjectsList"})
	default:
		send(http.StatusNotFound, map[string]any{"message": "Resource not found."})
	}
}

// ours is a double that encrypts with keys of its own.
func ours(value string) *double {
	derived, _ := base64.StdEncoding.DecodeString(vectorKey)
	org := []byte(strings.Repeat("organization-key", 4))
	payload, _ := json.Marshal(map[string]string{"encryptionKey": base64.StdEncoding.EncodeToString(org)})
	return &double{payload: encrypt(derived, [16]byte{1}, string(payload)), value: encrypt(org, [16]byte{2}, value), note: encrypt(org, [16]byte{3}, ""), org: orgID}
}

func config(address, ca string) sealed.SourceConfig {
	return sealed.SourceConfig{Name: "bw", Type: sealed.SourceBitwarden, Address: address + "/api", CA: ca, Mount: orgID, Auth: sealed.SourceAuth{Address: address + "/identity"}}
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, sourcetest.Case{
		Config: config,
		Open: func(cfg sealed.SourceConfig) (sourcetest.Source, error) {
			return Open(cfg, secret.New([]byte(vectorToken)), nil)
		},
		Good:    func() http.Handler { return ours("the-value-of-the-secret") },
		Ref:     sealed.KeyRef{Path: secretID},
		Want:    "the-value-of-the-secret",
		Retries: true,
		BadRefs: []sealed.KeyRef{{}, {Path: "../x"}, {Path: strings.ToUpper(secretID)}, {Path: secretID, Field: "key"}},
	})
}

func serve(t *testing.T, d *double, now func() time.Time) *Source {
	t.Helper()
	srv := httptest.NewTLSServer(d)
	t.Cleanup(srv.Close)
	s, err := Open(config(srv.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))), secret.New([]byte(vectorToken)), now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mint(t *testing.T, s *Source, ref sealed.KeyRef) (string, error) {
	t.Helper()
	m, err := s.Mint(t.Context(), ref, "")
	return string(bytesOf(t, m.Value)), err
}

// TestRecorded replays an exchange that Bitwarden published.
func TestRecorded(t *testing.T) {
	s := serve(t, &double{payload: recordedPayload, value: recordedValue, note: recordedNote, org: orgID}, nil)
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for _, field := range []string{"", "value", "note"} {
		if got, err := mint(t, s, sealed.KeyRef{Path: secretID, Field: field}); err != nil || got != "TEST" {
			t.Errorf("field %q: %q, %v", field, got, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	ref := sealed.KeyRef{Path: secretID}
	for name, change := range map[string]func(*double){
		"other organization": func(d *double) { d.org = secretID },
		"key of nobody":      func(d *double) { d.payload = recordedPayload },
		"value of another":   func(d *double) { d.value = recordedValue },
		"plain value":        func(d *double) { d.value = "the-value-of-the-secret" },
		"no payload":         func(d *double) { d.payload = "" },
		"type 0":             func(d *double) { d.value = "0" + d.value[1:] },
		"empty value":        func(d *double) { d.value = d.note },
	} {
		d := ours("the-value-of-the-secret")
		change(d)
		if got, err := mint(t, serve(t, d, nil), ref); !errors.Is(err, sealed.ErrUnavailable) || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	s := serve(t, ours("the-value-of-the-secret"), nil)
	if got, err := mint(t, s, ref); got != "the-value-of-the-secret" {
		t.Errorf("negative control: %q, %v", got, err)
	}
	if _, err := mint(t, s, sealed.KeyRef{Path: orgID}); !errors.Is(err, sealed.ErrNotFound) {
		t.Errorf("a secret that is not there: %v", err)
	}
	if _, err := Open(config("https://x", ""), secret.New([]byte("canary")), nil); !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
}

// TestLogins: one login serves until it is about to end or was refused.
func TestLogins(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	d := ours("the-value-of-the-secret")
	s := serve(t, d, func() time.Time { return at })
	for _, step := range []struct {
		after      time.Duration
		refuse, ok bool
		logins     int
	}{
		{0, false, true, 1}, {time.Second, false, true, 1}, {time.Second, true, false, 1}, {time.Second, false, true, 1}, // a new login is not doubted
		{time.Minute, true, false, 1}, {time.Second, false, true, 2},
		{53 * time.Minute, false, true, 2}, {2 * time.Minute, false, true, 3},
	} {
		at = at.Add(step.after)
		d.refuse = step.refuse
		if _, err := mint(t, s, sealed.KeyRef{Path: secretID}); (err == nil) != step.ok || d.logins != step.logins {
			t.Fatalf("%+v: %v, %d logins", step, err, d.logins)
		}
	}
}
