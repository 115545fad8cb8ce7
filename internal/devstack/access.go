package devstack

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/vault-plugin/policies"
)

// A user logs in with userpass. Powers come from the ready-made policies, of
// the user or of the user's group.
type user struct {
	name     string
	policies []string
	group    string
}

// users: each is another person, which is what approvals compare.
func users() []user {
	return []user{
		{name: "admin", policies: []string{"sealed-root", "sealed-policy", "sealed-secrets", "sealed-profiles"}},
		{name: "operator", group: "sealed-operators"},
		{name: "approver", group: "sealed-approvers"},
		{name: "approver2", group: "sealed-approvers"},
		{name: "auditor", policies: []string{"sealed-auditor"}},
	}
}

// groupPolicies maps a group to the policy that its members have through it.
func groupPolicies() map[string]string {
	return map[string]string{"sealed-operators": "sealed-operator", "sealed-approvers": "sealed-approver"}
}

// setUpAccess makes audit device, policies, users and groups. Everything may
// be repeated; passwords are made once.
func (b *bringUp) setUpAccess(ctx context.Context) error {
	if b.ready() {
		return nil
	}
	b.cfg.progress("setting up Vault: audit, policies, users", 0, 0)
	for _, step := range []func(context.Context) error{b.enableAudit, b.writePolicies, b.writeUsers} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("setting up Vault: %w", err)
		}
	}
	return nil
}

// enableAudit comes first: what follows is in the audit file.
func (b *bringUp) enableAudit(ctx context.Context) error {
	have, err := b.root.Read(ctx, "sys/audit", nil)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		return err
	}
	if _, ok := have["file/"]; ok {
		return nil
	}
	_, err = b.root.Write(ctx, "sys/audit/file", map[string]any{
		"type": "file", "options": map[string]string{"file_path": b.l.vaultAudit()},
	})
	return err
}

