package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/bench"
	"sealed.dev/sealed/vault-plugin/policies"
)

// What the engine's section adds to the stack's Vault.
const (
	guestMount = "bench"
	guestAuth  = "jwt-bench"
	guestUser  = "bench"
	kvMount    = "bench-kv"
	plugin     = "vault-plugin-secrets-sealed"

	// grantsPerRun keeps runs as small as real ones are.
	grantsPerRun = 20
	credsGoal    = 3  // of reading, storage in memory
	syncedGoal   = 3  // of writing, storage on a disk
	enqueueGoal  = 10 // milliseconds
)

// A tenant is the guest mount, ready for guests.
type tenant struct {
	maker    *maker
	root     *vaultclient.Client
	admin    *vaultclient.Engine // root's
	operator *vaultclient.Engine
	door     *door
	guest    *guest
	enqueues bench.Sample // of all guests; one at a time
}

// engineRows compares issuing a built-in key with reading the same value from
// KV v2: same Vault, same token, same connection, in turns.
func engineRows(ctx context.Context, st *stack, percent int) ([]bench.Row, error) {
	t, err := st.guests(ctx)
	if err != nil {
		return nil, err
	}
	var creds, opened, both, read, write bench.Sample
	for i := range times(400, percent) {
		if i%grantsPerRun == 0 {
			if err := t.nextRun(ctx); err != nil {
				return nil, err
			}
		}
		r, err := t.door.call(ctx, http.MethodGet, kvMount+"/data/token", nil)
		if err != nil {
			return nil, err
		}
		read.Add(bench.Milliseconds(r.took))
		start := time.Now()
		c, err := t.guest.creds(ctx)
		if err != nil {
			return nil, err
		}
		opened.Took(start)
		creds.Add(bench.Milliseconds(c.took))
		if err := t.guest.confirm(ctx, c); err != nil {
			return nil, err
		}
		both.Took(start)
		start = time.Now()
		if err := t.kvPut(ctx); err != nil {
			return nil, err
		}
		write.Took(start)
	}
	rows := rowsOfOne(st, &creds, &opened, &both, &read, &write)
	if err := t.endRun(ctx); err != nil {
		return rows, err
	}
	more, err := t.crowdRows(ctx, percent, st.synced)
	rows = append(rows, more...)
	if err != nil {
		return rows, err
	}
	if more, err = t.watchRows(ctx, percent); err != nil {
		return rows, err
	}
	enqueue := bench.Compare("enqueue, one key", "ms", &t.enqueues, "KV v2 write", &write)
	return append(append(rows, more...), enqueue.Want("p50 ≤ 10", enqueue.P50 <= enqueueGoal)), nil
}

// rowsOfOne are the rows of one client.
func rowsOfOne(st *stack, creds, opened, both, read, write *bench.Sample) []bench.Row {
	row := bench.Compare("creds of a built-in key", "ms", creds, "KV v2 read", read)
	toWrite := bench.Compare("  the same: creds", "ms", creds, "KV v2 write", write)
	if st.synced {
		toWrite = toWrite.Want("ratio ≤ 3", toWrite.Ratio <= syncedGoal)
	} else {
		row = row.Want("ratio ≤ 3", row.Ratio <= credsGoal)
	}
	var mine, theirs bench.Sample
	mine.Add(creds.P99() / creds.Median())
	theirs.Add(read.P99() / read.Median())
	spread := bench.Compare("  the same: p99 to p50", "ratio", &mine, "p99 to p50 of KV v2 read", &theirs)
	spread.N, spread.P99 = creds.Len(), math.NaN()
	return []bench.Row{
		row, toWrite, spread.Want("≤ 2", spread.P50 <= 2),
		bench.Compare("  with init's signing, checking, opening", "ms", opened, "KV v2 read", read),
		bench.Compare("  and confirm", "ms", both, "KV v2 read", read),
	}
}

// guests returns the guest mount, which is made when it is first asked for.
func (s *stack) guests(ctx context.Context) (*tenant, error) {
	if s.tenant != nil {
		return s.tenant, nil
	}
	t, err := newTenant(ctx, s)
	if err == nil {
		s.tenant = t
	}
	return t, err
}

