package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/rego"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// guest enqueues a run and claims it by hand.
func (w *world) guest(t *testing.T, profile string) (*guest.Guest, sealed.Enqueued) {
	t.Helper()
	q, r, _ := w.enqueue(t, profile, "/bin/true")
	g, err := w.forge.Arrive(t.Context(), q.Run, agentName)
	harness.Must(t, err)
	harness.Must(t, g.Claim(t.Context(), q.Ticket, guest.Measure(r), nil))
	return g, q
}

// asker is a guest whose profile has one KEY of a risk.
func (w *world) asker(t *testing.T, risk string) (*guest.Guest, *canary.Canary) {
	t.Helper()
	profile, c := w.risky(t, risk)
	g, _ := w.guest(t, profile)
	return g, c
}

func (w *world) risky(t *testing.T, risk string) (string, *canary.Canary) {
	t.Helper()
	c, path := w.plant(t, "KEY")
	spec := harness.Key(path, []string{string(agentName)}, binding("api.test"))
	spec.Risk = risk
	name := w.Name("attack/risky")
	w.Profile(t, harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": spec}))
	return name, c
}

var ulidRE = regexp.MustCompile(`[0-9A-HJKMNP-TV-Z]{26}$`)

// approvalID is the one that a refusal to issue names.
func approvalID(err error) sealed.ApprovalID {
	if err == nil {
		return ""
	}
	text := strings.TrimSuffix(err.Error(), ": "+sealed.ErrApprovalRequired.Error())
	return sealed.ApprovalID(ulidRE.FindString(text))
}

// pending asks for KEY and returns the approval that is waited for.
func (w *world) pending(t *testing.T, g *guest.Guest, idem string) sealed.ApprovalID {
	t.Helper()
	_, err := g.Creds(t.Context(), "KEY", idem)
	if !errors.Is(err, sealed.ErrApprovalRequired) || approvalID(err) == "" {
		t.Fatalf("issue: %v", err)
	}
	return approvalID(err)
}

// vote says yes as a user, to what is shown or else to another digest.
func (w *world) vote(t *testing.T, user string, id sealed.ApprovalID, digest *sealed.Digest) {
	t.Helper()
	harness.Must(t, tryVote(t, w.Engine(t, user), id, digest))
}

func tryVote(t *testing.T, e *vaultclient.Engine, id sealed.ApprovalID, digest *sealed.Digest) error {
	t.Helper()
	a, err := e.Approval(t.Context(), id)
	if err != nil {
		return err
	}
	if digest == nil {
		digest = &a.Digest
	}
	_, err = e.Approve(t.Context(), id, *digest)
	return err
}

// E18: one yes is good for one use, of one run, of one key.
func TestE18ReplayedApproval(t *testing.T) {
	t.Parallel()
	w := get(t)
	g, c := w.asker(t, sealed.RiskHigh)
	id := w.pending(t, g, "first-0000000001")
	w.vote(t, "approver", id, nil)
	grant, err := g.Creds(t.Context(), "KEY", "first-0000000002")
	harness.Must(t, err)
	harness.Must(t, g.Confirm(t.Context(), grant))
	if v, err := g.Reveal(grant); err != nil || v != c.Value {
		t.Errorf("control: the approved credential is not the value: %v", err)
	}
	t.Run("same run, again", func(t *testing.T) {
		_, err := g.Creds(t.Context(), "KEY", "first-0000000003")
		if !errors.Is(err, sealed.ErrApprovalRequired) || approvalID(err) == id {
			t.Errorf("issue: %v", err)
		}
	})
	t.Run("voting again", func(t *testing.T) {
		if err := tryVote(t, w.Engine(t, "approver2"), id, nil); err == nil {
			t.Error("a used approval took a vote")
		}
		if _, err := g.Creds(t.Context(), "KEY", "first-0000000004"); err == nil {
			t.Error("issued")
		}
	})
	t.Run("another run of the same agent and profile", func(t *testing.T) {
		profile, _ := w.risky(t, sealed.RiskHigh)
		a, _ := w.guest(t, profile)
		b, _ := w.guest(t, profile)
		id := w.pending(t, a, "other-0000000001")
		w.vote(t, "approver", id, nil)
		if other := w.pending(t, b, "other-0000000002"); other == id {
			t.Error("the other run waits for the same approval")
		}
		if _, err := a.Creds(t.Context(), "KEY", "other-0000000003"); err != nil {
			t.Errorf("control: the run that was approved: %v", err)
		}
	})
}

// E18: a yes to one key is none to another of the same run, and none at all
// once its time is over.
func TestE18AnotherKeyAndExpired(t *testing.T) {
	w := get(t)
	ctx := t.Context()
	t.Run("another key of the same run", func(t *testing.T) {
		keys := map[sealed.KeyName]sealed.KeySpec{}
		for _, name := range []sealed.KeyName{"KEY", "OTHER"} {
			_, path := w.plant(t, string(name))
			spec := harness.Key(path, []string{string(agentName)}, binding("api.test"))
			spec.Risk = sealed.RiskHigh
			keys[name] = spec
		}
		profile := w.Name("attack/two")
		w.Profile(t, harness.Profile1(profile, keys))
		g, _ := w.guest(t, profile)
		id := w.pending(t, g, "two-keys-0000001")
		w.vote(t, "approver", id, nil)
		if _, err := g.Creds(ctx, "OTHER", "two-keys-0000002"); !errors.Is(err, sealed.ErrApprovalRequired) || approvalID(err) == id {
			t.Errorf("issue: %v", err)
		}
		if _, err := g.Creds(ctx, "KEY", "two-keys-0000003"); err != nil {
			t.Errorf("control: the key that was approved: %v", err)
		}
	})
	const limit = 6 * time.Second
	w.next(t, shortApprovals(t, limit))
	for _, late := range []bool{true, false} {
		t.Run(map[bool]string{true: "after its time", false: "control: within it"}[late], func(t *testing.T) {
			g, _ := w.asker(t, sealed.RiskHigh)
			id := w.pending(t, g, "expired-00000001")
			w.vote(t, "approver", id, nil)
			if late {
				time.Sleep(limit + 100*time.Millisecond) // the limit is the thing under test
			}
			_, err := g.Creds(ctx, "KEY", "expired-00000002")
			if late == (err == nil) || late && approvalID(err) == id {
				t.Errorf("issue: %v", err)
			}
		})
	}
}

// shortApprovals is the default policy with another lifetime of approvals.
func shortApprovals(t *testing.T, ttl time.Duration) fs.FS {
	t.Helper()
	return edited(t, `"ttl": 900}`, fmt.Sprintf(`"ttl": %d}`, int(ttl.Seconds())))
}

// edited is the default policy with something else in the place of a text.
func edited(t *testing.T, old, now string) fs.FS {
	t.Helper()
	out, changed := fstest.MapFS{}, false
	harness.Must(t, fs.WalkDir(rego.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(rego.FS(), path)
		text := strings.ReplaceAll(string(b), old, now)
		changed = changed || text != string(b)
		out[path] = &fstest.MapFile{Data: []byte(text)}
		return err
	}))
	if !changed {
		t.Fatalf("the default policy does not say %s", old)
	}
	return out
}