// writePolicies installs the ready-made policies for this mount.
func (b *bringUp) writePolicies(ctx context.Context) error {
	names, err := fs.Glob(policies.Policies, "*.hcl")
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := fs.ReadFile(policies.Policies, name)
		if err != nil {
			return err
		}
		_, err = b.root.Write(ctx, "sys/policies/acl/"+strings.TrimSuffix(path.Base(name), ".hcl"), map[string]any{
			"policy": strings.ReplaceAll(string(text), "{{mount}}", Mount),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// enableAuth makes an auth mount unless it is there, and returns its accessor.
func (b *bringUp) enableAuth(ctx context.Context, mount, kind string) (string, error) {
	for range 2 {
		have, err := b.root.Read(ctx, "sys/auth", nil)
		if err != nil {
			return "", err
		}
		if m, ok := have[mount+"/"].(map[string]any); ok {
			accessor, _ := m["accessor"].(string)
			return accessor, nil
		}
		if _, err := b.root.Write(ctx, "sys/auth/"+mount, map[string]any{"type": kind}); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("enabling auth/%s: it does not appear: %w", mount, sealed.ErrUnavailable)
}

func (b *bringUp) writeUsers(ctx context.Context) error {
	accessor, err := b.enableAuth(ctx, "userpass", "userpass")
	if err != nil {
		return err
	}
	passwords, err := makePasswords(b.l)
	if err != nil {
		return err
	}
	members := map[string][]string{}
	for _, u := range users() {
		id, err := b.writeUser(ctx, u, string(passwords[u.name]), accessor)
		if err != nil {
			return err
		}
		if u.group != "" {
			members[u.group] = append(members[u.group], id)
		}
	}
	for _, group := range slices.Sorted(maps.Keys(members)) {
		_, err := b.root.Write(ctx, "identity/group/name/"+group, map[string]any{
			"type": "internal", "member_entity_ids": members[group], "policies": []string{groupPolicies()[group]},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// writeUser makes the entity before the first login, which would otherwise
// make one without a person.
func (b *bringUp) writeUser(ctx context.Context, u user, password, accessor string) (entity string, err error) {
	_, err = b.root.Write(ctx, "auth/userpass/users/"+u.name, map[string]any{
		"password": password, "token_policies": u.policies, "token_ttl": "1h", "token_max_ttl": "24h", "token_no_default_policy": false,
	})
	if err != nil {
		return "", err
	}
	_, err = b.root.Write(ctx, "identity/entity/name/"+u.name, map[string]any{
		"metadata": map[string]string{personClaim: u.name + "@" + string(b.cfg.Tenant) + ".example"},
	})
	if err != nil {
		return "", err
	}
	e, err := b.root.Read(ctx, "identity/entity/name/"+u.name, nil)
	if err != nil {
		return "", err
	}
	entity, _ = e["id"].(string)
	_, err = b.root.Write(ctx, "identity/entity-alias", map[string]any{
		"name": u.name, "canonical_id": entity, "mount_accessor": accessor,
	})
	return entity, err
}

// personClaim is the metadata key that names the human behind an entity.
const personClaim = "person"

// passwords is private/users.json: password by user.
type passwords map[string]vaultclient.Token

func makePasswords(l layout) (passwords, error) {
	if have, err := readPasswords(l); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return have, err
	}
	doc, out := map[string]string{}, passwords{}
	for _, u := range users() {
		raw := make([]byte, 24)
		if _, err := rand.Read(raw); err != nil {
			return nil, fmt.Errorf("making a password: %w", err)
		}
		doc[u.name] = base64.RawURLEncoding.EncodeToString(raw)
		out[u.name] = vaultclient.Token(doc[u.name])
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding passwords: %w", err)
	}
	return out, writeFile(l.private("users.json"), text, 0o600)
}

func readPasswords(l layout) (passwords, error) {
	data, err := os.ReadFile(l.private("users.json"))
	if err != nil {
		return nil, fmt.Errorf("reading passwords: %w", err)
	}
	var p passwords
	return p, sealed.Decode(data, 64<<10, &p)
}

// Login logs a user in: admin, operator, approver, approver2 or auditor. It
// reads the password from the private directory, so it works for the user who
// started the stack. An unknown user is sealed.ErrNotFound.
func (s *Stack) Login(ctx context.Context, name string) (vaultclient.Login, error) {
	p, err := readPasswords(s.l)
	if err != nil {
		return vaultclient.Login{}, fmt.Errorf("logging in %s: %w", name, err)
	}
	password, ok := p[name]
	if !ok {
		return vaultclient.Login{}, fmt.Errorf("logging in %s: no such user: %w", name, sealed.ErrNotFound)
	}
	c, err := s.client("")
	if err != nil {
		return vaultclient.Login{}, err
	}
	return c.Login(ctx, "auth/userpass/login/"+name, map[string]any{"password": string(password)})
}

// Client logs a user in and returns a client with the token.
func (s *Stack) Client(ctx context.Context, name string) (*vaultclient.Client, error) {
	l, err := s.Login(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.client(l.Token)
}

// Root returns a client with Vault's root token, for tests that play the
// administrator of the machine: read storage, seal, take snapshots.
func (s *Stack) Root() (*vaultclient.Client, error) {
	keys, err := readVaultKeys(s.l)
	if err != nil {
		return nil, err
	}
	return s.client(keys.RootToken)
}

func (s *Stack) client(token vaultclient.Token) (*vaultclient.Client, error) {
	ca, err := os.ReadFile(s.l.ca())
	if err != nil {
		return nil, fmt.Errorf("reading the stack's CA: %w", err)
	}
	return vaultclient.New(s.s.VaultAddr, ca, string(token))
}

// agentAuth makes auth/jwt for agents, with the bundle endpoint as its JWKS,
// and returns its accessor.
func (b *bringUp) agentAuth(ctx context.Context) (string, error) {
	accessor, err := b.enableAuth(ctx, AuthMount, "jwt")
	if err != nil {
		return "", err
	}
	_, err = b.root.Sys(ctx, http.MethodPost, "auth/"+AuthMount+"/config", map[string]any{
		"jwks_url": b.bundleURL(), "jwks_ca_pem": string(b.ca.pem), "default_role": AuthRole,
	})
	if err != nil {
		return "", err
	}
	_, err = b.root.Write(ctx, "auth/"+AuthMount+"/role/"+AuthRole, map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{Audience},
		"bound_claims_type": "glob",
		"bound_claims": map[string]any{
			"sub": "spiffe://" + b.state.TrustDomain + sealed.AgentSPIFFEPath(b.cfg.Tenant, "*"),
		},
		"token_type": "service", "token_period": 120, "token_no_default_policy": true,
		"token_policies": []string{"sealed-agent"}, "clock_skew_leeway": 5,
	})
	return accessor, err
}

func (b *bringUp) bundleURL() string { return "https://" + b.state.BundleAddr + "/" }
