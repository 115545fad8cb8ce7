package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
)

// minters are the runs that ask at the same time.
const minters = 6

// A pki is a PKI mount of a Vault that is no part of the cluster. Its certificates
// have leases: that Vault counts both what was ever issued and what lives.
type pki struct {
	root  *vaultclient.Client
	token []byte // of the source
}

func (w *world) pki(t *testing.T) *pki {
	t.Helper()
	w.startNode(t, upstream, testcontainers.WithImage(w.image))
	token := w.begin(t, upstream)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	harness.Must(t, err)
	w.forward(l, w.listener(upstream))
	u := &pki{}
	u.root, err = vaultclient.New("https://"+l.Addr().String(), w.ca, token)
	harness.Must(t, err)
	for _, step := range []struct {
		path string
		data map[string]any
	}{
		{"sys/mounts/pki", map[string]any{"type": "pki"}},
		{"pki/root/generate/internal", map[string]any{"common_name": "cluster test", "key_type": "ec", "key_bits": 256}},
		{"pki/roles/ci", map[string]any{"allow_any_name": true, "enforce_hostnames": false, "require_cn": false, "key_type": "ec", "key_bits": 256, "generate_lease": true, "ttl": "1h"}},
		{"sys/policies/acl/ci", map[string]any{"policy": `path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "pki/issue/ci" { capabilities = ["read", "update"] }`}},
	} {
		_, err := u.root.Write(t.Context(), step.path, step.data)
		harness.Must(t, err)
	}
	out, err := u.root.Sys(t.Context(), http.MethodPost, "auth/token/create", map[string]any{"policies": []string{"ci"}, "no_default_policy": true, "period": "1h"})
	harness.Must(t, err)
	text, _ := out["auth"].(map[string]any)["client_token"].(string)
	u.token = []byte(text)
	return u
}

// minted is how many certificates were ever issued, the CA's own left out.
func (u *pki) minted(t *testing.T) int {
	t.Helper()
	keys, err := u.root.List(t.Context(), "pki/certs")
	harness.Must(t, err)
	return len(keys) - 1
}

// alive is how many credentials live.
func (u *pki) alive(t *testing.T) int {
	t.Helper()
	keys, err := u.root.List(t.Context(), "sys/leases/lookup/pki/issue/ci/")
	harness.Must(t, err)
	return len(keys)
}

// mints asks for credentials from several runs while the leader dies. Whoever gets
// no answer asks again under the same idempotency key, and under another once that
// is refused for good. There is at most one certificate for each key that was
// tried, and in the end exactly one lives for each run.
func (w *world) mints(t *testing.T) {
	u := w.pki(t)
	forge, err := guest.Open(t.Context(), w.Stack.Stack)
	harness.Must(t, err)
	name := sealed.Name(w.Name("dynamic"))
	_, err = w.Engine(t, "admin").WriteSource(t.Context(), sealed.SourceConfig{Name: name, Type: sealed.SourceVaultDynamic, Address: "https://" + upstreamAddr, CA: string(w.ca), Mount: "pki"}, u.token)
	harness.Must(t, err)
	profile := w.profile(t, func(k *sealed.KeySpec) {
		k.Source, k.Ref = name, sealed.KeyRef{Path: "issue/ci", Field: "private_key"}
	})
	guests := make([]*guest.Guest, minters)
	for i := range guests {
		guests[i] = w.guest(t, forge, profile)
	}
	var all sync.WaitGroup
	tried := make([]int, minters)
	for i, g := range guests {
		all.Go(func() { tried[i] = mint(t.Context(), g, i) })
	}
	harness.Eventually(t, 20*time.Second, "the first is minted", func() bool { return u.minted(t) > 0 })
	old, back := w.killLeader(t)
	w.newLeader(t, old)
	stop := w.keepAlive(t, guests)
	all.Wait()
	sum := 0
	for i, n := range tried {
		if n < 1 {
			t.Errorf("run %d has no credential", i)
		}
		sum += n
	}
	if n := u.minted(t); n > sum || n < minters {
		t.Errorf("%d certificates for %d requests of %d runs", n, sum, minters)
	} else {
		t.Logf("%d certificates for %d requests of %d runs", n, sum, minters)
	}
	harness.Eventually(t, time.Minute, "one credential of each run lives", func() bool { return u.alive(t) == minters })
	stop()
	back()
	w.Verify(t)
}

// mint gets and confirms a credential, and returns how many idempotency keys it
// took, 0 if it got none.
func mint(ctx context.Context, g *guest.Guest, who int) (tried int) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pause(ctx, time.Duration(who)*30*time.Millisecond)
	for n := 1; ctx.Err() == nil; n++ {
		for again := 0; again < 200 && ctx.Err() == nil; again++ {
			grant, err := g.Creds(ctx, "KEY", fmt.Sprintf("minted-%04d-%06d", who, n))
			if err == nil && g.Confirm(ctx, grant) == nil {
				return n
			}
			if errors.Is(err, sealed.ErrDenied) || errors.Is(err, sealed.ErrConflict) {
				break
			}
			pause(ctx, 100*time.Millisecond)
		}
	}
	return 0
}

// keepAlive watches for every run, as init does, so that none falls silent.
func (w *world) keepAlive(t *testing.T, guests []*guest.Guest) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, g := range guests {
		all.Go(func() {
			for ctx.Err() == nil {
				_, _ = g.Watch(ctx, 0, 0)
				pause(ctx, time.Second)
			}
		})
	}
	stop = func() { cancel(); all.Wait() }
	t.Cleanup(stop)
	return stop
}

func (w *world) guest(t *testing.T, forge *guest.Forge, profile string) *guest.Guest {
	t.Helper()
	r := request(t, profile)
	q, err := w.Engine(t, "operator").Enqueue(t.Context(), r)
	harness.Must(t, err)
	g, err := forge.Arrive(t.Context(), q.Run, agentName)
	harness.Must(t, err)
	harness.Must(t, g.Claim(t.Context(), q.Ticket, guest.Measure(r), nil))
	return g
}
