package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/rego"
)

// recordedRequests writes n verdicts about requests that differ, as policy
// decisions would, and returns the file.
func recordedRequests(tb testing.TB, n int) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "decisions.jsonl")
	file, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	w := bufio.NewWriter(file)
	enc := json.NewEncoder(w)
	ref := sealed.BundleRef{Digest: sealed.DigestOf(sealed.DomainAgent, nil), Sequence: 1}
	for i := range n {
		e, err := decisionlog.New(fmt.Sprintf("verdict-%d", i), ref, recordedRequest(i), sealed.Decision{Effect: sealed.EffectAllow})
		if err != nil {
			tb.Fatal(err)
		}
		if err := enc.Encode(e); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	if err := file.Close(); err != nil {
		tb.Fatal(err)
	}
	return path
}

// recordedRequest is of low risk, or, each fifth, of high.
func recordedRequest(i int) sealed.Input {
	in := sealed.Input{
		Phase: "issue", Time: time.Unix(int64(1_700_000_000+i), 0).UTC(), Tenant: "acme",
		Requester: sealed.Requester{EntityID: fmt.Sprintf("e-%d", i%97), Name: "ann", Person: "ann@acme.test", Groups: []string{"release-eng"}, Claims: map[string]string{"repository": "acme/api"}},
		Agent:     sealed.InputAgent{Name: "claude-code", DefinitionDigest: sealed.DigestOf(sealed.DomainAgent, nil), SPIFFEID: "spiffe://acme.test/sealed/tenant/acme/agent/claude-code"},
		Run: sealed.InputRun{
			ID: sealed.RunID(fmt.Sprintf("01JTSEALED%016d", i)), Mode: sealed.ModeJIT, Workflow: "release", WorkflowProven: true, Tags: []sealed.InputTag{{Name: "production", Proven: true}},
			Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID, Assurance: sealed.AssuranceAttested, Network: sealed.NetworkNone,
		},
		Profile: sealed.InputProfile{Name: "team/release", Level: sealed.LevelWorkflow, Version: 7, Owner: "release-eng", Tags: []string{"production"}, AllowedWorkflows: []string{"release"}},
		Key: sealed.InputKey{
			Name: sealed.KeyName(fmt.Sprintf("KEY_%d", i%40)), Source: "vault-kv", SourceKind: "static", Agents: []string{"claude-code"}, Workflows: []string{"release"}, Tags: []string{"production"},
			Risk: sealed.RiskLow, Delivery: sealed.DeliveryProxy, TTL: 600, MaxTTL: 3600, RequesterMatches: true,
			Bindings: []sealed.Binding{{Host: "api.github.com", Methods: []string{"GET", "POST"}, Paths: []string{"/repos/acme/api/pulls/**"}, Header: "Authorization", Format: "Bearer {}"}},
		},
	}
	if i%5 == 0 {
		in.Key.Risk = sealed.RiskHigh
	}
	return in
}

// shorter is the default policy, but that a key of low risk is given for 300
// seconds.
func shorter(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.CopyFS(dir, rego.FS()); err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(dir, "sealed", "authz", "authz.rego")
	src, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(src, []byte(", 3600]"), []byte(", 300]")), 0o600); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func TestPolicyDiffOfManyRequests(t *testing.T) {
	a := newApp(nil, io.Discard, io.Discard)
	const n = 10_000 // more than are read at a time
	got, err := a.diffPolicies(t.Context(), "default", shorter(t), recorded{from: recordedRequests(t, n)})
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for _, c := range got.Changes {
		if changed += c.Count; c.Change != "other obligations" || c.Key == "KEY_0" {
			t.Errorf("%+v", c)
		}
	}
	if got.Decisions != n || got.Skipped != 0 || changed != n*4/5 {
		t.Errorf("%d decisions, %d skipped, %d changed", got.Decisions, got.Skipped, changed)
	}
}

// The goal is 60 s for 100,000 requests on two processors.
func BenchmarkPolicyDiff(b *testing.B) {
	a := newApp(nil, io.Discard, io.Discard)
	const n = 100_000
	r, newer := recorded{from: recordedRequests(b, n)}, shorter(b)
	for b.Loop() {
		if got, err := a.diffPolicies(b.Context(), "default", newer, r); err != nil || got.Decisions != n {
			b.Fatal(got, err)
		}
	}
}
