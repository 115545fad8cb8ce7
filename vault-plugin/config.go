package vaultplugin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sealed.dev/sealed/internal/sealed"
)

// engineConfig is the mount's configuration. It holds nothing secret.
type engineConfig struct {
	Tenant         sealed.Name `json:"tenant"`          // fixed at first write
	TrustDomain    string      `json:"trust_domain"`    // fixed at first write
	AllowEmbedded  bool        `json:"allow_embedded"`  // fixed at first write
	AgentAccessor  string      `json:"agent_accessor"`  // of the auth/jwt mount that agents log in by
	ClaimsAccessor []string    `json:"claims_accessor"` // auth mounts whose alias metadata are claims
	// PersonClaim is the key, in alias custom metadata, alias metadata or
	// entity metadata, that names the human. Empty: the entity is the person.
	PersonClaim string `json:"person_claim"`

	// SecondPersonOff lets one person make a change that widens. It is named for
	// what it switches off, so that configurations of older versions have it on.
	SecondPersonOff bool `json:"second_person_off,omitempty"`
	// ProposalsExpire is how long such a change waits for the second person; 0: a week.
	ProposalsExpire sealed.Duration `json:"proposals_expire,omitempty"`

	// SourceHelpers pins the helper programs: type of source to SHA-256, hex.
	SourceHelpers map[string]string `json:"source_helpers,omitempty"`
	// SOPSRoot is the only directory that SOPS files are read from.
	SOPSRoot string `json:"sops_root,omitempty"`

	// Detect are the kinds of detectors that look at what runs have printed
	// before it is stored; none by default.
	Detect []string `json:"detect,omitempty"`

	FreezeAfter      sealed.Duration `json:"freeze_after"`      // out of contact: the proxy freezes
	StopAfter        sealed.Duration `json:"stop_after"`        // out of contact: the run stops
	SilentAfter      sealed.Duration `json:"silent_after"`      // no word from init: the engine closes the run
	UnconfirmedAfter sealed.Duration `json:"unconfirmed_after"` // a grant nobody confirmed is revoked
	KeepRuns         sealed.Duration `json:"keep_runs"`         // rows of ended runs are deleted after it; 0, of an older version: 90 days
}

// defaultConfig is what a first write starts from.
func defaultConfig() engineConfig {
	return engineConfig{
		FreezeAfter:      sealed.Duration(5 * time.Second),
		StopAfter:        sealed.Duration(60 * time.Second),
		SilentAfter:      sealed.Duration(15 * time.Second),
		UnconfirmedAfter: sealed.Duration(10 * time.Second),
		KeepRuns:         sealed.Duration(keepRuns),
	}
}

// keepFor is how long the row of an ended run is kept.
func (c *engineConfig) keepFor() time.Duration {
	if c.KeepRuns == 0 {
		return keepRuns
	}
	return c.KeepRuns.Std()
}

// proposalsLast is how long a proposal waits.
func (c *engineConfig) proposalsLast() time.Duration {
	if c.ProposalsExpire == 0 {
		return 7 * 24 * time.Hour
	}
	return c.ProposalsExpire.Std()
}

// config returns the mount's configuration, which the caller must not change,
// or sealed.ErrUnavailable before the first write.
func (b *backend) config(ctx context.Context, s logical.Storage) (*engineConfig, error) {
	return b.nouns.config.get("", func() (*engineConfig, error) {
		cfg := new(engineConfig)
		ok, err := get(ctx, s, storeConfig, cfg)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("loading config: the mount is not configured: %w", sealed.ErrUnavailable)
		}
		if err := cfg.validate(); err != nil {
			return nil, fmt.Errorf("decoding stored %s: malformed", storeConfig)
		}
		return cfg, nil
	})
}

// validate checks a whole configuration.
func (c *engineConfig) validate() error {
	if _, err := sealed.ParseName("tenant", string(c.Tenant)); err != nil {
		return err
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil || td.Name() != c.TrustDomain {
		return invalid("trust_domain", "wants the name of a SPIFFE trust domain")
	}
	if c.TrustDomain == sealed.ReservedTrustDomain && !c.AllowEmbedded {
		return invalid("trust_domain", "belongs to the embedded authority of one machine; a production mount refuses it")
	}
	if c.AgentAccessor == "" {
		return invalid("agent_accessor", "wants the accessor of the auth mount that agents log in by")
	}
	if err := c.validateHelpers(); err != nil {
		return err
	}
	for i, kind := range c.Detect {
		if !slices.Contains(sealed.DetectKinds, kind) || slices.Contains(c.Detect[:i], kind) {
			return invalid("detect", "wants, once each, any of "+strings.Join(sealed.DetectKinds, ", "))
		}
	}
	return c.validateLimits()
}

func (c *engineConfig) validateLimits() error {
	for field, d := range map[string]sealed.Duration{
		"freeze_after": c.FreezeAfter, "stop_after": c.StopAfter, "silent_after": c.SilentAfter, "unconfirmed_after": c.UnconfirmedAfter,
	} {
		if d.Std() < time.Second || d.Std() > time.Hour {
			return invalid(field, "wants 1s to 1h")
		}
	}
	if d := c.keepFor(); d < time.Hour || d > 20*365*24*time.Hour {
		return invalid("keep_runs", "wants 1h to 175200h, which is 20 years")
	}
	if d := c.proposalsLast(); d < time.Minute || d > 90*24*time.Hour {
		return invalid("proposals_expire", "wants 1m to 2160h, which is 90 days")
	}
	if c.StopAfter < c.FreezeAfter {
		return invalid("stop_after", "wants at least freeze_after")
	}
	return nil
}