// E19: what is approved is the object shown: another digest is refused, and a
// changed profile voids the yes.
func TestE19AlteredAfterApproval(t *testing.T) {
	t.Parallel()
	w := get(t)
	t.Run("another digest", func(t *testing.T) {
		g, _ := w.asker(t, sealed.RiskHigh)
		id := w.pending(t, g, "digest-000000001")
		wrong := sealed.DigestOf(sealed.DomainApproval, []byte("{}"))
		if err := tryVote(t, w.Engine(t, "approver"), id, &wrong); err == nil {
			t.Error("a yes to something else was taken")
		}
		if _, err := g.Creds(t.Context(), "KEY", "digest-000000002"); err == nil {
			t.Error("issued")
		}
	})
	for _, widen := range []bool{true, false} {
		t.Run(map[bool]string{true: "another binding", false: "control: the same"}[widen], func(t *testing.T) {
			_, path := w.plant(t, "KEY")
			spec := harness.Key(path, []string{string(agentName)}, binding("api.test"))
			spec.Risk = sealed.RiskHigh
			name := w.Name("attack/altered")
			p := harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": spec})
			w.Profile(t, p)
			g, _ := w.guest(t, name)
			id := w.pending(t, g, "binding-00000001")
			w.vote(t, "approver", id, nil)
			if widen {
				spec.Bindings = []sealed.Binding{binding("other.test")}
				p.Keys = map[sealed.KeyName]sealed.KeySpec{"KEY": spec}
				w.Profile(t, p)
			}
			grant, err := g.Creds(t.Context(), "KEY", "binding-00000002")
			if widen && err == nil {
				t.Errorf("issued for %v", grant.Bindings)
			}
			if !widen && (err != nil || grant.Bindings[0].Host != "api.test") {
				t.Errorf("%v, %v", grant.Bindings, err)
			}
		})
	}
}

