package attack

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/vault-plugin/policies"
)

// entityOf returns the entity behind a client's token.
func entityOf(t *testing.T, e *vaultclient.Engine) string {
	t.Helper()
	out, err := e.Client().Sys(t.Context(), http.MethodGet, "auth/token/lookup-self", nil)
	harness.Must(t, err)
	data, _ := out["data"].(map[string]any)
	id, _ := data["entity_id"].(string)
	if id == "" {
		t.Fatal("the token has no entity")
	}
	return id
}

// E20: an approver who is revoked between his yes and the issue: his yes does
// not count any more, and the log says whose it was.
func TestE20RevokedApprover(t *testing.T) {
	w := get(t)
	root, err := w.Root()
	harness.Must(t, err)
	const group = "identity/group/name/sealed-approvers"
	for name, revoke := range map[string]func(t *testing.T, entity string){
		"control: still an approver": nil,
		"disabled": func(t *testing.T, entity string) {
			_, err := root.Write(t.Context(), "identity/entity/id/"+entity, map[string]any{"disabled": true})
			harness.Must(t, err)
		},
		"deleted": func(t *testing.T, entity string) {
			_, err := root.Sys(t.Context(), http.MethodDelete, "identity/entity/id/"+entity, nil)
			harness.Must(t, err)
		},
		"out of the group": func(t *testing.T, entity string) {
			g, err := root.Read(t.Context(), group, nil)
			harness.Must(t, err)
			members, _ := g["member_entity_ids"].([]any)
			left := slices.DeleteFunc(slices.Clone(members), func(m any) bool { return m == entity })
			if len(left) != len(members)-1 {
				t.Fatalf("%s is not in %v", entity, members)
			}
			_, err = root.Write(t.Context(), group, map[string]any{"member_entity_ids": left})
			harness.Must(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, c := w.asker(t, sealed.RiskHigh)
			id := w.pending(t, g, "revoked-00000001")
			approver := w.person(t, w.Name("leaver")+"@acme.example", "sealed-approvers")
			entity := entityOf(t, approver)
			harness.Must(t, tryVote(t, approver, id, nil))
			if revoke == nil {
				grant, err := g.Creds(t.Context(), "KEY", "revoked-00000002")
				harness.Must(t, err)
				if v, err := g.Reveal(grant); err != nil || v != c.Value {
					t.Errorf("the approved credential is not the value: %v", err)
				}
				return
			}
			revoke(t, entity)
			if next := w.pending(t, g, "revoked-00000002"); next == id {
				t.Error("the approval waits on")
			}
			w.wantEntry(t, g.Run, "approval.void", `"what":"approvers"`, entity)
			if a, err := w.Engine(t, "approver").Approval(t.Context(), id); err != nil || a.State != sealed.ApprovalVoid {
				t.Errorf("the approval is %s: %v", a.State, err)
			}
		})
	}
}

// aclOf writes a ready-made policy for a mount and returns its name.
func aclOf(t *testing.T, root *vaultclient.Client, mount, role string) string {
	t.Helper()
	text, err := fs.ReadFile(policies.Policies, role+".hcl")
	harness.Must(t, err)
	name := strings.ReplaceAll(mount, "/", ".") + "-" + role
	_, err = root.Write(t.Context(), "sys/policies/acl/"+name, map[string]any{"policy": strings.ReplaceAll(string(text), "{{mount}}", mount)})
	harness.Must(t, err)
	return name
}

// A neighbor is a second tenant of the same Vault: a mount, a policy, an agent,
// a group of approvers of its own.
type neighbor struct {
	mount, group string
	root         *vaultclient.Engine
}

func (w *world) neighbor(t *testing.T) neighbor {
	t.Helper()
	root, err := w.Root()
	harness.Must(t, err)
	name := w.Name("beta")
	n := neighbor{mount: "tenants/" + name + "/sealed", group: name + "-approvers"}
	n.root = root.Engine(n.mount)
	ctx := t.Context()
	write := func(path string, data map[string]any) {
		t.Helper()
		_, err := root.Write(ctx, path, data)
		harness.Must(t, err)
	}
	mounts, err := root.Read(ctx, "sys/mounts", nil)
	harness.Must(t, err)
	ours := mounts[w.Status.Mount+"/"].(map[string]any)
	write("sys/mounts/"+n.mount, map[string]any{"type": ours["type"]})
	t.Cleanup(func() {
		if _, err := root.Sys(context.WithoutCancel(ctx), http.MethodDelete, "sys/mounts/"+n.mount, nil); err != nil {
			t.Error(err)
		}
	})
	cfg, err := root.Read(ctx, w.Status.Mount+"/config", nil)
	harness.Must(t, err)
	write(n.mount+"/config", map[string]any{"tenant": name, "trust_domain": cfg["trust_domain"], "agent_accessor": cfg["agent_accessor"], "person_claim": cfg["person_claim"], "second_person": false})
	keys, err := root.Read(ctx, w.Status.Mount+"/config/policy-keys", nil)
	harness.Must(t, err)
	write(n.mount+"/config/policy-keys", map[string]any{"keys": keys["keys"]})
	raw := unsigned(t, edited(t, `"groups": ["sealed-approvers"]`, `"groups": ["`+n.group+`"]`), 1, time.Now().Add(time.Hour))
	raw, err = opabundle.Sign(ctx, raw, w.policyKey(t), devstack.PolicyKeyID)
	harness.Must(t, err)
	_, err = n.root.UploadPolicy(ctx, raw)
	harness.Must(t, err)
	_, err = n.root.WriteSource(ctx, sealed.SourceConfig{Name: harness.Source, Type: sealed.SourceBuiltin}, nil)
	harness.Must(t, err)
	_, err = n.root.WriteAgent(ctx, sealed.AgentDefinition{Name: agentName, AnyBinary: true})
	harness.Must(t, err)
	write("identity/group/name/"+n.group, map[string]any{"type": "internal", "policies": []string{aclOf(t, root, n.mount, "sealed-approver")}})
	return n
}

