package vaultplugin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/helper/pluginutil"
	"github.com/hashicorp/vault/sdk/logical"
	sdkplugin "github.com/hashicorp/vault/sdk/plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

// These tests run the main flows twice: on the engine in this process, and on
// the real program behind go-plugin, which takes every answer, error and storage
// operation through gRPC as Vault does. Only the second one sees what that edge
// does to an error or to a value.

// An edge is one process of the real program. It may serve several mounts.
type edge struct {
	logical.StaticSystemView // what the SDK asks its host for
	conn                     *grpc.ClientConn
	dispense                 func(string) (any, error)
	plugin                   string
}

// startEdge builds the program and starts it as Vault does: checked by its
// digest, with mutual TLS.
func startEdge(t *testing.T) *edge {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the program")
	}
	exe := filepath.Join(t.TempDir(), "vault-plugin-secrets-sealed")
	if out, err := exec.Command("go", "build", "-o", exe, "./cmd/vault-plugin-secrets-sealed").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	e := &edge{plugin: "vault-plugin-secrets-sealed"}
	runner := &pluginutil.PluginRunner{Name: e.plugin, Type: consts.PluginTypeSecrets, Command: exe, Sha256: sum[:]}
	client, err := runner.RunConfig(t.Context(), pluginutil.Runner(e), pluginutil.PluginSets(sdkplugin.PluginSet),
		pluginutil.HandshakeConfig(sdkplugin.HandshakeConfig), pluginutil.Logger(hclog.NewNullLogger()), pluginutil.AutoMTLS(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Kill)
	rpc, err := client.Client()
	if err != nil {
		t.Fatalf("starting the program: %v", err)
	}
	// The connection is a field of go-plugin's client; Vault takes it from there.
	e.conn = reflect.ValueOf(rpc).Elem().FieldByName("Conn").Interface().(*grpc.ClientConn)
	e.dispense = func(name string) (any, error) { return rpc.Dispense(name) }
	if ok, err := pluginutil.MultiplexingSupported(t.Context(), e.conn, e.plugin); !ok || err != nil {
		t.Fatalf("the program does not multiplex: %v, %v", ok, err)
	}
	return e
}

// VaultVersion implements pluginutil.RunnerUtil.
func (e *edge) VaultVersion(context.Context) (string, error) { return "1.21.0", nil }

// open mounts the engine for a world, under an id of its own.
func (e *edge) open(t *testing.T, w *world, id string) logical.Backend {
	t.Helper()
	b, err := sdkplugin.Dispense(mountConn{e, id}, mountConn{e, id})
	if err != nil {
		t.Fatal(err)
	}
	err = b.Setup(t.Context(), &logical.BackendConfig{StorageView: w.s, System: w.sys, Logger: hclog.NewNullLogger(), BackendUUID: id, Config: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Initialize(t.Context(), &logical.InitializationRequest{Storage: w.s}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Cleanup(context.WithoutCancel(t.Context())) })
	return b
}

// A mountConn is the connection of one mount: it says on each call which.
type mountConn struct {
	e  *edge
	id string
}

func (c mountConn) mark(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pluginutil.MultiplexingCtxKey, c.id)
}

// Invoke implements grpc.ClientConnInterface.
func (c mountConn) Invoke(ctx context.Context, method string, args, reply any, o ...grpc.CallOption) error {
	return c.e.conn.Invoke(c.mark(ctx), method, args, reply, o...)
}

// NewStream implements grpc.ClientConnInterface.
func (c mountConn) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, o ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.e.conn.NewStream(c.mark(ctx), d, method, o...)
}

// Conn, Reload, Close, Ping and Dispense implement pluginutil.PluginClient; the
// process ends with the test.
func (c mountConn) Conn() grpc.ClientConnInterface    { return c }
func (c mountConn) Reload() error                     { return nil }
func (c mountConn) Close() error                      { return nil }
func (c mountConn) Ping() error                       { return nil }
func (c mountConn) Dispense(name string) (any, error) { return c.e.dispense(name) }