func newTenant(ctx context.Context, st *stack) (*tenant, error) {
	m, err := newMaker()
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(st.status.VaultCA)
	if err != nil {
		return nil, fmt.Errorf("reading Vault's CA: %w", err)
	}
	t := &tenant{maker: m, root: st.root, admin: st.root.Engine(guestMount)}
	if t.door, err = newDoor(st.status.VaultAddr, ca); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{t.mount, t.allow, t.auth, t.configure, t.kv, t.user} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("setting up the guest mount: %w", err)
		}
	}
	return t, nil
}

// writes sends several updates as root.
func (t *tenant) writes(ctx context.Context, all ...write) error {
	for _, w := range all {
		if _, err := t.root.Write(ctx, w.path, w.data); err != nil {
			return err
		}
	}
	return nil
}

type write struct {
	path string
	data map[string]any
}

func (t *tenant) mount(ctx context.Context) error {
	return t.writes(ctx,
		write{"sys/mounts/" + guestMount, map[string]any{"type": plugin, "config": map[string]any{"default_lease_ttl": "1h", "max_lease_ttl": "24h"}}},
		write{"sys/mounts/" + kvMount, map[string]any{"type": "kv", "options": map[string]any{"version": "2"}}},
		write{"sys/auth/" + guestAuth, map[string]any{"type": "jwt"}},
	)
}

// allow writes the ready-made policies for the guest mount.
func (t *tenant) allow(ctx context.Context) error {
	names, err := fs.Glob(policies.Policies, "*.hcl")
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := fs.ReadFile(policies.Policies, name)
		if err != nil {
			return err
		}
		to := "sys/policies/acl/bench-" + strings.TrimSuffix(path.Base(name), ".hcl")
		if err := t.writes(ctx, write{to, map[string]any{"policy": strings.ReplaceAll(string(text), "{{mount}}", guestMount)}}); err != nil {
			return err
		}
	}
	return t.writes(ctx, write{"sys/policies/acl/bench-kv", map[string]any{
		"policy": `path "` + kvMount + `/data/token" { capabilities = ["create", "read", "update"] }`,
	}})
}

func (t *tenant) auth(ctx context.Context) error {
	public, err := t.maker.publicKey()
	if err != nil {
		return err
	}
	if _, err := t.root.Sys(ctx, http.MethodPost, "auth/"+guestAuth+"/config", map[string]any{
		"jwt_validation_pubkeys": []string{public}, "jwt_supported_algs": []string{"ES256"},
	}); err != nil {
		return err
	}
	return t.writes(ctx, write{"auth/" + guestAuth + "/role/agent", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{guestAudience}, "token_type": "service", "token_period": 3600,
		"token_no_default_policy": true, "token_policies": []string{"bench-sealed-agent", "bench-kv"},
	}})
}

func (t *tenant) configure(ctx context.Context) error {
	mounts, err := t.root.Read(ctx, "sys/auth", nil)
	if err != nil {
		return err
	}
	info, _ := mounts[guestAuth+"/"].(map[string]any)
	bundle, err := t.maker.bundle()
	if err != nil {
		return err
	}
	p, err := bench.NewPolicy(ctx)
	if err != nil {
		return err
	}
	keys, err := json.Marshal(map[string]string{bench.PolicyKeyID: p.PublicKey})
	if err != nil {
		return err
	}
	source, err := json.Marshal(sealed.SourceConfig{Name: "builtin", Type: sealed.SourceBuiltin})
	if err != nil {
		return err
	}
	if err := t.writes(ctx,
		write{guestMount + "/config", map[string]any{"tenant": string(guestTenant), "trust_domain": guestDomain, "agent_accessor": info["accessor"], "second_person": false}},
		write{guestMount + "/config/trust-bundle", map[string]any{"bundle": bundle}},
		write{guestMount + "/config/policy-keys", map[string]any{"keys": string(keys)}},
		write{guestMount + "/policy", map[string]any{"bundle": base64.StdEncoding.EncodeToString(p.Raw)}},
		write{guestMount + "/sources/builtin", map[string]any{"source": string(source)}},
	); err != nil {
		return err
	}
	if _, err := t.admin.PutSecret(ctx, "bench/token", []byte("bench-value-0123456789abcdef")); err != nil {
		return err
	}
	if _, err := t.admin.WriteAgent(ctx, sealed.AgentDefinition{Name: agentName, AnyBinary: true}); err != nil {
		return err
	}
	_, err = t.admin.WriteProfile(ctx, profile("bench-operators"))
	return err
}

