// Package install puts Sealed's engine into a Vault and a SPIRE that exist, keeps
// it as it should be, and takes it out again.
//
// # Idea
//
// A job is a list of steps. A step knows what it wants, looks at what is there,
// and changes the difference: plug-in in the catalog, mount, policies, auth/jwt and
// its role, the engine's configuration, SPIRE's entries, the trust file. Nothing is
// remembered between two calls, so a job that was interrupted is continued by
// running it again, and a job that is done has nothing to do. Every step is looked
// at again after it was applied: what does not read back as wanted is an error.
//
// # Guarantee
//
// Plan changes nothing. What belongs to others is never replaced: a mount of
// another kind, an auth mount with another configuration, a mount of another tenant
// stop the job (sealed.ErrConflict). Uninstall removes what carries the name or the
// mark of this package and the mount it was asked for, and nothing else; leases are
// revoked, and credentials that can be taken back are dead at their source, before the mount goes. No credential
// and no private key passes through this package.
//
// # What it does not guarantee
//
// The steps are not one transaction: between the first and the last the
// installation is incomplete, and denies. The plug-in's file can't be seen over
// Vault's API; its SHA-256 can, and Vault starts nothing else. Whoever may do what
// Privileges lists can replace engine and policies: such a token is above any wall
// of the engine. Whether the hosts run what the entries name is doctor's question.
//
// # Marks
//
// An ACL policy of the mount <mount> is called <mount, / as .>-<role>, so
// tenants.beta.sealed-agent, or sealed-agent for the mount sealed. Its first line
// is
//
//	# Sealed, mount <mount>. Written by sealedctl: the next install undoes edits.
//
// A policy with such a name is replaced whatever it says; only one with the mark is
// removed. The role of auth/jwt has the name of the agent's policy. An auth mount that is
// ours has the description "Sealed: agents log in with a JWT-SVID". Entries of SPIRE
// are ours by their SPIFFE ID, /sealed/tenant/<tenant>/agent/<agent>, and by having
// selectors of the type sealed alone.
package install

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// PluginName is the engine's name in Vault's catalog, whatever its file is called.
const PluginName = "vault-plugin-secrets-sealed"

// A Target says what is wanted. Mount, Tenant, TrustDomain, AuthMount and Audience
// are required for Install; what is empty of the rest has no step.
type Target struct {
	Mount       string      // of the engine, such as sealed or tenants/beta/sealed
	Tenant      sealed.Name // of the mount; never changes
	TrustDomain string      // of its agents; never changes
	Plugin      Plugin
	AuthMount   string // of auth/jwt for agents; tenants of one trust domain may share it
	Audience    string // that JWT-SVIDs have to name
	// BundleEndpoint is SPIRE's bundle endpoint (federation.bundle_endpoint, profile
	// https_web), an https URL that Vault reaches; BundleCA are the only roots for
	// it, in PEM.
	BundleEndpoint, BundleCA string
	// Bundle is the trust bundle as the endpoint serves it. Empty: the engine
	// fetches it by itself, within a minute.
	Bundle string
	// PersonClaim is the metadata key that names the human behind an entity.
	// Empty leaves what is configured.
	PersonClaim string
	// AllowEmbedded makes a mount for the embedded authority of one machine. It
	// counts at the first configuration only.
	AllowEmbedded bool
	// OnePerson leaves a mount that is configured now without the second person
	// whom a change that widens waits for. It never switches that off.
	OnePerson bool
	// PolicyKeys are public keys (PEM) by id that may sign policies, written if
	// there are none yet; PolicyBundle is a signed bundle, uploaded if none is in force.
	PolicyKeys   map[string]string
	PolicyBundle []byte
	// Builtin adds the engine's own store as the source "builtin".
	Builtin   bool
	TrustFile *TrustFile
	SPIRE     *SPIRE
}

// A Plugin is a build of the engine.
type Plugin struct {
	// Version is what the build answers to -version, such as v0.1.0.
	Version string
	// SHA256 of its file, 64 lower-case hex digits. Empty: the version has to be in
	// the catalog already.
	SHA256 string
	// Command is the name of its file in Vault's plugin_directory.
	Command string
}

