package vaultplugin

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// Who calls is what Vault's identity store says about the request's entity.
// Nothing of it comes from the request's data. Vault controls the entity, its
// groups and its aliases' metadata; the caller controls none of them, as long
// as the auth methods behind the configured accessors are honest.

// entity loads the caller's entity. A caller without one (a root token, a
// batch token without identity) and a disabled entity are denied.
func (b *backend) entity(req *logical.Request) (*logical.Entity, error) {
	if req.EntityID == "" {
		return nil, fmt.Errorf("identifying the caller: the token has no entity: %w", sealed.ErrDenied)
	}
	e, err := b.System().EntityInfo(req.EntityID)
	if err != nil {
		return nil, fmt.Errorf("identifying the caller: %w: %w", sealed.ErrUnavailable, err)
	}
	if e == nil || e.Disabled || e.ID != req.EntityID {
		return nil, fmt.Errorf("identifying the caller: no such entity, or it is disabled: %w", sealed.ErrDenied)
	}
	return e, nil
}

// aliasAt returns the alias of an entity under one auth mount, never simply
// the first: anyone who may link aliases could choose that one.
func aliasAt(e *logical.Entity, accessor string) *logical.Alias {
	if accessor == "" {
		return nil
	}
	for _, a := range e.Aliases {
		if a.MountAccessor == accessor {
			return a
		}
	}
	return nil
}

// requester returns who makes a request, for decisions and votes. Agents are
// never requesters: an entity with an agent's SPIFFE ID is denied. Person is
// empty when it is not known for certain; such a caller may not approve.
func (b *backend) requester(ctx context.Context, req *logical.Request) (sealed.Requester, error) {
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return sealed.Requester{}, err
	}
	e, groups, err := b.entityAndGroups(req)
	if err != nil {
		return sealed.Requester{}, err
	}
	if a := aliasAt(e, cfg.AgentAccessor); a != nil {
		if _, _, _, err := sealed.ParseAgentSPIFFEID(a.Name); err == nil {
			return sealed.Requester{}, fmt.Errorf("identifying the caller: an agent is not a requester: %w", sealed.ErrDenied)
		}
	}
	r := sealed.Requester{EntityID: e.ID, Name: e.Name, Groups: []string{}, Claims: claims(e, cfg.ClaimsAccessor), Person: person(e, cfg)}
	for _, g := range groups {
		r.Groups = append(r.Groups, g.Name)
	}
	slices.Sort(r.Groups)
	r.Groups = slices.Compact(r.Groups)
	return r, nil
}

// entityAndGroups asks Vault for both at once: each is a call back into it.
func (b *backend) entityAndGroups(req *logical.Request) (e *logical.Entity, groups []*logical.Group, err error) {
	var groupsErr error
	var asking sync.WaitGroup
	if req.EntityID != "" {
		asking.Go(func() { groups, groupsErr = b.System().GroupsForEntity(req.EntityID) })
	}
	e, err = b.entity(req)
	asking.Wait()
	if err != nil {
		return nil, nil, err
	}
	if groupsErr != nil {
		return nil, nil, fmt.Errorf("identifying the caller: %w: %w", sealed.ErrUnavailable, groupsErr)
	}
	return e, groups, nil
}

// claims unites the metadata that the named auth mounts put on the entity's
// aliases. A claim on which two of them disagree is dropped.
func claims(e *logical.Entity, accessors []string) map[string]string {
	out, disputed := map[string]string{}, map[string]bool{}
	for _, accessor := range accessors {
		a := aliasAt(e, accessor)
		if a == nil {
			continue
		}
		for k, v := range a.Metadata {
			if got, ok := out[k]; ok && got != v {
				disputed[k] = true
			}
			out[k] = v
		}
	}
	for k := range disputed {
		delete(out, k)
	}
	return out
}

// person returns the human behind an entity (R24): one human with two
// entities is one person. Without a configured claim the entity is the person.
// With one, all places that name it must agree; missing or disputed is "".
func person(e *logical.Entity, cfg *engineConfig) string {
	if cfg.PersonClaim == "" {
		return e.ID
	}
	var found []string
	add := func(m map[string]string) {
		if v := m[cfg.PersonClaim]; v != "" {
			found = append(found, v)
		}
	}
	for _, accessor := range cfg.ClaimsAccessor {
		if a := aliasAt(e, accessor); a != nil {
			add(a.CustomMetadata)
			add(a.Metadata)
		}
	}
	add(e.Metadata)
	slices.Sort(found)
	if found = slices.Compact(found); len(found) != 1 {
		return ""
	}
	return found[0]
}

// agentIdentity returns the SPIFFE ID of the calling agent and its alias: the
// alias under the configured auth mount, whose name must be the SPIFFE ID of
// an agent of this mount's trust domain and tenant. Anything else is denied,
// always with the same answer.
func (b *backend) agentIdentity(ctx context.Context, req *logical.Request) (spiffeID string, alias *logical.Alias, err error) {
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return "", nil, err
	}
	e, err := b.entity(req)
	if err != nil {
		return "", nil, err
	}
	denied := fmt.Errorf("identifying the agent: not an agent of this tenant: %w", sealed.ErrDenied)
	if alias = aliasAt(e, cfg.AgentAccessor); alias == nil {
		return "", nil, denied
	}
	domain, tenant, _, err := sealed.ParseAgentSPIFFEID(alias.Name)
	if err != nil || domain != cfg.TrustDomain || tenant != cfg.Tenant {
		return "", nil, denied
	}
	return alias.Name, alias, nil
}

// knownAgent is agentIdentity as of at most lookupGood ago, for the calls of a
// run after its claim: a run makes them close together, and the runs of one agent
// share an entity. Vault itself refuses a token whose entity is disabled or gone
// before the engine hears of it, and a run stays bound to the token that claimed
// it; what may be old is the alias, which only an administrator of identities
// can change. A no is never remembered.
func (b *backend) knownAgent(ctx context.Context, req *logical.Request) (spiffeID string, err error) {
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return "", err
	}
	if id, ok := b.mem.agent(req.EntityID, cfg, b.now()); ok {
		return id, nil
	}
	return b.learnAgent(ctx, req)
}

// learnAgent asks for the SPIFFE ID anew, for knownAgent too.
func (b *backend) learnAgent(ctx context.Context, req *logical.Request) (spiffeID string, err error) {
	asked := b.now()
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return "", err
	}
	spiffeID, _, err = b.agentIdentity(ctx, req)
	if err == nil {
		b.mem.knowAgent(req.EntityID, cfg, asked, spiffeID)
	}
	return spiffeID, err
}

// actor names the caller in the log: its entity, or for a token without one
// its display name. It decides nothing.
func (b *backend) actor(req *logical.Request) string {
	if req.EntityID != "" {
		return req.EntityID
	}
	return sealed.CleanReason("token " + req.DisplayName)
}