// E20, R24: the requester may not approve, whatever groups he is in; one person
// counts once, under however many names; strangers do not count.
func TestE20WhoApproves(t *testing.T) {
	w := get(t)
	root, err := w.Root()
	harness.Must(t, err)
	t.Run("the requester", func(t *testing.T) {
		g, _ := w.asker(t, sealed.RiskHigh)
		id := w.pending(t, g, "self-00000000001")
		if err := tryVote(t, w.Engine(t, "operator"), id, nil); err == nil {
			t.Error("without the power he approved")
		}
		twin := w.person(t, "operator@acme.example", "sealed-approvers")
		if err := tryVote(t, twin, id, nil); err == nil {
			t.Error("under a second name he approved")
		}
		if _, err := g.Creds(t.Context(), "KEY", "self-00000000002"); err == nil {
			t.Error("issued")
		}
	})
	t.Run("the root token", func(t *testing.T) {
		g, _ := w.asker(t, sealed.RiskHigh)
		id := w.pending(t, g, "root-00000000001")
		if err := tryVote(t, root.Engine(w.Status.Mount), id, nil); err == nil {
			t.Error("a token without an entity approved")
		}
	})
	t.Run("who is not an approver", func(t *testing.T) {
		g, _ := w.asker(t, sealed.RiskHigh)
		id := w.pending(t, g, "stranger-0000001")
		stranger := w.person(t, "stranger@acme.example", "", "sealed-approver")
		if err := tryVote(t, stranger, id, nil); err == nil {
			t.Error("the yes was taken")
		}
		if _, err := g.Creds(t.Context(), "KEY", "stranger-0000002"); err == nil {
			t.Error("issued")
		}
	})
	t.Run("one person twice", func(t *testing.T) {
		g, _ := w.asker(t, sealed.RiskCritical)
		id := w.pending(t, g, "twice-0000000001")
		w.vote(t, "approver", id, nil)
		_ = tryVote(t, w.Engine(t, "approver"), id, nil)
		twin := w.person(t, "approver@acme.example", "sealed-approvers")
		_ = tryVote(t, twin, id, nil)
		if _, err := g.Creds(t.Context(), "KEY", "twice-0000000002"); err == nil {
			t.Fatal("two yeses of one person were enough for two")
		}
		w.vote(t, "approver2", id, nil)
		if _, err := g.Creds(t.Context(), "KEY", "twice-0000000003"); err != nil {
			t.Errorf("control: two persons: %v", err)
		}
	})
	t.Run("the agent itself", func(t *testing.T) {
		g, _ := w.asker(t, sealed.RiskHigh)
		id := w.pending(t, g, "agent-0000000001")
		if err := tryVote(t, g.Client.Engine(w.Status.Mount), id, nil); err == nil {
			t.Error("the run approved its own request")
		}
	})
}

// person makes a user of Vault who is this person, in a group or with policies
// of his own, and logs him in.
func (w *world) person(t *testing.T, person, group string, policies ...string) *vaultclient.Engine {
	t.Helper()
	root, err := w.Root()
	harness.Must(t, err)
	ctx, name, password := t.Context(), w.Name("attacker"), w.Name("password-of-a-test-")
	write := func(path string, data map[string]any) {
		t.Helper()
		_, err := root.Write(ctx, path, data)
		harness.Must(t, err)
	}
	write("auth/userpass/users/"+name, map[string]any{"password": password, "token_policies": policies, "token_ttl": "1h"})
	write("identity/entity/name/"+name, map[string]any{"metadata": map[string]string{"person": person}})
	entity, err := root.Read(ctx, "identity/entity/name/"+name, nil)
	harness.Must(t, err)
	auths, err := root.Read(ctx, "sys/auth", nil)
	harness.Must(t, err)
	accessor := auths["userpass/"].(map[string]any)["accessor"]
	write("identity/entity-alias", map[string]any{"name": name, "canonical_id": entity["id"], "mount_accessor": accessor})
	if group != "" {
		g, err := root.Read(ctx, "identity/group/name/"+group, nil)
		harness.Must(t, err)
		members, _ := g["member_entity_ids"].([]any)
		write("identity/group/name/"+group, map[string]any{"member_entity_ids": append(members, entity["id"])})
	}
	c, err := root.WithToken("")
	harness.Must(t, err)
	l, err := c.Login(ctx, "auth/userpass/login/"+name, map[string]any{"password": password})
	harness.Must(t, err)
	c, err = c.WithToken(string(l.Token))
	harness.Must(t, err)
	return c.Engine(w.Status.Mount)
}