var (
	segmentRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$`)
	sha256RE  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	commandRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	domainRE  = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
)

// ParseMount accepts a path of up to five segments of lower-case letters, digits,
// - and _, without slashes at its ends, that is not one of Vault's own.
func ParseMount(s string) (string, error) { return parseMount("mount", s) }

func parseMount(field, s string) (string, error) {
	parts := strings.Split(s, "/")
	if len(parts) > 5 || slices.ContainsFunc(parts, func(p string) bool { return !segmentRE.MatchString(p) }) {
		return "", &sealed.FieldError{Field: field, Reason: "wants up to five segments of lower-case letters, digits, - and _"}
	}
	if slices.Contains([]string{"sys", "auth", "identity", "cubbyhole"}, parts[0]) {
		return "", &sealed.FieldError{Field: field, Reason: "is a path of Vault's own"}
	}
	return s, nil
}

// PolicyName is the name of a ready-made policy for a mount; role is the name of
// its file without .hcl, such as sealed-agent. Different mounts have different names.
func PolicyName(mount, role string) string {
	return strings.ReplaceAll(mount, "/", ".") + "-" + strings.TrimPrefix(role, "sealed-")
}

func (p Plugin) validate() error {
	switch {
	case !semver.IsValid(p.Version) || semver.Canonical(p.Version) != p.Version:
		return &sealed.FieldError{Field: "plugin.version", Reason: "wants a semantic version such as v0.1.0"}
	case p.SHA256 != "" && !sha256RE.MatchString(p.SHA256):
		return &sealed.FieldError{Field: "plugin.sha256", Reason: "wants 64 lower-case hex digits"}
	case p.SHA256 != "" && !commandRE.MatchString(p.Command):
		return &sealed.FieldError{Field: "plugin.command", Reason: "wants the name of a file, without a directory"}
	}
	return nil
}

func (t Target) validate() error {
	if _, err := parseMount("mount", t.Mount); err != nil {
		return err
	}
	if _, err := parseMount("auth_mount", t.AuthMount); err != nil {
		return err
	}
	if _, err := sealed.ParseName("tenant", string(t.Tenant)); err != nil {
		return err
	}
	if err := t.Plugin.validate(); err != nil {
		return err
	}
	u, err := url.Parse(t.BundleEndpoint)
	switch {
	case !domainRE.MatchString(t.TrustDomain):
		return &sealed.FieldError{Field: "trust_domain", Reason: "wants the name of a SPIFFE trust domain"}
	case t.Audience == "":
		return &sealed.FieldError{Field: "audience", Reason: "is required"}
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil:
		return &sealed.FieldError{Field: "bundle_endpoint", Reason: "wants an https URL without credentials"}
	case t.BundleCA == "":
		return &sealed.FieldError{Field: "bundle_ca", Reason: "wants the PEM certificates to trust the endpoint by"}
	}
	if t.SPIRE != nil {
		if err := t.SPIRE.validate(); err != nil {
			return err
		}
	}
	if t.TrustFile != nil {
		return t.TrustFile.validate()
	}
	return nil
}

// target is a Target with the client that reaches its Vault.
type target struct {
	Target
	c *vaultclient.Client
}

func (t target) engine() *vaultclient.Engine { return t.c.Engine(t.Mount) }

// Install returns the job that makes everything of t, or mends it.
func Install(c *vaultclient.Client, t Target) (*Job, error) {
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("planning installation: %w", err)
	}
	x := target{t, c}
	steps := []step{x.auditDevice(), x.plugin(), x.mount(), x.running()}
	steps = append(steps, policySteps(c, t.Mount)...)
	steps = append(steps, x.authMount(), x.authConfig(), x.authRole(), x.config(), x.trustBundle())
	if len(t.PolicyKeys) > 0 {
		steps = append(steps, x.policyKeys())
	}
	if len(t.PolicyBundle) > 0 {
		steps = append(steps, x.policyBundle())
	}
	if t.Builtin {
		steps = append(steps, x.builtin())
	}
	if !t.OnePerson {
		steps = append(steps, x.secondPerson())
	}
	if t.SPIRE != nil && t.SPIRE.Socket != "" {
		steps = append(steps, x.entries())
	}
	if t.TrustFile != nil {
		steps = append(steps, x.trustFile())
	}
	return &Job{steps: steps}, nil
}

// Upgrade returns the job that brings a mount to another build of the plug-in, and
// its policies to those of this program. Only Mount and Plugin of t count. Leases
// live on: they and all state are in Vault's storage. An older version that is
// still in the catalog and in the plug-in directory is gone back to in the same way.
func Upgrade(c *vaultclient.Client, t Target) (*Job, error) {
	if _, err := parseMount("mount", t.Mount); err != nil {
		return nil, fmt.Errorf("planning upgrade: %w", err)
	}
	if err := t.Plugin.validate(); err != nil {
		return nil, fmt.Errorf("planning upgrade: %w", err)
	}
	x := target{t, c}
	return &Job{steps: append([]step{x.mounted(), x.plugin(), x.mount(), x.running(), x.answers()}, policySteps(c, t.Mount)...)}, nil
}
