package devstack

import (
	"context"
	"os"
	"strconv"

	"sealed.dev/sealed/internal/sealed"
)

// runUIDs is the range from which a root launcher takes a uid per sandbox.
const (
	runUIDMin = 700000
	runUIDMax = 799999
)

// agents are the kinds that a stack has identities for.
func agents() []sealed.Name {
	return []sealed.Name{"claude-code", "codex", "gemini", "custom", "demo"}
}

// An entry says which process gets which SPIFFE ID. Selectors are without the
// attestor's type.
type entry struct {
	ID        string   `json:"id"`
	Selectors []string `json:"selectors"`
	// DNSNames carry the attested isolation into the X509-SVID, where the
	// engine reads it: the SPIFFE ID names agent and tenant only.
	DNSNames []string `json:"dns_names"`
}

// entries are static: per agent and launcher, never per run. Root starts
// sandboxes under uids of their own, everyone else under their own uid; the
// attestor grades nothing else.
func (b *bringUp) entries() []entry {
	owner := "root"
	if os.Geteuid() != 0 {
		owner = "user"
	}
	var out []entry
	for _, agent := range agents() {
		for _, uid := range b.state.Launchers {
			isolation, dns := "same_uid", "same-uid.isolation.sealed.internal"
			if uid == 0 {
				isolation, dns = "own_uid", "own-uid.isolation.sealed.internal"
			}
			out = append(out, entry{
				ID: "spiffe://" + b.state.TrustDomain + sealed.AgentSPIFFEPath(b.cfg.Tenant, agent),
				Selectors: []string{
					"tenant:" + string(b.cfg.Tenant), "agent:" + string(agent), "init_sha256:" + b.init,
					"isolation:" + isolation, "backend:local", "image:host",
					"launcher_uid:" + strconv.Itoa(uid), "init_owner:" + owner,
				},
				DNSNames: []string{dns},
			})
		}
	}
	return out
}

// startIdentity makes the bundle endpoint answer: the embedded authority, or
// the SPIRE server with its entries.
func (b *bringUp) startIdentity(ctx context.Context) error {
	if b.cfg.Identity == IdentitySPIRE {
		return b.startSPIREServer(ctx)
	}
	return b.startAuthority(ctx)
}

// bundleReady is the readiness of whatever serves the bundle endpoint.
func (b *bringUp) bundleReady(ctx context.Context) error {
	_, err := b.spiffeBundle(ctx)
	return err
}
