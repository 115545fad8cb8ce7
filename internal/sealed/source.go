package sealed

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Types of source.
const (
	SourceBuiltin      = "builtin"                   // the engine's own encrypted store
	SourceVaultKV      = "vault-kv"                  // a KV version 2 mount of a Vault
	SourceVaultDynamic = "vault-dynamic"             // a Vault path that returns a lease
	SourceOnePassword  = "1password-connect"         // a vault of a 1Password Connect server
	SourceBitwarden    = "bitwarden-secrets-manager" // an organization of Bitwarden Secrets Manager
	SourceAWS          = "aws-secrets-manager"       // one region of AWS Secrets Manager
	SourceSOPS         = "sops"                      // files encrypted with SOPS, on the engine's host
)

// SourceTypes lists the types of source.
var SourceTypes = []string{SourceBuiltin, SourceVaultKV, SourceVaultDynamic, SourceOnePassword, SourceBitwarden, SourceAWS, SourceSOPS}

// Methods by which a source logs in.
const (
	AuthToken       = "token"        // Vault: the credential is a token
	AuthAppRole     = "approle"      // Vault: the credential is the secret id of the role id Role
	AuthJWT         = "jwt"          // Vault: the credential is a JWT for the role Role
	AuthStatic      = "static"       // AWS: the credential is an access key
	AuthWebIdentity = "web_identity" // AWS: the credential is a JWT for the role with the ARN Role
)

// A SourceAuth says how a source logs in. The zero value is the method token
// for a Vault and static for AWS; other types know one method only.
type SourceAuth struct {
	Method  string `json:"method,omitempty"`
	Mount   string `json:"mount,omitempty"`   // Vault: of the auth method; empty: its default
	Role    string `json:"role,omitempty"`    // see the methods
	Address string `json:"address,omitempty"` // https:// of Bitwarden's identity service, or of AWS STS
}

// A SourceConfig is the readable part of a source. Its credential is written
// apart and never read back; changing any other field drops it.
//
// Mount is, by type: the path of a mount; the name or id of a 1Password vault;
// the id of a Bitwarden organization; a prefix of the names of AWS secrets, or
// empty; a directory below the one the engine allows for SOPS, or empty.
type SourceConfig struct {
	Name          Name       `json:"name"`
	Type          string     `json:"type"`
	Address       string     `json:"address,omitempty"` // https://host:port
	CA            string     `json:"ca,omitempty"`      // PEM; empty: the system's roots
	Mount         string     `json:"mount,omitempty"`
	Namespace     string     `json:"namespace,omitempty"` // Vault
	Region        string     `json:"region,omitempty"`    // AWS
	Auth          SourceAuth `json:"auth,omitzero"`
	HasCredential bool       `json:"has_credential"`
	// Levels are those whose profiles may name the source; empty: system and
	// workflow. With user, anybody who writes a profile of their own may.
	Levels []string `json:"levels,omitempty"`
}

// AllowsLevel reports whether a profile of a level may take values from the source.
func (s SourceConfig) AllowsLevel(level string) bool {
	if len(s.Levels) == 0 {
		return level == LevelSystem || level == LevelWorkflow
	}
	return slices.Contains(s.Levels, level)
}

// Kind is "static" or "dynamic", as policies see it.
func (s SourceConfig) Kind() string {
	if s.Type == SourceVaultDynamic {
		return "dynamic"
	}
	return "static"
}

// Revocable reports whether the source can take back what it gave.
func (s SourceConfig) Revocable() bool { return s.Type == SourceVaultDynamic }

// Renewable reports whether the source can prolong what it gave.
func (s SourceConfig) Renewable() bool { return s.Type == SourceVaultDynamic }