// E21: a thousand issues at once on one approval give one credential. One whose
// answer was lost to so many calls is asked for again with its idempotency, as
// sealed-init does; one that the engine gave up is a failure in the log, and the
// approval is used up all the same.
func TestE21ManyIssuesOneApproval(t *testing.T) {
	w := get(t)
	g, _ := w.asker(t, sealed.RiskHigh)
	id := w.pending(t, g, "many-00000000001")
	w.vote(t, "approver", id, nil)
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		grants = map[sealed.GrantID]int{}
		lost   = map[string]error{} // by idempotency
	)
	for i := range 1000 {
		all.Go(func() {
			idem := fmt.Sprintf("many-%011d", 100+i)
			grant, err := g.Creds(t.Context(), "KEY", idem)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				grants[grant.CredsAnswer.Grant]++
			case !errors.Is(err, sealed.ErrApprovalRequired):
				lost[idem] = err
			}
		})
	}
	all.Wait()
	for idem, err := range lost {
		t.Logf("asking again for %s: %v", idem, err)
		if grant, err := g.Creds(t.Context(), "KEY", idem); err == nil {
			grants[grant.CredsAnswer.Grant]++
		}
	}
	issued, failed := 0, 0
	for _, e := range w.Entries(t, g.Run) {
		switch e.Type {
		case "issue.intent":
			issued++
		case "issue.failed":
			failed++
			t.Logf("the engine gave up: %s", e.Body)
		}
	}
	if issued != 1 {
		t.Errorf("the log has %d intents", issued)
	}
	if len(grants) > 1 || len(grants)+failed == 0 {
		t.Errorf("%d credentials on one approval, %d given up", len(grants), failed)
	}
}

// R11: an operator who isn't in the group types --workflow release.
func TestR11UnprovenWorkflow(t *testing.T) {
	t.Parallel()
	w := get(t)
	c, path := w.plant(t, "KEY")
	spec := harness.Key(path, []string{string(agentName)})
	spec.Workflows = []string{"release"}
	name := w.Name("attack/release")
	p := harness.Profile1(name, map[sealed.KeyName]sealed.KeySpec{"KEY": spec})
	p.AllowedWorkflows = []string{"release"}
	w.Profile(t, p)
	args := shell(name, "echo got ${#KEY}", "--no-workspace", "--workflow", "release")
	token, err := w.token(t, "outsider@acme.example", "", "sealed-operator")
	harness.Must(t, err)
	r := w.Ctl(t, harness.Caller{User: "-", Env: []string{"VAULT_TOKEN=" + token}}, args...).Want(t, sealed.ExitDenied)
	if !strings.Contains(r.Stderr, "workflow_unproven") && !strings.Contains(r.Stderr, "requester_not_allowed") {
		t.Errorf("stderr: %s", r.Stderr)
	}
	if len(canary.Scan("streams", []byte(r.Stdout+r.Stderr), c)) > 0 {
		t.Error("the value got out")
	}
	t.Run("control: an operator of the group", func(t *testing.T) {
		if r := w.Ctl(t, harness.Caller{}, args...).Want(t, 0); r.Stdout != "got 45\n" {
			t.Errorf("got %q", r.Stdout)
		}
	})
}

func (w *world) token(t *testing.T, person, group string, policies ...string) (string, error) {
	t.Helper()
	e := w.person(t, person, group, policies...)
	out, err := e.Client().Sys(t.Context(), http.MethodGet, "auth/token/lookup-self", nil)
	if err != nil {
		return "", err
	}
	data, _ := out["data"].(map[string]any)
	id, _ := data["id"].(string)
	return id, nil
}
