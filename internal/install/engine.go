package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strconv"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// config binds the mount to tenant, trust domain and the auth mount that its agents
// log in by. The first write makes the mount's keys.
func (t target) config() step {
	s := step{name: "config", what: "configuration: tenant " + string(t.Tenant) + ", trust domain " + t.TrustDomain}
	s.look = func(ctx context.Context) (found, error) {
		have, err := read(ctx, t.c, t.Mount+"/config", nil)
		if err != nil {
			return found{}, err
		}
		if have == nil {
			return absent("makes the keys of the mount")
		}
		fixed := map[string]any{"tenant": t.Tenant, "trust_domain": t.TrustDomain}
		if off := drift(fixed, have); len(off) > 0 {
			return conflict("%s/ is bound to tenant %s and trust domain %s, which never change; name another mount", t.Mount, text(have, "tenant"), text(have, "trust_domain"))
		}
		want, err := t.wantedConfig(ctx)
		if err != nil {
			return found{}, err
		}
		if want == nil {
			return different("the auth mount is not there")
		}
		if off := drift(want, have); len(off) > 0 {
			return different(list(off))
		}
		return same("")
	}
	s.apply = func(ctx context.Context) error {
		want, err := t.wantedConfig(ctx)
		if err != nil {
			return err
		}
		if want == nil {
			return errors.New("the auth mount is not there")
		}
		have, err := read(ctx, t.c, t.Mount+"/config", nil)
		if err != nil {
			return err
		}
		if have == nil {
			want["tenant"], want["trust_domain"], want["allow_embedded"] = string(t.Tenant), t.TrustDomain, t.AllowEmbedded
			want["second_person"] = false // until everything is in: see secondPerson
		}
		return t.write(ctx, "config", want)
	}
	return s
}

// write changes a path of the engine. On a mount that is complete a change that
// widens waits for a second person: then the step has failed, and goes on when the
// proposal is confirmed.
func (t target) write(ctx context.Context, path string, body map[string]any) error {
	answer, err := t.c.Write(ctx, t.Mount+"/"+path, body)
	if err != nil {
		return err
	}
	return vaultclient.AsProposed(t.Mount+"/"+path, answer)
}

// secondPerson is the last step for the engine. From then on a change that widens
// takes two persons; this job, whose token is above every wall of the engine, was
// one.
func (t target) secondPerson() step {
	s := step{name: "second-person", what: "a second person for every change that widens"}
	s.look = func(ctx context.Context) (found, error) {
		have, err := read(ctx, t.c, t.Mount+"/config", nil)
		switch on, _ := have["second_person"].(bool); {
		case err != nil:
			return found{}, err
		case on:
			return same("")
		}
		return absent("from then on: sealedctl proposals")
	}
	s.apply = func(ctx context.Context) error {
		return t.write(ctx, "config", map[string]any{"second_person": true})
	}
	return s
}

// wantedConfig is what may change. It is nil while the auth mount, whose accessor
// it names, is not there.
func (t target) wantedConfig(ctx context.Context) (map[string]any, error) {
	m, err := t.ownAuth(ctx)
	if err != nil || m == nil {
		return nil, err
	}
	want := map[string]any{"agent_accessor": text(m, "accessor")}
	if t.PersonClaim != "" {
		want["person_claim"] = t.PersonClaim
	}
	return want, nil
}

// trustBundle names the endpoint that the engine refreshes SPIRE's bundle from. A
// bundle that is stored already is left to the engine, which compares sequences.
func (t target) trustBundle() step {
	s := step{name: "trust-bundle", what: "trust bundle from " + t.BundleEndpoint}
	want := map[string]any{"endpoint": t.BundleEndpoint, "ca": t.BundleCA}
	s.look = func(ctx context.Context) (found, error) {
		have, err := read(ctx, t.c, t.Mount+"/config/trust-bundle", nil)
		if err != nil {
			return found{}, err
		}
		if have == nil {
			return absent("")
		}
		if off := drift(want, have); len(off) > 0 {
			return different(list(off))
		}
		if t.Bundle != "" && text(have, "bundle") == "" {
			return different("no bundle yet")
		}
		return same("sequence " + text(have, "sequence"))
	}
	s.apply = func(ctx context.Context) error {
		have, err := read(ctx, t.c, t.Mount+"/config/trust-bundle", nil)
		if err != nil {
			return err
		}
		body := map[string]any{"endpoint": t.BundleEndpoint, "ca": t.BundleCA}
		if t.Bundle != "" && text(have, "bundle") == "" {
			body["bundle"] = t.Bundle
		}
		return t.write(ctx, "config/trust-bundle", body)
	}
	return s
}

// policyKeys brings the first set. Later sets have to be signed by a key of the set
// before, which is not an installer's business.
func (t target) policyKeys() step {
	s := step{name: "policy-keys", what: "keys that may sign policies"}
	s.look = func(ctx context.Context) (found, error) {
		have, err := read(ctx, t.c, t.Mount+"/config/policy-keys", nil)
		if err != nil {
			return found{}, err
		}
		if have == nil {
			return absent("")
		}
		var keys map[string]string
		if err := sealed.Decode([]byte(text(have, "keys")), 64<<10, &keys); err != nil {
			return found{}, err
		}
		for id, pem := range t.PolicyKeys {
			if keys[id] != pem {
				return found{Different, Warn, "others are there and stay; a new key needs the signature of one of them"}, nil
			}
		}
		return same("")
	}
	s.apply = func(ctx context.Context) error {
		doc, err := json.Marshal(t.PolicyKeys)
		if err != nil {
			return err
		}
		return t.write(ctx, "config/policy-keys", map[string]any{"keys": string(doc)})
	}
	return s
}

// policyBundle brings the first policy, without which everything is denied.
func (t target) policyBundle() step {
	sum := sha256.Sum256(t.PolicyBundle)
	s := step{name: "policy", what: "policy bundle " + hex.EncodeToString(sum[:6])}
	s.look = func(ctx context.Context) (found, error) {
		have, err := t.engine().PolicyStatus(ctx)
		switch {
		case errors.Is(err, sealed.ErrNotFound) || err == nil && have.Digest == "":
			return absent("until then everything is denied")
		case err != nil:
			return found{}, err
		}
		return same("sequence " + strconv.FormatUint(have.Sequence, 10) + " is in force; policy upload replaces it")
	}
	s.apply = func(ctx context.Context) error {
		_, err := t.engine().UploadPolicy(ctx, t.PolicyBundle)
		return err
	}
	return s
}

// builtin is the source that keeps values in the engine's own store.
func (t target) builtin() step {
	s := step{name: "source", what: "source builtin: the engine's own store"}
	s.look = func(ctx context.Context) (found, error) {
		names, err := t.engine().Sources(ctx)
		if err != nil && !errors.Is(err, sealed.ErrNotFound) {
			return found{}, err
		}
		if slices.Contains(names, string(sealed.SourceBuiltin)) {
			return same("")
		}
		return absent("")
	}
	s.apply = func(ctx context.Context) error {
		_, err := t.engine().WriteSource(ctx, sealed.SourceConfig{Name: sealed.Name(sealed.SourceBuiltin), Type: sealed.SourceBuiltin}, nil)
		return err
	}
	return s
}
