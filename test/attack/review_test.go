package attack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness"
)

// glassOverlay asks two persons and a review about the keys of one profile, and leaves the rest to the policy below.
const glassOverlay = `package sealed.authz

# METADATA
# title: Decision
# entrypoint: true
default decision := {"effect": "allow", "reasons": [], "obligations": {}}

decision := {
	"effect": "require_approval",
	"reasons": [{"code": "break_glass", "msg": "two persons, and a review"}],
	"obligations": {
		"approvals": {"quorum": 2, "groups": ["sealed-approvers"], "ttl": 300},
		"review": {"within": 600, "groups": ["sealed-approvers"]},
	},
} if input.profile.name == "PROFILE"
`

const glassVotes = `package sealed.approval

# METADATA
# title: Decision
# entrypoint: true
decision := {"effect": "allow", "reasons": [], "obligations": {}}
`

// A broken glass needs a second party's review to close: not the one who used the
// key, not those who agreed. Against real servers; what happens when it is overdue
// is a test of the engine's package.
func TestBrokenGlassIsReviewed(t *testing.T) {
	w, dir := get(t), t.TempDir()
	name := w.Name("attack/glass")
	for pkg, text := range map[string]string{"authz": strings.ReplaceAll(glassOverlay, "PROFILE", name), "approval": glassVotes} {
		harness.Must(t, os.MkdirAll(filepath.Join(dir, "sealed", pkg), 0o755))
		harness.Must(t, os.WriteFile(filepath.Join(dir, "sealed", pkg, pkg+".rego"), []byte(text), 0o644))
	}
	admin := harness.Caller{User: "admin"}
	w.Ctl(t, admin, "policy", "overlay", "upload", dir, "--key", filepath.Join(w.Status.Dir, "private/policy-key.pem"), "--yes", "--since", "0").Want(t, 0)
	defer func() { w.Ctl(t, admin, "policy", "overlay", "remove").Want(t, 0) }()

	c, path := w.plant(t, "KEY")
	spec := harness.Key(path, []string{string(agentName)}, binding("api.test"))
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": spec}))
	g, _ := w.guest(t, name)
	id := w.pending(t, g, "glass-0000000001")
	w.vote(t, "approver", id, nil)
	w.vote(t, "approver2", id, nil)
	grant, err := g.Creds(t.Context(), "KEY", "glass-0000000002")
	harness.Must(t, err)
	if v, err := g.Reveal(grant); err != nil || v != c.Value {
		t.Errorf("control: the credential is not the value: %v", err)
	}
	review := string(grant.CredsAnswer.Grant)
	shown := w.Ctl(t, harness.Caller{User: "approver"}, "reviews", "show", review).Want(t, 0)
	if !strings.Contains(shown.Stdout, "break_glass") || strings.Count(shown.Stdout, "agreed") != 2 {
		t.Errorf("shown: %s", shown.Stdout)
	}
	closing := []string{"reviews", "close", review, "--finding", "justified", "--note", "the site was down"}
	for _, user := range []string{"approver", "approver2"} {
		if r := w.Ctl(t, harness.Caller{User: user}, closing...).Want(t, sealed.ExitDenied); !strings.Contains(r.Stderr, "you agreed to the use") {
			t.Errorf("%s: %s", user, r.Stderr)
		}
	}
	w.Ctl(t, harness.Caller{}, closing...).Want(t, sealed.ExitDenied)
	token, err := w.token(t, "third@acme.example", "sealed-approvers", "sealed-approver")
	harness.Must(t, err)
	third := harness.Caller{User: "-", Env: []string{"VAULT_TOKEN=" + token}}
	if r := w.Ctl(t, third, "reviews", "list").Want(t, 0); !strings.Contains(r.Stdout, review) {
		t.Errorf("list: %s", r.Stdout)
	}
	w.Ctl(t, third, closing...).Want(t, 0)
	w.Ctl(t, third, "reviews", "show", review).Want(t, sealed.ExitDenied)
	found := false
	for _, e := range w.Entries(t, g.Run) {
		found = found || e.Type == "review.closed" && strings.Contains(string(e.Body), "third@acme.example")
	}
	if !found {
		t.Error("no review.closed in the log")
	}
}
