package vaultplugin

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func TestRevocations(t *testing.T) {
	d := newDesk(t)
	rev := func(kind, target string) map[string]any {
		return map[string]any{"kind": kind, "target": target, "reason": "leaked\x1b[31m"}
	}
	d.refused(503, "not configured", "revocations", rev("key", "TOKEN"))
	d.configure()
	for _, bad := range [][2]string{
		{"everything", "x"}, {"key", "token"}, {"key", "../p#TOKEN"}, {"key", ""}, {"profile", "P"}, {"source", "a/b"}, {"run", "1"}, {"tenant", "other"},
		{"identity", "spiffe://example.org/x"}, {"identity", "spiffe://other.org/sealed/tenant/acme/agent/codex"}, {"identity", "spiffe://example.org/sealed/tenant/evil/agent/codex"},
	} {
		d.refused(400, "field", "revocations", rev(bad[0], bad[1]))
	}
	d.refused(400, "reason", "revocations", map[string]any{"kind": "key", "target": "TOKEN", "reason": "\x00"})
	ctx := context.Background()
	changed := d.b.epochChanged()
	soft := d.write("revocations", rev("key", "TOKEN"))
	select {
	case <-changed:
	default:
		t.Error("nobody was woken")
	}
	if soft["epoch"] != "1" || soft["logged"] != true {
		t.Error(soft)
	}
	hard := rev("key", "p#TOKEN")
	hard["hard"] = true
	out := d.write("revocations", hard)
	if out["epoch"] != "2" || out["enforced"] != true {
		t.Error(out)
	}
	sub := sealed.Subject{Tenant: "acme", Profiles: []sealed.ProfileName{"p"}, Key: "TOKEN"}
	got, err := d.b.revoked(ctx, d.s, sub)
	if err != nil || got == nil || !got.Hard || got.Reason != "leaked [31m" {
		t.Errorf("hard ones come first: %+v, %v", got, err)
	}
	if got, err := d.b.revoked(ctx, d.s, sealed.Subject{Tenant: "acme", Profiles: []sealed.ProfileName{"p"}, Key: "OTHER"}); got != nil || err != nil {
		t.Errorf("covers too much: %+v, %v", got, err)
	}
	d.write("revocations/preview", rev("tenant", "acme"))
	if epoch, _ := d.b.epoch(ctx, d.s); epoch != 2 {
		t.Errorf("a preview moved the epoch to %d", epoch)
	}
	id := out["id"].(string)
	d.refused(400, "reason", "revocations/"+id+"/lift", nil)
	d.refused(403, "not found", "revocations/01ARZ3NDEKTSV4RRFFQ69G5FAV/lift", map[string]any{"reason": "r"})
	d.write("revocations/"+id+"/lift", map[string]any{"reason": "rotated"})
	d.refused(409, "lifted before", "revocations/"+id+"/lift", map[string]any{"reason": "again"})
	if got, _ := d.b.revoked(ctx, d.s, sub); got == nil || got.Hard {
		t.Errorf("after the lift the soft one stands: %+v", got)
	}
	d.open() // the epoch and what stands survive a restart
	if epoch, err := d.b.epoch(ctx, d.s); epoch != 3 || err != nil {
		t.Errorf("epoch %d, %v", epoch, err)
	}
	if got, _ := d.b.revoked(ctx, d.s, sub); got == nil || got.Hard {
		t.Errorf("after a restart: %+v", got)
	}
	if len(d.names("revocations/")) != 2 || d.read("revocations/" + id)["standing"] != false {
		t.Error("the list or the state is wrong")
	}
	if len(d.entries("revocation.created")) != 2 || len(d.entries("revocation.lifted")) != 1 {
		t.Error("entries are missing")
	}
}

// TestStoppingDoesNotWaitForTheLog: with a log that can't append the
// revocation stands; the entry follows when it can. Lifting, in contrast, waits.
func TestStoppingDoesNotWaitForTheLog(t *testing.T) {
	d := newDesk(t)
	d.configure()
	d.s.fail = func(_, key string) error {
		if strings.HasPrefix(key, storeLog) {
			return errors.New("log storage failed")
		}
		return nil
	}
	out := d.write("revocations", map[string]any{"kind": "tenant", "target": "acme", "reason": "stop", "hard": true})
	if out["logged"] != false {
		t.Error(out)
	}
	if got, err := d.b.revoked(context.Background(), d.s, sealed.Subject{Tenant: "acme"}); got == nil || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	d.refused(503, "unavailable", "revocations/"+out["id"].(string)+"/lift", map[string]any{"reason": "r"})
	d.s.fail = nil
	d.b.housekeep(context.Background())
	// Once or twice: an append that failed may have been kept by the log.
	lines := d.entries("revocation.created")
	for _, line := range lines {
		if !strings.Contains(line, out["id"].(string)) {
			t.Errorf("%q", lines)
		}
	}
}

