package vaultplugin

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// renewing is a dynamic source whose credentials last two minutes and can be
// renewed, and whose login has to be kept.
type renewing struct {
	*fakeDynamic
	max            time.Duration
	left           time.Duration
	err            error
	renewed, keeps []string
}

func (r *renewing) Mint(ctx context.Context, ref sealed.KeyRef, handle string) (Minted, error) {
	m, err := r.fakeDynamic.Mint(ctx, ref, handle)
	m.TTL, m.Max = 2*time.Minute, r.max
	return m, err
}

func (r *renewing) Renew(_ context.Context, handle string) (time.Duration, error) {
	r.renewed = append(r.renewed, handle)
	return r.left, r.err
}

func (r *renewing) Keep(context.Context) error {
	r.keeps = append(r.keeps, "")
	return r.err
}

// renewable issues DYN from a source that can renew up to max.
func renewable(t *testing.T, max time.Duration) (*world, *guest, *renewing, *logical.Response) {
	t.Helper()
	w := newWorld(t)
	src := &renewing{fakeDynamic: w.dyn, max: max, left: 2 * time.Minute}
	w.b.deps.OpenSource = func(sealed.SourceConfig, *secret.Value) (Source, error) { return src, nil }
	w.b.nouns.sources.drop()
	g := w.claimed(idem(1))
	a, resp, err := g.creds("DYN", idem(2))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Secret.TTL != 2*time.Minute {
		t.Fatalf("TTL %s", resp.Secret.TTL)
	}
	if err := g.confirm(a); err != nil {
		t.Fatal(err)
	}
	return w, g, src, resp
}

func TestRenewsAtTheSource(t *testing.T) {
	w, g, src, resp := renewable(t, 30*time.Minute)
	later := func(d time.Duration) {
		for ; d > 0; d -= 10 * time.Second {
			w.clock.add(10 * time.Second)
			g.watch(0)
		}
	}
	later(time.Minute)
	out, err := w.lease(logical.RenewOperation, resp)
	if err != nil || out.Secret.TTL != 2*time.Minute || len(src.renewed) != 1 || src.renewed[0] != "handle-1" {
		t.Fatalf("%+v, %v, %v", out, err, src.renewed)
	}
	src.left = 40 * time.Second // the upstream gives less
	if out, err = w.lease(logical.RenewOperation, resp); err != nil || out.Secret.TTL != 40*time.Second {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, fail := range []func(){func() { src.err = errors.New("upstream says " + canary) }, func() { src.err, src.left = nil, 0 }} {
		fail()
		if _, err := w.lease(logical.RenewOperation, resp); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("renewed without the source: %v", err)
		}
	}
	src.left = time.Hour
	later(28 * time.Minute)
	if out, err = w.lease(logical.RenewOperation, resp); err != nil || out.Secret.TTL != time.Minute {
		t.Errorf("beyond what the source can: %+v, %v", out, err)
	}
	w.revoke("run", string(g.run), false)
	before := len(src.renewed)
	if _, err := w.lease(logical.RenewOperation, resp); err == nil || len(src.renewed) != before {
		t.Error("a revoked grant was renewed at the source")
	}
}

// TestOneThatCantRenew is the negative control: without Max the source is not
// asked, and the grant ends with its credential.
func TestOneThatCantRenew(t *testing.T) {
	w, _, src, resp := renewable(t, 0)
	out, err := w.lease(logical.RenewOperation, resp)
	if err != nil || out.Secret.MaxTTL > 2*time.Minute || len(src.renewed) != 0 {
		t.Errorf("%+v, %v, %v", out, err, src.renewed)
	}
}

func TestKeepsLogins(t *testing.T) {
	w, _, src, _ := renewable(t, 0)
	if err := w.b.keepLogins(t.Context(), w.s); err != nil || len(src.keeps) != 1 {
		t.Errorf("%v, %d", err, len(src.keeps))
	}
	src.err = errors.New("down")
	if err := w.b.keepLogins(t.Context(), w.s); err == nil || !strings.Contains(err.Error(), "source dyn") {
		t.Error(err)
	}
}

// TestHelpers: who may write a source can't say what runs on the host; a type
// that lives in a helper works when the mount's configuration pins one.
func TestHelpers(t *testing.T) {
	d := newDesk(t)
	d.configure()
	var got sealed.SourceHelper
	d.b.deps.OpenHelped = func(_ sealed.SourceConfig, h sealed.SourceHelper, c *secret.Value) (Source, error) {
		got = h
		return deskSource{}, nil
	}
	d.write("sources/files", map[string]any{"source": doc(t, sealed.SourceConfig{Name: "files", Type: sealed.SourceSOPS, Mount: "team"}), "credential": "key"})
	open := func() error { _, _, err := d.b.source(t.Context(), d.s, "files"); return err }
	if err := open(); !errors.Is(err, sealed.ErrUnavailable) || got.SHA256 != "" {
		t.Errorf("without a pin: %v", err)
	}
	d.refused(400, "unknown field", "sources/files", map[string]any{"source": `{"name":"files","type":"sops","helper":"/bin/sh"}`})
	sum := strings.Repeat("ab", 32)
	for _, bad := range []map[string]any{
		{"source_helpers": map[string]string{"sops": "abcd"}}, {"source_helpers": map[string]string{"vault-kv": sum}}, {"source_helpers": map[string]string{"sops": "/bin/sh"}},
		{"sops_root": "relative"}, {"sops_root": "/"}, {"sops_root": "/srv/../etc"},
	} {
		field := "source_helpers"
		if bad["sops_root"] != nil {
			field = "sops_root"
		}
		d.refused(400, field, "config", bad)
	}
	d.write("config", map[string]any{"source_helpers": map[string]string{"sops": sum}, "sops_root": "/srv/sops"})
	if err := open(); err != nil || got != (sealed.SourceHelper{SHA256: sum, Root: "/srv/sops"}) {
		t.Errorf("%+v, %v", got, err)
	}
	other := strings.Repeat("cd", 32)
	d.write("config", map[string]any{"source_helpers": map[string]string{"sops": other}})
	if err := open(); err != nil || got.SHA256 != other {
		t.Errorf("an old pin is used: %+v, %v", got, err)
	}
	if out := d.read("config"); out["sops_root"] != "/srv/sops" {
		t.Error(out)
	}
}