// signedPolicy is the default policy, signed.
func signedPolicy(t testing.TB) (raw []byte, public string) {
	t.Helper()
	raw, err := opabundle.Build(t.Context(), rego.FS(), opabundle.Manifest{Revision: "test", Sequence: 1, Expires: time.Now().Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = opabundle.Sign(t.Context(), raw, key, "k1"); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return raw, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// newRealWorld is a world with the default policy and the real time. If e is not
// nil the engine is the real program's; w.b then only reads what is in storage.
func newRealWorld(t *testing.T, e *edge, id string) *world {
	t.Helper()
	w := &world{t: t, s: &faultStorage{}, clock: &clock{t: time.Now().UTC()}, dyn: &fakeDynamic{live: map[string]bool{}},
		sys: &fakeSystem{entities: map[string]*logical.Entity{}, groups: map[string][]string{},
			StaticSystemView: logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour, PluginEnvironment: &logical.PluginEnvironment{VaultVersion: "1.21.0"}}},
	}
	w.openBundle = func(ctx context.Context, raw []byte, keys map[string]string) (Bundle, error) {
		return opabundle.Open(ctx, raw, opabundle.Options{Keys: keys})
	}
	w.raw, w.policyKey = signedPolicy(t)
	w.sys.person("op", nil, "release-eng")
	w.sys.person("ann", nil, "sealed-approvers")
	w.sys.person("bob", nil, "sealed-approvers")
	for _, a := range []string{"agent-1", "agent-2"} {
		w.sys.entities[a] = &logical.Entity{ID: a, Name: a, Aliases: []*logical.Alias{{Name: testSPIFFE, MountAccessor: jwtMount}}}
	}
	w.makeCA()
	w.open()
	if e != nil {
		w.edge = e.open(t, w, id)
	}
	w.configure()
	return w
}

func TestEdge(t *testing.T) {
	t.Run("in process", func(t *testing.T) { mainFlows(t, newRealWorld(t, nil, "")) })
	e := startEdge(t)
	t.Run("over gRPC", func(t *testing.T) { mainFlows(t, newRealWorld(t, e, "mount-1")) })
	t.Run("version", func(t *testing.T) {
		w := newRealWorld(t, e, "mount-2")
		got := w.edge.(logical.PluginVersioner).PluginVersion().Version
		if got != Version || w.b.PluginVersion().Version != Version {
			t.Errorf("the program says %q, the engine %q, want %q", got, w.b.PluginVersion().Version, Version)
		}
	})
	t.Run("paths", func(t *testing.T) {
		w := newRealWorld(t, e, "mount-3")
		if got, want := len(openAPI(t, w.edge, w.s)), len(openAPI(t, newBare(t), w.s)); got != want {
			t.Errorf("%d paths over gRPC, %d in process", got, want)
		}
		if got, want := w.edge.SpecialPaths(), w.b.SpecialPaths(); !reflect.DeepEqual(got.SealWrapStorage, want.SealWrapStorage) || len(got.Root)+len(got.Unauthenticated) > 0 {
			t.Errorf("special paths %+v", got)
		}
	})
	t.Run("mounts apart", func(t *testing.T) { twoMounts(t, newRealWorld(t, e, "mount-4"), newRealWorld(t, e, "mount-5")) })
}

// mainFlows is a run from its enqueue to its end, with a person's yes, a refusal
// of each kind, and a stop.
func mainFlows(t *testing.T, w *world) {
	g := w.claimed(idem(1))
	a, resp, err := g.creds("LOW", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	if got := g.value(a); got != canary {
		t.Fatalf("the value is %q", got)
	}
	if resp.Secret == nil || resp.Secret.TTL <= 0 || !resp.Secret.Renewable || resp.Secret.InternalData["grant"] != string(a.Grant) {
		t.Fatalf("lease %+v", resp.Secret)
	}
	if again, _, err := g.creds("LOW", idem(2)); err != nil || again.Grant != a.Grant {
		t.Errorf("the same idempotency: grant %s, %v; want %s", again.Grant, err, a.Grant)
	}
	if err := g.confirm(a); err != nil {
		t.Fatal(err)
	}
	if got := g.watch(a.Epoch - 1); got.Order != sealed.OrderContinue {
		t.Errorf("order %s", got.Order)
	}

	t.Run("refusals keep their status", func(t *testing.T) {
		stale := w.profile()
		stale.Version = 7
		for _, tt := range []struct {
			name   string
			status int
			err    func() error
		}{
			{"field missing", 400, func() error { _, err := w.do("op", "", logical.UpdateOperation, "runs", nil); return err }},
			{"field unknown", 400, func() error {
				_, err := w.do("op", "", logical.UpdateOperation, "runs", map[string]any{"spce": "x"})
				return err
			}},
			{"field of another type", 400, func() error {
				_, err := w.do("op", "", logical.UpdateOperation, "secrets/ci/x", map[string]any{"value": []any{map[string]any{"a": 1}}})
				return err
			}},
			{"stale version", 409, func() error {
				_, err := w.do("op", "", logical.UpdateOperation, "profiles/workflow/team/release", map[string]any{"profile": w.json(stale)})
				return err
			}},
			{"nobody", 403, func() error { _, err := w.tryEnqueue("", enqueueSpec(idem(9))); return err }},
			{"unknown key", 403, func() error { _, _, err := g.creds("NOTHING", idem(3)); return err }},
			{"another's key", 403, func() error { _, _, err := g.creds("OTHER", idem(4)); return err }},
			{"another's token", 403, func() error {
				_, err := g.callAs("agent-2", "acc-x", g.key, g.path("watch"), sealed.WatchRequest{Run: g.run, Path: g.path("watch")})
				return err
			}},
			{"a person first", 428, func() error { _, _, err := g.creds("HIGH", idem(5)); return err }},
			{"its own vote", 403, func() error { return w.vote("op", g.pendingID("HIGH", idem(5)), "approve") }},
		} {
			if err := tt.err(); code(err) != tt.status {
				t.Errorf("%s: %v, want status %d", tt.name, err, tt.status)
			}
		}
	})

	id := g.pendingID("HIGH", idem(5))
	if err := w.vote("ann", id, "approve"); err != nil {
		t.Fatal(err)
	}
	high, resp, err := g.creds("HIGH", idem(5))
	if err != nil || g.value(high) != canary {
		t.Fatalf("after the yes: %v", err)
	}
	if err := g.confirm(high); err != nil {
		t.Fatal(err)
	}
	renew := &logical.Request{Operation: logical.RenewOperation, Path: g.path("creds/HIGH"), Secret: resp.Secret, Storage: w.s}
	renew.Secret.IssueTime = time.Now()
	if _, err := w.handler().HandleRequest(t.Context(), renew); err != nil {
		t.Errorf("renewing: %v", err)
	}
	w.revoke("key", "team/release#HIGH", false)
	if _, err := w.handler().HandleRequest(t.Context(), renew); err == nil {
		t.Error("renewed what was revoked")
	}
	revoke := &logical.Request{Operation: logical.RevokeOperation, Path: g.path("creds/HIGH"), Secret: resp.Secret, Storage: w.s}
	for range 2 {
		if _, err := w.handler().HandleRequest(t.Context(), revoke); err != nil {
			t.Errorf("revoking the lease: %v", err)
		}
	}
	w.open()
	if err := g.finish(g.record(nil)); err != nil {
		t.Fatal(err)
	}
	w.open()
	for _, typ := range []string{"run.enqueued", "issue.ok", "approval.granted", "revocation.created", "run.finished"} {
		w.wantEntry(typ)
	}
	t.Run("nothing in storage or answers", func(t *testing.T) { scanForCanary(t, w) })
}

// scanForCanary looks for the value in all of storage but the store itself.
func scanForCanary(t *testing.T, w *world) {
	keys, err := logical.CollectKeys(t.Context(), w.s)
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, k := range keys {
		e, err := w.s.Get(t.Context(), k)
		if err != nil || e == nil {
			continue
		}
		hit := strings.Contains(string(e.Value), canary) || strings.Contains(string(e.Value), base64.StdEncoding.EncodeToString([]byte(canary)))
		if strings.HasPrefix(k, storeSecrets) {
			seen = seen || hit
		} else if hit {
			t.Errorf("%s holds the value", k)
		}
	}
	if !seen {
		t.Error("the value was not even in the store: the scan shows nothing")
	}
}

// twoMounts: two tenants' mounts in one process, with the same names in both and
// calls to both at once, have nothing in common but the program.
func twoMounts(t *testing.T, a, b *world) {
	b.must("op", "secrets/ci/token", map[string]any{"value": "other-" + canary})
	var both sync.WaitGroup
	guests := make([]*guest, 2)
	for i, w := range []*world{a, b} {
		both.Go(func() {
			g := w.claimed(idem(1))
			guests[i] = g
			want := strings.Repeat("other-", i) + canary
			for n := range 10 {
				got, _, err := g.creds("LOW", idem(10+n))
				if err != nil {
					t.Errorf("mount %d: %v", i, err)
					return
				}
				if v := g.value(got); v != want {
					t.Errorf("mount %d gave %q, want %q", i, v, want)
				}
				if err := g.confirm(got); err != nil {
					t.Errorf("mount %d: %v", i, err)
				}
			}
		})
	}
	both.Wait()
	if t.Failed() {
		return
	}
	keyOf := func(w *world) string {
		resp, err := w.do("op", "", logical.ReadOperation, "config", nil)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(resp.Data["answer_key"], resp.Data["log_key"])
	}
	if keyOf(a) == keyOf(b) {
		t.Error("two mounts have the same keys")
	}
	// A run, a grant and an idempotency key of one are unknown in the other.
	foreign := guests[0]
	if _, err := b.do("op", "", logical.ReadOperation, "runs/"+string(foreign.run), nil); code(err) != 403 {
		t.Errorf("a's run in b: %v", err)
	}
	thief := *foreign
	thief.w = b
	_, _, err := thief.creds("LOW", idem(10))
	wantCode(t, err, 403)
	// A stop in one is none in the other; nor does its log or its epoch move.
	before := headOf(t, b)
	a.revoke("tenant", testTenant, false)
	if _, _, err := foreign.creds("LOW", idem(50)); err == nil {
		t.Error("a issued after its tenant was revoked")
	}
	if after := headOf(t, b); after != before {
		t.Errorf("a's stop moved b's log:\n%s\n%s", before, after)
	}
	if _, _, err := guests[1].creds("LOW", idem(50)); err != nil {
		t.Errorf("a's stop stopped b: %v", err)
	}
	for _, w := range []*world{a, b} {
		other := guests[0]
		if w == a {
			other = guests[1]
		}
		keys, err := logical.CollectKeys(t.Context(), w.s)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if e, err := w.s.Get(t.Context(), k); err != nil || e == nil || strings.Contains(k+string(e.Value), string(other.run)) {
				t.Errorf("storage of one mount names a run of the other: %s", k)
			}
		}
	}
}

func headOf(t *testing.T, w *world) string {
	t.Helper()
	resp, err := w.do("op", "", logical.ReadOperation, "log/checkpoint", nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Data["checkpoint"].(string)
}

// TestMountsApart is twoMounts on two engines of this process, for the race
// detector.
func TestMountsApart(t *testing.T) { twoMounts(t, newWorld(t), newWorld(t)) }

// TestEdgeCarriesText: what crosses the edge is text, so that nothing is turned
// into another type on the way; see DESIGN §4.
func TestEdgeCarriesText(t *testing.T) {
	for name, f := range answers() {
		for field, s := range f {
			if raw, err := json.Marshal(s.Type); err != nil || s.Type.String() == "unknown type" {
				t.Errorf("%s %s: %s", name, field, raw)
			}
		}
	}
}
