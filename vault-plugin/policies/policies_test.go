package policies

import (
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl"
)

type rule struct {
	Capabilities []string            `hcl:"capabilities"`
	Allowed      map[string][]string `hcl:"allowed_parameters"`
}

// load parses every policy as Vault does, with a mount filled in.
func load(t *testing.T) map[string]map[string]rule {
	t.Helper()
	names, err := fs.Glob(Policies, "*.hcl")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]rule{}
	for _, name := range names {
		text, err := fs.ReadFile(Policies, name)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Path map[string]rule `hcl:"path"`
		}
		if err := hcl.Decode(&doc, strings.ReplaceAll(string(text), "{{mount}}", "sealed")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out[strings.TrimSuffix(name, ".hcl")] = doc.Path
	}
	return out
}

func TestRoles(t *testing.T) {
	var roles []string
	for role, rules := range load(t) {
		roles = append(roles, role)
		if len(rules) == 0 {
			t.Errorf("%s grants nothing", role)
		}
		for path, r := range rules {
			for _, c := range r.Capabilities {
				if !slices.Contains([]string{"create", "read", "update", "patch", "delete", "list", "sudo"}, c) {
					t.Errorf("%s %s: unknown capability %q", role, path, c)
				}
			}
			if slices.Contains(r.Capabilities, "sudo") != (path == "sys/leases/revoke-prefix/sealed/runs/*") {
				t.Errorf("%s %s: sudo on anything but the leases of runs", role, path)
			}
		}
	}
	slices.Sort(roles)
	want := []string{"sealed-agent", "sealed-approver", "sealed-auditor", "sealed-operator", "sealed-policy", "sealed-profiles", "sealed-root", "sealed-secrets", "sealed-user-profiles"}
	if diff := cmp.Diff(want, roles); diff != "" {
		t.Error(diff)
	}
}

// grants reports whether a role has a capability on a path of the mount.
func grants(rules map[string]rule, path, capability string) bool {
	for pattern, r := range rules {
		re := regexp.QuoteMeta(pattern)
		re = strings.ReplaceAll(re, `\+`, `[^/]+`)
		if strings.HasSuffix(re, `\*`) {
			re = strings.TrimSuffix(re, `\*`) + ".*"
		}
		if regexp.MustCompile("^"+re+"$").MatchString(path) && slices.Contains(r.Capabilities, capability) {
			return true
		}
	}
	return false
}