var (
	sourcePathRE   = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$`)
	sourceUUIDRE   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	sourceRegionRE = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$`)
	sourceARNRE    = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]{1,512}$`)
	sourcePrefixRE = regexp.MustCompile(`^[A-Za-z0-9/_+=.@-]{1,256}$`)
)

// Validate checks the fields that its type needs, and refuses the others.
func (s SourceConfig) Validate() error {
	if _, err := ParseName("name", string(s.Name)); err != nil {
		return err
	}
	if err := s.validateForeign(); err != nil {
		return err
	}
	for _, l := range s.Levels {
		if !slices.Contains([]string{LevelSystem, LevelWorkflow, LevelUser}, l) {
			return fieldErr("levels", "wants system, workflow or user")
		}
	}
	switch s.Type {
	case SourceBuiltin:
		if s.Address != "" || s.Mount != "" {
			return fieldErr("address", "the built-in store has none")
		}
		return nil
	case SourceVaultKV, SourceVaultDynamic:
		return s.validateVault()
	case SourceOnePassword:
		if s.Mount == "" || len(s.Mount) > 256 || strings.ContainsFunc(s.Mount, func(r rune) bool { return r < ' ' || r == 0x7f || r == '"' || r == '\\' || r == '/' }) {
			return fieldErr("mount", "wants the name or the id of a vault")
		}
		return validAddress("address", s.Address, false)
	case SourceBitwarden:
		if !sourceUUIDRE.MatchString(s.Mount) {
			return fieldErr("mount", "wants the id of an organization")
		}
		if err := validAddress("auth.address", s.Auth.Address, true); err != nil {
			return err
		}
		return validAddress("address", s.Address, true)
	case SourceAWS:
		return s.validateAWS()
	case SourceSOPS:
		if s.Address != "" {
			return fieldErr("address", "SOPS files are on the engine's host")
		}
		if s.Mount != "" && !sourcePathRE.MatchString(s.Mount) {
			return fieldErr("mount", "wants a relative directory")
		}
		return nil
	}
	return fieldErr("type", "wants %s", strings.Join(SourceTypes, ", "))
}

// validateForeign refuses fields that belong to another type, so that nobody
// believes they do something.
func (s SourceConfig) validateForeign() error {
	vault := s.Type == SourceVaultKV || s.Type == SourceVaultDynamic
	login := vault || s.Type == SourceAWS
	switch {
	case s.Region != "" && s.Type != SourceAWS:
		return fieldErr("region", "only AWS has regions")
	case s.Namespace != "" && !vault:
		return fieldErr("namespace", "only a Vault has namespaces")
	case s.CA != "" && (s.Type == SourceBuiltin || s.Type == SourceSOPS):
		return fieldErr("ca", "this type makes no connection")
	case !login && (s.Auth.Method != "" || s.Auth.Role != ""):
		return fieldErr("auth.method", "this type knows one way to log in")
	case s.Auth.Mount != "" && !vault:
		return fieldErr("auth.mount", "only a Vault has auth mounts")
	case s.Auth.Address != "" && s.Type != SourceAWS && s.Type != SourceBitwarden:
		return fieldErr("auth.address", "this type logs in where it reads")
	}
	return nil
}

func (s SourceConfig) validateVault() error {
	if err := validAddress("address", s.Address, false); err != nil {
		return err
	}
	if !sourcePathRE.MatchString(s.Mount) || len(s.Mount) > 256 {
		return fieldErr("mount", "wants the path of a mount, without slash at either end")
	}
	if s.Namespace != "" && !sourcePathRE.MatchString(s.Namespace) {
		return fieldErr("namespace", "wants the path of a namespace, without slash at either end")
	}
	if s.Auth.Mount != "" && !sourcePathRE.MatchString(s.Auth.Mount) {
		return fieldErr("auth.mount", "wants the path of an auth mount, without slash at either end")
	}
	switch s.Auth.Method {
	case "", AuthToken:
		if s.Auth.Role != "" || s.Auth.Mount != "" {
			return fieldErr("auth.role", "a token has none, and no auth mount")
		}
	case AuthAppRole, AuthJWT:
		if s.Auth.Role == "" || len(s.Auth.Role) > 256 {
			return fieldErr("auth.role", "wants a role id (approle) or the name of a role (jwt)")
		}
	default:
		return fieldErr("auth.method", "wants token, approle or jwt")
	}
	return nil
}

func (s SourceConfig) validateAWS() error {
	if err := validAddress("address", s.Address, false); err != nil {
		return err
	}
	if !sourceRegionRE.MatchString(s.Region) {
		return fieldErr("region", "wants the name of a region")
	}
	if s.Mount != "" && !sourcePrefixRE.MatchString(s.Mount) {
		return fieldErr("mount", "wants a prefix of the names of secrets")
	}
	switch s.Auth.Method {
	case "", AuthStatic:
		if s.Auth.Role != "" || s.Auth.Address != "" {
			return fieldErr("auth.role", "an access key has none, and no address")
		}
	case AuthWebIdentity:
		if !sourceARNRE.MatchString(s.Auth.Role) {
			return fieldErr("auth.role", "wants the ARN of a role")
		}
		return validAddress("auth.address", s.Auth.Address, false)
	default:
		return fieldErr("auth.method", "wants static or web_identity")
	}
	return nil
}

// validAddress accepts https://host:port, with a plain path if that is allowed.
func validAddress(field, address string, path bool) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(address, "#") {
		return fieldErr(field, "wants https://host:port")
	}
	if u.Path != "" && (!path || !sourcePathRE.MatchString(strings.TrimPrefix(u.Path, "/"))) {
		return fieldErr(field, "wants https://host:port and nothing more")
	}
	return nil
}

// A SourceHelper is what the engine's configuration says about the process
// that a type of source lives in.
type SourceHelper struct {
	SHA256 string // of the program, hex
	Root   string // SOPS: the only directory that files are read from
}

// SourceHelped reports whether a type of source lives in a process of its own,
// because what it links is too heavy for the engine.
func SourceHelped(typ string) bool { return typ == SourceAWS || typ == SourceSOPS }
