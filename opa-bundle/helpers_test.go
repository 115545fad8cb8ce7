package opabundle

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"
	"testing/fstest"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/rego"
)

// now is the time of every test decision; test bundles expire a day later.
var now = time.Date(2026, 5, 1, 10, 0, 0, 123456789, time.UTC)

// patient keeps a busy machine from failing tests that are not about time.
var patient = Limits{Eval: time.Minute}

func testManifest() Manifest {
	return Manifest{Revision: "test", Sequence: 7, Expires: now.Add(24 * time.Hour).Truncate(time.Second)}
}

// A testKey signs test bundles under the id "k1".
type testKey struct {
	signer crypto.Signer
	public string
}

func newKey(t testing.TB) testKey {
	t.Helper()
	priv, pub, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return testKey{signer: parseKey(t, priv), public: string(pub)}
}

func parseKey(t testing.TB, private []byte) crypto.Signer {
	t.Helper()
	block, _ := pem.Decode(private)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (k testKey) options() Options { return Options{Keys: map[string]string{"k1": k.public}} }

func (k testKey) sign(t testing.TB, raw []byte) []byte {
	t.Helper()
	signed, err := Sign(context.Background(), raw, k.signer, "k1")
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// seal signs arbitrary files, without the checks of Build.
func (k testKey) seal(t testing.TB, files ...file) []byte {
	t.Helper()
	return k.sign(t, archive(t, files...))
}

func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	raw, err := writeArchive(files)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func manifestFile(t testing.TB) file {
	t.Helper()
	b, err := testManifest().marshal()
	if err != nil {
		t.Fatal(err)
	}
	return file{manifestName, b}
}

func buildDefault(t testing.TB) []byte {
	t.Helper()
	return buildWith(t, testManifest())
}

func buildWith(t testing.TB, m Manifest) []byte {
	t.Helper()
	raw, err := Build(context.Background(), rego.FS(), m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// policies returns a source tree that answers both questions, authz as given.
func policies(authz string) fstest.MapFS {
	return fstest.MapFS{
		"sealed/authz/authz.rego":       {Data: []byte("package sealed.authz\n\n" + authz)},
		"sealed/approval/approval.rego": {Data: []byte("package sealed.approval\n\ndecision := {\"effect\": \"allow\", \"reasons\": [], \"obligations\": {}}\n")},
	}
}

func openPolicies(t testing.TB, authz string, limits Limits) *Bundle {
	t.Helper()
	raw, err := Build(context.Background(), policies(authz), testManifest())
	if err != nil {
		t.Fatal(err)
	}
	return open(t, raw, limits)
}

func open(t testing.TB, unsigned []byte, limits Limits) *Bundle {
	t.Helper()
	k := newKey(t)
	opts := k.options()
	opts.Limits = limits
	b, err := Open(context.Background(), k.sign(t, unsigned), opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fullInput sets every field; the default policy allows it.
func fullInput() *sealed.Input {
	return &sealed.Input{
		Phase: "issue", Time: now, Tenant: "acme", Reason: "to open <the> pull request",
		Requester: sealed.Requester{EntityID: "e-1", Name: "ann", Person: "ann@acme.test", Groups: []string{"release-eng"}, Claims: map[string]string{"repository": "acme/api", "ref": "refs/heads/main"}},
		Agent:     sealed.InputAgent{Name: "claude-code", DefinitionDigest: sealed.DigestOf(sealed.DomainAgent, nil), SPIFFEID: "spiffe://acme.test/sealed/tenant/acme/agent/claude-code"},
		Run: sealed.InputRun{ID: "01JTSEALED0000000000000000", Mode: sealed.ModeJIT, Workflow: "release", WorkflowProven: true, Tags: []sealed.InputTag{{Name: "production", Proven: true}, {Name: "eu", Proven: true}},
			Backend: "local", Isolation: sealed.IsolationOwnUID, Assurance: sealed.AssuranceAttested, Network: sealed.NetworkNone, Interactive: true},
		Profile: sealed.InputProfile{Name: "team/release", Level: "workflow", Version: 7, Owner: "release-eng", Tags: []string{"production"}, AllowedWorkflows: []string{"release"}},
		Key: sealed.InputKey{Name: "GITHUB_TOKEN", Source: "vault-kv", SourceKind: "static", Agents: []string{"claude-code", "codex"}, Workflows: []string{"release"}, Tags: []string{"production"}, Risk: "low", Delivery: "proxy",
			Bindings: []sealed.Binding{{Host: "api.github.com", Methods: []string{"GET", "POST"}, Paths: []string{"/repos/acme/api/pulls/**"}, Header: "Authorization", Format: "Bearer {}"}},
			TTL:      600, MaxTTL: 3600, RequesterMatches: true},
	}
}

func fullApprovalInput(t testing.TB) *sealed.ApprovalInput {
	t.Helper()
	object, _, err := sealed.ApprovalObject{
		V: 1, ID: "01JTSEALED0000000000000001", Tenant: "acme", Run: "01JTSEALED0000000000000000", ManifestDigest: "m", CommandDigest: "c", Agent: "claude-code", Workflow: "release", Profile: "team/release", Key: "GITHUB_TOKEN",
		SpecDigest: "s", Risk: "high", Delivery: "proxy", Bindings: []sealed.Binding{{Host: "api.github.com", Methods: []string{"GET"}, Paths: []string{"/**"}, Header: "Authorization", Format: "Bearer {}"}}, TTL: 600, Isolation: "own_uid",
		Requester: "ann", RequesterID: "e-1", Person: "ann@acme.test", Reason: "to <open>", Reasons: []sealed.Reason{{Code: "risk_high", Msg: "m"}}, Quorum: 1, Groups: []string{"sealed-approvers"},
		Bundle: sealed.BundleRef{Digest: "d", Sequence: 7}, Overlay: sealed.BundleRef{Digest: "o", Sequence: 2}, CreatedAt: now.Add(-time.Minute), ExpiresAt: now.Add(time.Minute),
	}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &sealed.ApprovalInput{
		Time: now, Tenant: "acme", Approval: object,
		Voter: sealed.Requester{EntityID: "e-2", Name: "bob", Person: "bob@acme.test", Groups: []string{"sealed-approvers"}, Claims: map[string]string{"sub": "bob"}},
		Votes: []sealed.Vote{{Person: "cy@acme.test", EntityID: "e-3", Name: "cy", Groups: []string{"sealed-approvers"}, Yes: true, At: now}},
	}
}
