package install

import (
	"context"
	"fmt"

	"sealed.dev/sealed/internal/sealed"
)

// authDescription marks an auth mount that this package has made.
const authDescription = "Sealed: agents log in with a JWT-SVID"

// role is the role of auth/jwt that the agents of this mount log in by.
func (t target) role() string { return PolicyName(t.Mount, "sealed-agent") }

func (t target) rolePath() string { return "auth/" + t.AuthMount + "/role/" + t.role() }

// ownAuth reads the entry of the auth mount; another kind is a conflict.
func (t target) ownAuth(ctx context.Context) (map[string]any, error) {
	m, err := entry(ctx, t.c, "sys/auth", t.AuthMount)
	if err != nil || m == nil {
		return nil, err
	}
	if kind := text(m, "type"); kind != "jwt" {
		return nil, fmt.Errorf("auth/%s/ is of the kind %s; name another: %w", t.AuthMount, kind, sealed.ErrConflict)
	}
	return m, nil
}

func (t target) authMount() step {
	s := step{name: "auth", what: "auth mount auth/" + t.AuthMount + "/ (jwt)"}
	s.look = func(ctx context.Context) (found, error) {
		m, err := t.ownAuth(ctx)
		if err != nil {
			return found{}, err
		}
		if m == nil {
			return absent("")
		}
		return same("accessor " + text(m, "accessor"))
	}
	s.apply = func(ctx context.Context) error {
		_, err := t.c.Write(ctx, "sys/auth/"+t.AuthMount, map[string]any{"type": "jwt", "description": authDescription})
		return err
	}
	return s
}

// wantedAuth is the configuration of auth/jwt: keys from SPIRE's bundle endpoint,
// and from nowhere else.
func (t target) wantedAuth() map[string]any {
	return map[string]any{
		"jwks_url": t.BundleEndpoint, "jwks_ca_pem": t.BundleCA,
		"oidc_discovery_url": "", "jwt_validation_pubkeys": []string{}, "jwks_pairs": []string{},
	}
}

func (t target) authConfig() step {
	s := step{name: "auth-config", what: "auth/" + t.AuthMount + "/ trusts " + t.BundleEndpoint}
	s.look = func(ctx context.Context) (found, error) {
		m, err := t.ownAuth(ctx)
		if err != nil {
			return found{}, err
		}
		if m == nil {
			return absent("")
		}
		have, err := read(ctx, t.c, "auth/"+t.AuthMount+"/config", nil)
		if err != nil {
			return found{}, err
		}
		off := drift(t.wantedAuth(), have)
		switch {
		case len(off) == 0:
			return same("")
		case len(drift(map[string]any{"jwks_url": "", "oidc_discovery_url": "", "jwt_validation_pubkeys": nil, "jwks_pairs": nil}, have)) == 0:
			return absent("")
		case text(m, "description") != authDescription:
			return conflict("auth/%s/ is configured for something else (%s); name another", t.AuthMount, list(off))
		}
		return different(list(off))
	}
	s.apply = func(ctx context.Context) error {
		// Vault fetches the keys at once, and refuses an endpoint that does not answer.
		_, err := t.c.Write(ctx, "auth/"+t.AuthMount+"/config", map[string]any{"jwks_url": t.BundleEndpoint, "jwks_ca_pem": t.BundleCA})
		return err
	}
	return s
}

// wantedRole gives a periodic service token for one run, with the agent's policy
// alone, to JWT-SVIDs of this tenant's agents that name the audience. What would
// widen it is written, too, so that it is empty.
func (t target) wantedRole() map[string]any {
	return map[string]any{
		"role_type": "jwt", "user_claim": "sub", "user_claim_json_pointer": false, "groups_claim": "",
		"bound_audiences": []string{t.Audience}, "bound_subject": "", "bound_claims_type": "glob",
		"bound_claims": map[string]any{"sub": "spiffe://" + t.TrustDomain + sealed.AgentSPIFFEPath(t.Tenant, "*")},
		"token_type":   "service", "token_period": 120, "token_ttl": 0, "token_max_ttl": 0, "token_explicit_max_ttl": 0, "token_num_uses": 0,
		"token_no_default_policy": true, "token_policies": []string{t.role()},
		"clock_skew_leeway": 5, "expiration_leeway": 0, "not_before_leeway": 0,
	}
}

func (t target) authRole() step {
	s := step{name: "role", what: "role " + t.role() + " for agents of tenant " + string(t.Tenant)}
	s.look = func(ctx context.Context) (found, error) {
		have, err := read(ctx, t.c, t.rolePath(), nil)
		if err != nil {
			return found{}, err
		}
		if have == nil {
			return absent("periodic token of 120 s")
		}
		if off := drift(t.wantedRole(), have); len(off) > 0 {
			return different(list(off))
		}
		return same("")
	}
	s.apply = func(ctx context.Context) error {
		_, err := t.c.Write(ctx, t.rolePath(), t.wantedRole())
		return err
	}
	return s
}
