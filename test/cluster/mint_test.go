package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
)

const (
	minters    = 6
	mintLeases = "sys/leases/lookup/%s/issue/ci/"
)

// pki is a PKI mount of the cluster whose certificates have leases: Vault counts
// both what was ever issued and what lives.
func (w *world) pki(t *testing.T) (mount string, token []byte) {
	t.Helper()
	root := w.rootClient(t)
	mount = w.Name("pki")
	write := func(path string, data map[string]any) {
		t.Helper()
		_, err := root.Write(t.Context(), path, data)
		harness.Must(t, err)
	}
	write("sys/mounts/"+mount, map[string]any{"type": "pki"})
	write(mount+"/root/generate/internal", map[string]any{"common_name": "cluster test", "key_type": "ec", "key_bits": 256})
	write(mount+"/roles/ci", map[string]any{"allow_any_name": true, "enforce_hostnames": false, "require_cn": false, "key_type": "ec", "key_bits": 256, "generate_lease": true, "ttl": "1h"})
	write("sys/policies/acl/"+mount, map[string]any{"policy": `path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "` + mount + `/issue/ci" { capabilities = ["read", "update"] }`})
	out, err := root.Sys(t.Context(), http.MethodPost, "auth/token/create", map[string]any{"policies": []string{mount}, "no_default_policy": true, "period": "1h"})
	harness.Must(t, err)
	text, _ := out["auth"].(map[string]any)["client_token"].(string)
	return mount, []byte(text)
}

// minted is how many certificates were ever issued, the CA's own left out.
func (w *world) minted(t *testing.T, mount string) int {
	t.Helper()
	keys, err := w.rootClient(t).List(t.Context(), mount+"/certs")
	harness.Must(t, err)
	return len(keys) - 1
}

// mints asks for credentials from several runs while the leader dies. Whoever gets
// no answer asks again under the same idempotency key, and under another once that
// is refused for good. There is at most one certificate for each key that was
// tried, and in the end exactly one lives for each run.
func (w *world) mints(t *testing.T) {
	mount, token := w.pki(t)
	forge, err := guest.Open(t.Context(), w.Stack.Stack)
	harness.Must(t, err)
	name := sealed.Name(w.Name("dynamic"))
	// Every node reaches the server it runs in there.
	_, err = w.Engine(t, "admin").WriteSource(t.Context(), sealed.SourceConfig{Name: name, Type: sealed.SourceVaultDynamic, Address: "https://127.0.0.1:8200", CA: string(w.ca), Mount: mount}, token)
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
	harness.Eventually(t, 20*time.Second, "the first is minted", func() bool { return w.minted(t, mount) > 0 })
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
	if n := w.minted(t, mount); n > sum || n < minters {
		t.Errorf("%d certificates for %d requests of %d runs", n, sum, minters)
	} else {
		t.Logf("%d certificates for %d requests of %d runs", n, sum, minters)
	}
	harness.Eventually(t, time.Minute, "one credential of each run lives", func() bool {
		keys, err := w.rootClient(t).List(t.Context(), fmt.Sprintf(mintLeases, mount))
		return err == nil && len(keys) == minters
	})
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
