package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/test/harness/require"
)

// asks is an agent that asks for a key and uses it.
func asks(path string) []string {
	return []string{"sh", "-c", `sealed request ADMIN_TOKEN --reason "delete the stale branch" --wait 30s || exit
		curl -sS -H "Authorization: Bearer $ADMIN_TOKEN" https://admin.test` + path}
}

// plantRisk is plant with a key ADMIN_TOKEN of a risk that needs a person.
func plantRisk(t *testing.T, s *harness.Stack, risk string, groups ...string) (string, *canary.Canary) {
	t.Helper()
	c := newCanary(t, "ADMIN_TOKEN")
	profile := s.Name("team/p")
	s.Secret(t, profile+"/value", c.Value)
	key := harness.Key(profile+"/value", []string{"custom"}, bind("admin.test"))
	key.Risk = risk
	p := harness.Profile1(profile, map[sealed.KeyName]sealed.KeySpec{"ADMIN_TOKEN": key})
	p.Requesters.Groups = append(p.Requesters.Groups, groups...)
	s.Profile(t, p)
	return profile, c
}

// pending waits for the approval that the agent is waiting for.
func pending(t *testing.T, s *harness.Stack, p *harness.Process) vaultclient.Approval {
	t.Helper()
	p.Await(t, "waiting for a person")
	e, run := s.Engine(t, "approver"), p.RunID(t)
	list, err := e.Approvals(t.Context(), sealed.ApprovalPending)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if x.Run != run {
			continue
		}
		a, err := e.Approval(t.Context(), x.ID)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	t.Fatalf("nothing is pending for run %s: %v", run, list)
	return vaultclient.Approval{}
}

// TestApproval: pending, approved by another person, granted, used, once.
func TestApproval(t *testing.T) {
	s := rootStack(t)
	profile, c := plantRisk(t, s, sealed.RiskHigh)
	path := "/" + s.Name("approve") + "/echo"
	p := s.Start(t, harness.Caller{}, append([]string{"run", "--agent", "custom", "--profile", profile, "--"}, asks(path)...)...)
	a := pending(t, s, p)
	if a.Decoded.Key != "ADMIN_TOKEN" || a.Decoded.Reason != "delete the stale branch" || string(a.Decoded.Run) != string(p.RunID(t)) {
		t.Errorf("a person is shown key %s, run %s, reason %q", a.Decoded.Key, a.Decoded.Run, a.Decoded.Reason)
	}
	if n := len(s.Upstream.Requests("admin.test", path)); n != 0 {
		t.Errorf("%d requests before the approval", n)
	}
	args := []string{"approvals", "approve", string(a.Decoded.ID), "--yes", "--digest"}
	// The operator may not vote at all, and nobody about another object.
	s.Ctl(t, harness.Caller{User: "operator"}, append(args, string(a.Digest))...).Want(t, sealed.ExitDenied)
	other := sealed.DigestOf(sealed.DomainApproval, []byte("another object"))
	if r := s.Ctl(t, harness.Caller{User: "approver"}, append(args, string(other))...); r.Exit == 0 {
		t.Errorf("a vote about another object: %s", r.Stdout)
	}
	s.Ctl(t, harness.Caller{User: "approver"}, append(args, string(a.Digest))...).Want(t, 0)
	r := p.Wait(t).Want(t, 0)
	seen := s.Upstream.Requests("admin.test", path)
	if len(seen) != 1 || seen[0].Header.Get("Authorization") != "Bearer "+c.Value {
		t.Errorf("the upstream did not see the value: %d requests", len(seen))
	}
	wantClean(t, c, map[string]string{"stdout": r.Stdout, "stderr": r.Stderr})
	wantEntries(t, s.Entries(t, r.RunID(t)), "approval.requested", "approval.granted", "issue.intent", "issue.ok", "run.finished")
	run, err := s.Engine(t, "operator").Run(t.Context(), r.RunID(t))
	if err != nil || run.Approvals[a.Decoded.ID] != sealed.ApprovalConsumed {
		t.Errorf("approval: %v, %v", run.Approvals, err)
	}
	s.Verify(t)
}