// TestSeparation holds the table of DESIGN §4: who may call what, and that
// nobody else may (F01 for the ready-made policies).
func TestSeparation(t *testing.T) {
	policies := load(t)
	tests := []struct {
		path, capability string
		roles            []string
	}{
		{"sealed/config", "update", []string{"sealed-root"}},
		{"sealed/config/trust-bundle", "update", []string{"sealed-root"}},
		{"sealed/config/policy-keys", "update", []string{"sealed-root"}},
		{"sealed/policy", "update", []string{"sealed-policy"}},
		{"sealed/policy/shadow", "update", []string{"sealed-policy"}},
		{"sealed/policy/shadow", "read", []string{"sealed-policy"}},
		{"sealed/policy/shadow", "delete", []string{"sealed-policy"}},
		{"sealed/policy/overlay", "update", []string{"sealed-policy"}},
		{"sealed/policy/overlay", "read", []string{"sealed-policy"}},
		{"sealed/policy/overlay", "delete", []string{"sealed-policy"}},
		{"sealed/policy/decide", "update", []string{"sealed-operator", "sealed-policy"}},
		{"sealed/policy/bundle/" + strings.Repeat("a", 64), "read", []string{"sealed-auditor", "sealed-operator", "sealed-policy"}},
		{"sealed/policy/bundle/" + strings.Repeat("a", 64), "update", nil},
		{"sealed/sources/kv", "update", []string{"sealed-secrets"}},
		{"sealed/sources/kv", "delete", []string{"sealed-secrets"}},
		{"sealed/secrets/ci/github", "update", []string{"sealed-secrets"}},
		{"sealed/secrets/ci/github", "read", []string{"sealed-secrets"}},
		{"sealed/agents/codex", "update", []string{"sealed-profiles"}},
		{"sealed/profiles/system/team/release", "update", []string{"sealed-profiles"}},
		{"sealed/profiles/workflow/team/release", "patch", []string{"sealed-profiles"}},
		{"sealed/profiles/user/e-1/team/release", "update", []string{"sealed-profiles"}},
		{"sealed/profiles/user/{{identity.entity.id}}/team/release", "update", []string{"sealed-profiles", "sealed-user-profiles"}},
		{"sealed/profiles/preview", "update", []string{"sealed-operator", "sealed-profiles"}},
		{"sealed/profiles/preview-as", "update", []string{"sealed-profiles"}},
		{"sealed/runs", "update", []string{"sealed-operator"}},
		{"sealed/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-auditor", "sealed-operator"}},
		{"sealed/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/close", "update", []string{"sealed-operator"}},
		{"sealed/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/claim", "update", []string{"sealed-agent"}},
		{"sealed/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/creds/GITHUB_TOKEN", "read", []string{"sealed-agent"}},
		{"sealed/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/creds/GITHUB_TOKEN", "update", nil},
		{"sealed/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/watch", "read", []string{"sealed-agent"}},
		{"sealed/revocations", "update", []string{"sealed-operator"}},
		{"sealed/revocations/01ARZ3NDEKTSV4RRFFQ69G5FAV/lift", "update", []string{"sealed-operator"}},
		{"sealed/approvals/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-approver", "sealed-operator"}},
		{"sealed/approvals/01ARZ3NDEKTSV4RRFFQ69G5FAV/approve", "update", []string{"sealed-approver"}},
		{"sealed/approvals/01ARZ3NDEKTSV4RRFFQ69G5FAV/deny", "update", []string{"sealed-approver"}},
		{"sealed/log/entries", "read", []string{"sealed-auditor", "sealed-operator"}},
		{"sealed/log/entries", "update", nil},
		{"sealed/log/seen", "update", []string{"sealed-auditor", "sealed-operator"}},
		{"sealed/config/attest-rollback", "update", []string{"sealed-root"}},
		{"sealed/reviews/", "list", []string{"sealed-approver", "sealed-auditor"}},
		{"sealed/reviews/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-approver", "sealed-auditor"}},
		{"sealed/reviews/01ARZ3NDEKTSV4RRFFQ69G5FAV/close", "update", []string{"sealed-approver"}},
		{"sealed/proposals/profile/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-profiles"}},
		{"sealed/proposals/profile/01ARZ3NDEKTSV4RRFFQ69G5FAV/confirm", "update", []string{"sealed-profiles"}},
		{"sealed/proposals/profile/01ARZ3NDEKTSV4RRFFQ69G5FAV/reject", "update", []string{"sealed-profiles"}},
		{"sealed/proposals/source/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-secrets"}},
		{"sealed/proposals/source/01ARZ3NDEKTSV4RRFFQ69G5FAV/confirm", "update", []string{"sealed-secrets"}},
		{"sealed/proposals/source/01ARZ3NDEKTSV4RRFFQ69G5FAV/reject", "update", []string{"sealed-secrets"}},
		{"sealed/proposals/config/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-root"}},
		{"sealed/proposals/config/01ARZ3NDEKTSV4RRFFQ69G5FAV/confirm", "update", []string{"sealed-root"}},
		{"sealed/proposals/config/01ARZ3NDEKTSV4RRFFQ69G5FAV/reject", "update", []string{"sealed-root"}},
		{"sealed/proposals/policy-key/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-root"}},
		{"sealed/proposals/policy-key/01ARZ3NDEKTSV4RRFFQ69G5FAV/confirm", "update", []string{"sealed-root"}},
		{"sealed/proposals/policy-key/01ARZ3NDEKTSV4RRFFQ69G5FAV/reject", "update", []string{"sealed-root"}},
		{"sealed/proposals/trust/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-root"}},
		{"sealed/proposals/trust/01ARZ3NDEKTSV4RRFFQ69G5FAV/confirm", "update", []string{"sealed-root"}},
		{"sealed/proposals/trust/01ARZ3NDEKTSV4RRFFQ69G5FAV/reject", "update", []string{"sealed-root"}},
		{"sealed/proposals/overlay/01ARZ3NDEKTSV4RRFFQ69G5FAV", "read", []string{"sealed-policy"}},
		{"sealed/proposals/overlay/01ARZ3NDEKTSV4RRFFQ69G5FAV/confirm", "update", []string{"sealed-policy"}},
		{"sealed/proposals/overlay/01ARZ3NDEKTSV4RRFFQ69G5FAV/reject", "update", []string{"sealed-policy"}},
	}
	for _, tt := range tests {
		var got []string
		for role, rules := range policies {
			if grants(rules, tt.path, tt.capability) {
				got = append(got, role)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(tt.roles, got); diff != "" {
			t.Errorf("%s %s: %s", tt.capability, tt.path, diff)
		}
	}
}

// TestAgentRenewsOnlyRuns: the one path outside the mount that takes a name in
// its body is limited to leases of runs.
func TestAgentRenewsOnlyRuns(t *testing.T) {
	r := load(t)["sealed-agent"]["sys/leases/renew"]
	want := map[string][]string{"lease_id": {"sealed/runs/*"}, "increment": {}}
	if diff := cmp.Diff(want, r.Allowed); diff != "" {
		t.Error(diff)
	}
}