// pending enqueues a run in the other tenant that waits for a yes.
func (n neighbor) pending(t *testing.T, w *world) sealed.ApprovalID {
	t.Helper()
	ctx := t.Context()
	_, err := n.root.PutSecret(ctx, "attack/key", []byte(w.Name("value-of-a-neighbor-0Kq7")))
	harness.Must(t, err)
	spec := harness.Key("attack/key", []string{string(agentName)}, binding("api.test"))
	spec.Risk = sealed.RiskHigh
	p := harness.Profile1(w.Name("attack/neighbor"), map[sealed.KeyName]sealed.KeySpec{"KEY": spec})
	_, err = n.root.WriteProfile(ctx, p)
	harness.Must(t, err)
	operator := w.person(t, w.Name("operator")+"@beta.example", "sealed-operators", aclOf(t, n.root.Client(), n.mount, "sealed-operator"))
	q, err := operator.Client().Engine(n.mount).Enqueue(ctx, harness.Enqueue(t, agentName, string(p.Name)))
	harness.Must(t, err)
	waiting, err := n.root.Approvals(ctx, sealed.ApprovalPending)
	harness.Must(t, err)
	i := slices.IndexFunc(waiting, func(a vaultclient.ApprovalSummary) bool { return a.Run == q.Run })
	if i < 0 {
		t.Fatalf("nothing waits for run %s: %+v", q.Run, waiting)
	}
	return waiting[i].ID
}

// E20: an approver of another tenant says yes: his token does not reach this
// mount; on his own one there is no such approval; and where an administrator
// lets his token reach this one by mistake, he is not in a group that this
// tenant's policy names.
func TestE20ApproverOfAnotherTenant(t *testing.T) {
	w := get(t)
	n := w.neighbor(t)
	person := w.Name("neighbor") + "@beta.example"
	theirs := w.person(t, person, n.group)
	here, there := theirs, theirs.Client().Engine(n.mount)
	g, _ := w.asker(t, sealed.RiskHigh)
	id := w.pending(t, g, "neighbor-0000001")
	shown, err := w.Engine(t, "approver").Approval(t.Context(), id)
	harness.Must(t, err)
	for name, e := range map[string]*vaultclient.Engine{"on this mount": here, "on his own mount": there} {
		if _, err := e.Approve(t.Context(), id, shown.Digest); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("%s: the yes: %v", name, err)
		}
		if _, err := e.Approval(t.Context(), id); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("%s: reading it: %v", name, err)
		}
	}
	misled := w.person(t, w.Name("neighbor")+"@beta.example", n.group, "sealed-approver")
	if err := tryVote(t, misled, id, nil); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("with a token that reaches: %v", err)
	}
	w.wantEntry(t, g.Run, "approval.refused", `"what":"policy"`, entityOf(t, misled))
	if next := w.pending(t, g, "neighbor-0000002"); next != id {
		t.Errorf("%s is waited for instead of %s", next, id)
	}
	t.Run("control: in his own tenant", func(t *testing.T) {
		harness.Must(t, tryVote(t, there, n.pending(t, w), nil))
	})
	t.Run("control: an approver of this tenant", func(t *testing.T) {
		w.vote(t, "approver", id, nil)
		_, err := g.Creds(t.Context(), "KEY", "neighbor-0000003")
		harness.Must(t, err)
	})
	t.Run("control: in a group that the policy names", func(t *testing.T) {
		g, _ := w.asker(t, sealed.RiskHigh)
		id := w.pending(t, g, "neighbor-0000004")
		harness.Must(t, tryVote(t, w.person(t, w.Name("neighbor")+"@beta.example", "sealed-approvers", "sealed-approver"), id, nil))
	})
}