// kv logs the guests in and fills KV v2, which upgrades itself in the
// background after it was mounted.
func (t *tenant) kv(ctx context.Context) error {
	jwt, err := t.maker.jwt()
	if err != nil {
		return err
	}
	r, err := t.door.call(ctx, http.MethodPut, "auth/"+guestAuth+"/login", map[string]string{"role": "agent", "jwt": jwt})
	if err != nil {
		return err
	}
	t.door.token = r.Auth.Token
	for range 100 {
		if err = t.kvPut(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return err
}

func (t *tenant) kvPut(ctx context.Context) error {
	_, err := t.door.call(ctx, http.MethodPost, kvMount+"/data/token", map[string]any{"data": map[string]string{"token": "bench-value-0123456789abcdef"}})
	return err
}

// user makes the person who enqueues: an entity, in a group of the profile.
func (t *tenant) user(ctx context.Context) error {
	password := rand.Text()
	if err := t.writes(ctx, write{"auth/userpass/users/" + guestUser, map[string]any{"password": password, "token_policies": []string{"bench-sealed-operator"}}}); err != nil {
		return err
	}
	login, err := t.root.Login(ctx, "auth/userpass/login/"+guestUser, map[string]any{"password": password})
	if err != nil {
		return err
	}
	if err := t.writes(ctx, write{"identity/group/name/bench-operators", map[string]any{"type": "internal", "member_entity_ids": []string{login.EntityID}}}); err != nil {
		return err
	}
	c, err := t.root.WithToken(string(login.Token))
	if err != nil {
		return err
	}
	t.operator = c.Engine(guestMount)
	return nil
}

// nextRun ends the run and claims another.
func (t *tenant) nextRun(ctx context.Context) error {
	err := t.endRun(ctx)
	if err == nil {
		t.guest, err = t.newGuest(ctx, t.door)
	}
	return err
}

// newGuest claims a new run.
func (t *tenant) newGuest(ctx context.Context, d *door) (*guest, error) {
	idem, err := sealed.NewULID(time.Now(), nil)
	if err != nil {
		return nil, err
	}
	digest := sealed.CommandDigest([]string{"bench"})
	start := time.Now()
	q, err := t.operator.Enqueue(ctx, sealed.EnqueueRequest{
		IdempotencyKey: idem, Agent: agentName, Mode: sealed.ModeJIT, Profile: profileName, Workflow: workflow, CommandDigest: digest,
		WorkspaceDigest: digest, Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID, Network: sealed.NetworkNone},
	})
	if err != nil {
		return nil, err
	}
	t.enqueues.Took(start)
	cfg, err := t.root.Read(ctx, guestMount+"/config", nil)
	if err != nil {
		return nil, err
	}
	text, _ := cfg["answer_key"].(string)
	key, err := sealed.TrustFile{AnswerKey: text}.AnswerPublicKey()
	if err != nil {
		return nil, err
	}
	g := &guest{door: d, answerKey: key}
	return g, g.claim(ctx, t.maker, q, sealed.Measurement{
		InitVersion: "bench", ExeDigest: string(digest), CommandDigest: digest, WorkspaceDigest: digest, TrustDigest: digest, Backend: sealed.BackendLocal,
		PID: 1, UID: 1000, UIDMap: "1000 0 1", Interfaces: []string{"lo"}, CapEff: "0", CapBnd: "0", NoNewPrivs: true, Seccomp: 2, RootReadOnly: true,
	})
}

func (t *tenant) endRun(ctx context.Context) error {
	if t.guest == nil {
		return nil
	}
	id := t.guest.run
	t.guest = nil
	return t.operator.CloseRun(ctx, id, "measured")
}