// TestApprovalDenied: one no is final, and the agent is told.
func TestApprovalDenied(t *testing.T) {
	s := rootStack(t)
	profile, _ := plantRisk(t, s, sealed.RiskHigh)
	p := s.Start(t, harness.Caller{}, append([]string{"run", "--agent", "custom", "--profile", profile, "--"}, asks("/denied")...)...)
	a := pending(t, s, p)
	s.Ctl(t, harness.Caller{User: "approver"}, "approvals", "deny", string(a.Decoded.ID), "--yes").Want(t, 0)
	p.Wait(t).Want(t, sealed.ExitDenied)
	args := []string{"approvals", "approve", string(a.Decoded.ID), "--yes", "--digest", string(a.Digest)}
	if r := s.Ctl(t, harness.Caller{User: "approver2"}, args...); r.Exit == 0 {
		t.Errorf("a yes after a no: %s", r.Stdout)
	}
	if n := len(s.Upstream.Requests("admin.test", "/denied")); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// TestApprovalQuorum: a critical key wants two persons.
func TestApprovalQuorum(t *testing.T) {
	s := rootStack(t)
	profile, _ := plantRisk(t, s, sealed.RiskCritical)
	path := "/" + s.Name("quorum")
	p := s.Start(t, harness.Caller{}, append([]string{"run", "--agent", "custom", "--profile", profile, "--"}, asks(path)...)...)
	a := pending(t, s, p)
	args := []string{"approvals", "approve", string(a.Decoded.ID), "--yes", "--digest", string(a.Digest)}
	s.Ctl(t, harness.Caller{User: "approver"}, args...).Want(t, 0)
	if r := s.Ctl(t, harness.Caller{User: "approver"}, args...); r.Exit == 0 { // the same person again
		t.Errorf("a second vote: %s", r.Stdout)
	}
	after, err := s.Engine(t, "approver").Approval(t.Context(), a.Decoded.ID)
	if err != nil || after.State != sealed.ApprovalPending || len(after.Votes) != 1 {
		t.Errorf("after one person: %s, %d votes, %v", after.State, len(after.Votes), err)
	}
	s.Ctl(t, harness.Caller{User: "approver2"}, args...).Want(t, 0)
	p.Wait(t).Want(t, 0)
	if n := len(s.Upstream.Requests("admin.test", path)); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestSelfApproval: who asks can't say yes, not even with an approver's
// powers. Control: the same person's yes to somebody else's run counts.
func TestSelfApproval(t *testing.T) {
	s := rootStack(t)
	both, token := bothPowers(t, s)
	profile, _ := plantRisk(t, s, sealed.RiskHigh, both)
	for _, c := range []struct {
		name, user, wait string
		vote, exit       int
	}{
		{"own run", "-", "3s", sealed.ExitDenied, sealed.ExitPending},
		{"another's run", "operator", "30s", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			as := harness.Caller{User: c.user}
			voter := harness.Caller{User: "-", Env: []string{"VAULT_TOKEN=" + token}}
			if c.user == "-" {
				as = voter
			}
			argv := asks("/self")
			argv[2] = strings.Replace(argv[2], "--wait 30s", "--wait "+c.wait, 1)
			p := s.Start(t, as, append([]string{"run", "--agent", "custom", "--profile", profile, "--"}, argv...)...)
			a := pending(t, s, p)
			s.Ctl(t, voter, "approvals", "approve", string(a.Decoded.ID), "--yes", "--digest", string(a.Digest)).Want(t, c.vote)
			p.Wait(t).Want(t, c.exit)
		})
	}
}

// bothPowers makes a person who may enqueue and approve, and returns the name
// of a group with only that person, and a token.
func bothPowers(t *testing.T, s *harness.Stack) (group, token string) {
	t.Helper()
	root, err := s.Root()
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string, data map[string]any) {
		t.Helper()
		if _, err := root.Write(t.Context(), path, data); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) map[string]any {
		t.Helper()
		data, err := root.Read(t.Context(), path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	name, group := s.Name("both"), s.Name("group")
	const password = "not a secret of anything"
	write("auth/userpass/users/"+name, map[string]any{"password": password, "token_policies": []string{"sealed-operator", "sealed-approver"}})
	write("identity/entity/name/"+name, map[string]any{"metadata": map[string]string{"person": name + "@acme.example"}})
	id := read("identity/entity/name/" + name)["id"]
	mounts := read("sys/auth")["userpass/"].(map[string]any)
	write("identity/entity-alias", map[string]any{"name": name, "canonical_id": id, "mount_accessor": mounts["accessor"]})
	write("identity/group/name/"+group, map[string]any{"type": "internal", "member_entity_ids": []any{id}})
	members := slices.Clone(read("identity/group/name/sealed-approvers")["member_entity_ids"].([]any))
	write("identity/group/name/sealed-approvers", map[string]any{"member_entity_ids": append(members, id)})
	t.Cleanup(func() { // t.Context has ended by then
		_, err := root.Write(context.Background(), "identity/group/name/sealed-approvers", map[string]any{"member_entity_ids": members})
		if err != nil {
			t.Error(err)
		}
	})
	l, err := root.Login(t.Context(), "auth/userpass/login/"+name, map[string]any{"password": password})
	if err != nil {
		t.Fatal(err)
	}
	return group, string(l.Token)
}

// TestHighRiskWantsIsolation: where other processes of the operator could
// reach the sandbox, a key that needs a person is not to be had at all.
func TestHighRiskWantsIsolation(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, _ := plantRisk(t, s, sealed.RiskHigh)
		r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "true")
		if l.isolation == sealed.IsolationOwnUID {
			r.Want(t, 0)
			return
		}
		if r.Want(t, sealed.ExitDenied); !strings.Contains(r.Stderr, "same_uid_high_risk") {
			t.Errorf("no reason: %s", r.Stderr)
		}
	})
}

// rootStack is for what only sandboxes with a uid of their own may have. The
// test runs beside others.
func rootStack(t *testing.T) *harness.Stack {
	t.Helper()
	t.Parallel()
	require.Root(t, "only root gives sandboxes a uid of their own")
	s := harness.Get(t)
	s.Agent(t, "custom")
	return s
}