// TestAmbiguousRevocation: a write that reported an error may have happened;
// the state is read again and the epoch never falls.
func TestAmbiguousRevocation(t *testing.T) {
	d := newDesk(t)
	d.configure()
	ctx := context.Background()
	d.write("revocations", map[string]any{"kind": "key", "target": "A", "reason": "r"})
	d.s.fail = func(op, key string) error {
		if strings.HasPrefix(key, storeRevocations) {
			return errors.New("storage failed")
		}
		return nil
	}
	if _, err := d.request(logical.UpdateOperation, "revocations", map[string]any{"kind": "key", "target": "B", "reason": "r"}); err == nil {
		t.Fatal("a failed write was acknowledged")
	}
	d.s.fail = nil
	if got, err := d.b.revoked(ctx, d.s, sealed.Subject{Key: "A"}); got == nil || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if out := d.write("revocations", map[string]any{"kind": "key", "target": "B", "reason": "r"}); out["epoch"] != "2" {
		t.Error(out)
	}
}

// TestRevocationsRace revokes from many goroutines while others read.
func TestRevocationsRace(t *testing.T) {
	d := newDesk(t)
	d.configure()
	ctx := context.Background()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := d.request(logical.UpdateOperation, "revocations", map[string]any{"kind": "key", "target": "K", "reason": "r"}); err != nil {
				t.Error(err)
			}
			if got, err := d.b.revoked(ctx, d.s, sealed.Subject{Key: "K"}); got == nil || err != nil {
				t.Error("acknowledged and not in force", err)
			}
		})
		wg.Go(func() { d.b.invalidate(ctx, "") })
	}
	wg.Wait()
	if epoch, err := d.b.epoch(ctx, d.s); epoch != 16 || err != nil {
		t.Errorf("epoch %d, %v", epoch, err)
	}
}

func alias(accessor, name string, meta, custom map[string]string) *logical.Alias {
	return &logical.Alias{MountAccessor: accessor, Name: name, Metadata: meta, CustomMetadata: custom}
}

const agentSPIFFE = "spiffe://example.org/sealed/tenant/acme/agent/codex"

func TestRequester(t *testing.T) {
	d := newDesk(t)
	d.configure()
	d.write("config", map[string]any{"person_claim": "mail", "claims_accessor": []string{"acc_oidc", "acc_user"}})
	meta := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	tests := []struct {
		name   string
		entity *logical.Entity
		want   sealed.Requester
		err    error
	}{
		{"no such entity", nil, sealed.Requester{}, sealed.ErrDenied},
		{"disabled", &logical.Entity{ID: "x", Disabled: true}, sealed.Requester{}, sealed.ErrDenied},
		{"another entity", &logical.Entity{ID: "y"}, sealed.Requester{}, sealed.ErrDenied},
		{"an agent", &logical.Entity{ID: "x", Aliases: []*logical.Alias{alias("acc_agents", agentSPIFFE, nil, nil)}}, sealed.Requester{}, sealed.ErrDenied},
		{"nobody knows the person", &logical.Entity{ID: "x", Name: "X"},
			sealed.Requester{EntityID: "x", Name: "X", Claims: meta()}, nil},
		{"alias of a foreign mount counts for nothing", &logical.Entity{ID: "x", Aliases: []*logical.Alias{alias("acc_evil", "a", meta("mail", "ann@x", "repository", "r"), nil)}},
			sealed.Requester{EntityID: "x", Claims: meta()}, nil},
		{"metadata of the configured mount", &logical.Entity{ID: "x", Aliases: []*logical.Alias{alias("acc_oidc", "a", meta("mail", "ann@x", "repository", "r"), nil)}},
			sealed.Requester{EntityID: "x", Person: "ann@x", Claims: meta("mail", "ann@x", "repository", "r")}, nil},
		{"custom metadata", &logical.Entity{ID: "x", Aliases: []*logical.Alias{alias("acc_user", "a", nil, meta("mail", "ann@x"))}},
			sealed.Requester{EntityID: "x", Person: "ann@x", Claims: meta()}, nil},
		{"entity metadata", &logical.Entity{ID: "x", Metadata: meta("mail", "ann@x")},
			sealed.Requester{EntityID: "x", Person: "ann@x", Claims: meta()}, nil},
		{"two places disagree", &logical.Entity{ID: "x", Metadata: meta("mail", "bob@x"), Aliases: []*logical.Alias{alias("acc_user", "a", nil, meta("mail", "ann@x"))}},
			sealed.Requester{EntityID: "x", Claims: meta()}, nil},
		{"two mounts disagree on a claim", &logical.Entity{ID: "x", Aliases: []*logical.Alias{alias("acc_oidc", "a", meta("team", "1", "site", "s"), nil), alias("acc_user", "b", meta("team", "2"), nil)}},
			sealed.Requester{EntityID: "x", Claims: meta("site", "s")}, nil},
	}
	for _, tt := range tests {
		d.entities["x"] = tt.entity
		got, err := d.b.requester(context.Background(), &logical.Request{EntityID: "x", Storage: d.s})
		if !errors.Is(err, tt.err) || (tt.err == nil && err != nil) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.err == nil {
			tt.want.Groups = []string{"alpha", "zeta"}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	if _, err := d.b.requester(context.Background(), &logical.Request{Storage: d.s, DisplayName: "root"}); !errors.Is(err, sealed.ErrDenied) {
		t.Errorf("a token without an entity: %v", err)
	}
}

// TestOnePersonTwoEntities (R24), and with no claim configured, where the two
// count as two: the control is the configuration.
func TestOnePersonTwoEntities(t *testing.T) {
	d := newDesk(t)
	d.configure()
	d.entities["a"] = &logical.Entity{ID: "a", Metadata: map[string]string{"mail": "ann@x"}}
	d.entities["b"] = &logical.Entity{ID: "b", Metadata: map[string]string{"mail": "ann@x"}}
	same := func() bool {
		x, err := d.b.requester(context.Background(), &logical.Request{EntityID: "a", Storage: d.s})
		y, err2 := d.b.requester(context.Background(), &logical.Request{EntityID: "b", Storage: d.s})
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		return x.Person == y.Person
	}
	t.Run("control off", func(t *testing.T) {
		if same() {
			t.Error("one person without a claim to tell")
		}
	})
	d.write("config", map[string]any{"person_claim": "mail"})
	if !same() {
		t.Error("two persons")
	}
}

func TestAgentIdentity(t *testing.T) {
	d := newDesk(t)
	d.configure()
	tests := []struct {
		name    string
		aliases []*logical.Alias
		ok      bool
	}{
		{"an agent", []*logical.Alias{alias("acc_agents", agentSPIFFE, nil, nil)}, true},
		{"not the first alias", []*logical.Alias{alias("acc_evil", "spiffe://example.org/sealed/tenant/acme/agent/other", nil, nil), alias("acc_agents", agentSPIFFE, nil, nil)}, true},
		{"no alias", nil, false},
		{"under another mount", []*logical.Alias{alias("acc_evil", agentSPIFFE, nil, nil)}, false},
		{"another tenant", []*logical.Alias{alias("acc_agents", "spiffe://example.org/sealed/tenant/evil/agent/codex", nil, nil)}, false},
		{"another trust domain", []*logical.Alias{alias("acc_agents", "spiffe://evil.org/sealed/tenant/acme/agent/codex", nil, nil)}, false},
		{"a worker", []*logical.Alias{alias("acc_agents", "spiffe://example.org/sealed/tenant/acme/worker/pool", nil, nil)}, false},
		{"more segments", []*logical.Alias{alias("acc_agents", agentSPIFFE+"/x", nil, nil)}, false},
		{"no SPIFFE ID", []*logical.Alias{alias("acc_agents", "codex", nil, nil)}, false},
	}
	for _, tt := range tests {
		d.entities["x"] = &logical.Entity{ID: "x", Aliases: tt.aliases}
		id, a, err := d.b.agentIdentity(context.Background(), &logical.Request{EntityID: "x", Storage: d.s})
		if tt.ok != (err == nil) || (tt.ok && (id != agentSPIFFE || a.Name != id)) || (!tt.ok && !errors.Is(err, sealed.ErrDenied)) {
			t.Errorf("%s: %q, %v", tt.name, id, err)
		}
	}
}

// TestCacheGeneration: what was read before a write does not stay after it.
func TestCacheGeneration(t *testing.T) {
	var c cache[string]
	got, err := c.get("k", func() (string, error) {
		c.drop() // a writer comes in between
		return "old", nil
	})
	if got != "old" || err != nil {
		t.Fatal(got, err)
	}
	if got, _ := c.get("k", func() (string, error) { return "new", nil }); got != "new" {
		t.Errorf("the cache kept %q", got)
	}
	if got, _ := c.get("k", func() (string, error) { return "newer", nil }); got != "new" {
		t.Errorf("the cache forgot: %q", got)
	}
}
