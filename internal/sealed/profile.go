package sealed

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Levels of the cascade, weakest first.
const (
	LevelSystem   = "system"
	LevelWorkflow = "workflow"
	LevelUser     = "user"
)

// Risk grades of a key. The default policy asks a person above low.
const (
	RiskLow      = "low"
	RiskHigh     = "high"
	RiskCritical = "critical"
)

// A Delivery is how the agent gets to use a credential.
type Delivery string

// The deliveries that this version can make, strongest first. With proxy the
// agent never holds the value; with env it does.
const (
	DeliveryProxy Delivery = "proxy"
	DeliveryEnv   Delivery = "env"
)

var deliveryOrder = []Delivery{DeliveryEnv, DeliveryProxy}

// Stronger reports whether d protects the value at least as well as other. An
// unknown delivery is never strong enough.
func (d Delivery) Stronger(other Delivery) bool {
	i, j := slices.Index(deliveryOrder, d), slices.Index(deliveryOrder, other)
	return i >= 0 && j >= 0 && i >= j
}

// GivesValue reports whether the agent comes to hold the value.
func (d Delivery) GivesValue() bool { return d != DeliveryProxy }

// Requesters says who may assert a workflow and tags, and use the keys.
type Requesters struct {
	Groups []string          `json:"groups,omitempty"` // any one of them
	Claims map[string]string `json:"claims,omitempty"` // all of them, proven by the auth method
}

// Empty reports whether nobody is named.
func (r Requesters) Empty() bool { return len(r.Groups) == 0 && len(r.Claims) == 0 }

// Match reports whether a requester is covered: one of the groups (if any are
// named) and every claim. The zero Requesters covers nobody.
func (r Requesters) Match(groups []string, claims map[string]string) bool {
	if r.Empty() {
		return false
	}
	if len(r.Groups) > 0 && !slices.ContainsFunc(r.Groups, func(g string) bool { return slices.Contains(groups, g) }) {
		return false
	}
	for k, v := range r.Claims {
		if got, ok := claims[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// A Profile is a set of named keys at one level of the cascade.
type Profile struct {
	Name             ProfileName         `json:"name"`
	Level            string              `json:"level"`
	Version          int                 `json:"version"` // set by the engine; on write the version expected (0: must not exist)
	Owner            string              `json:"owner,omitempty"`
	Description      string              `json:"description,omitempty"`
	Tags             []string            `json:"tags,omitempty"`
	Requesters       Requesters          `json:"requesters"`
	AllowedWorkflows []string            `json:"allowed_workflows,omitempty"` // empty: none; "*": any
	Env              map[string]string   `json:"env,omitempty"`               // knobs, not secret
	Keys             map[KeyName]KeySpec `json:"keys"`
}

// HigherRisk is the graver of two grades. An empty one says nothing; an unknown
// one is the gravest, so that a policy gets to see and refuse it.
func HigherRisk(a, b string) string {
	grades := []string{"", RiskLow, RiskHigh, RiskCritical}
	i, j := slices.Index(grades, a), slices.Index(grades, b)
	if i < 0 || (j >= 0 && i >= j) {
		return a
	}
	return b
}

// A KeySpec says where a value comes from, who may use it, and how. Without a
// source it only narrows the key of another level: empty fields leave things
// as they are. As a tombstone it removes the key, and all else is empty.
type KeySpec struct {
	Tombstone  bool       `json:"tombstone,omitempty"`
	Source     Name       `json:"source"`
	Ref        KeyRef     `json:"ref"`
	Agents     []string   `json:"agents,omitempty"` // empty: nobody
	Workflows  []string   `json:"workflows,omitempty"`
	Tags       []string   `json:"tags,omitempty"`
	Isolations []string   `json:"isolations,omitempty"` // of the sandboxes that may use it; empty: any
	Requesters Requesters `json:"requesters"`           // zero: those of the profile
	Risk       string     `json:"risk"`
	Delivery   Delivery   `json:"delivery"` // the weakest this key may use; empty: proxy
	Bindings   []Binding  `json:"bindings,omitempty"`
	TTL        Duration   `json:"ttl"`
	MaxTTL     Duration   `json:"max_ttl"`
	AllowWeak  bool       `json:"allow_weak,omitempty"` // accept a value too short to redact safely
}

// A KeyRef locates a value within a source.
type KeyRef struct {
	Path    string        `json:"path"`
	Field   string        `json:"field,omitempty"`
	Version SourceVersion `json:"version,omitempty"` // none: the newest
}

// MaxProfile bounds a profile document, in bytes.
const MaxProfile = 256 << 10

// ParseProfile decodes and validates a profile and fills in defaults.
func ParseProfile(data []byte) (Profile, error) {
	var p Profile
	if err := Decode(data, MaxProfile, &p); err != nil {
		return Profile{}, fmt.Errorf("parsing profile: %w", err)
	}
	if err := p.normalize(); err != nil {
		return Profile{}, fmt.Errorf("parsing profile: %w", err)
	}
	return p, nil
}

func (p *Profile) normalize() error {
	if _, err := ParseProfileName(string(p.Name)); err != nil {
		return err
	}
	if !slices.Contains([]string{LevelSystem, LevelWorkflow, LevelUser}, p.Level) {
		return fieldErr("level", "wants system, workflow or user")
	}
	if err := validateNames("allowed_workflows", p.AllowedWorkflows, true); err != nil {
		return err
	}
	if err := validateNames("tags", p.Tags, false); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Env)) {
		if err := validateKnob(name, p.Env[name]); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Keys)) {
		if _, err := ParseKeyName(string(name)); err != nil {
			return fieldErr("keys."+string(name), "a key name is [A-Z][A-Z0-9_]{0,63}")
		}
		if reserved(string(name)) {
			return fieldErr("keys."+string(name), "the name of a loader, proxy or CA variable")
		}
		if _, ok := p.Env[string(name)]; ok {
			return fieldErr("keys."+string(name), "is also a knob in env")
		}
		spec := p.Keys[name]
		if err := spec.normalize("keys." + string(name)); err != nil {
			return err
		}
		p.Keys[name] = spec
	}
	return nil
}

func (k *KeySpec) normalize(field string) error {
	if k.Tombstone {
		if !reflect.DeepEqual(*k, KeySpec{Tombstone: true}) {
			return fieldErr(field+".tombstone", "a tombstone has no other field")
		}
		return nil
	}
	if err := k.validateLists(field); err != nil {
		return err
	}
	for i := range k.Bindings {
		if err := k.Bindings[i].normalize(fmt.Sprintf("%s.bindings[%d]", field, i)); err != nil {
			return err
		}
	}
	if k.Source == "" {
		return k.validateNarrowing(field)
	}
	return k.normalizeDefinition(field)
}

// normalizeDefinition is for a key that says where its value comes from.
func (k *KeySpec) normalizeDefinition(field string) error {
	if _, err := ParseName(field+".source", string(k.Source)); err != nil {
		return err
	}
	if k.Ref.Path == "" || strings.Contains(k.Ref.Path, "..") || strings.HasPrefix(k.Ref.Path, "/") {
		return fieldErr(field+".ref", "wants a relative path without ..")
	}
	if err := k.Ref.Version.Validate(field + ".ref.version"); err != nil {
		return err
	}
	if k.Risk == "" {
		return fieldErr(field+".risk", "wants low, high or critical")
	}
	if k.Delivery == "" {
		k.Delivery = DeliveryProxy
	}
	if k.Delivery == DeliveryProxy && len(k.Bindings) == 0 {
		return fieldErr(field+".bindings", "delivery proxy needs at least one binding")
	}
	return k.normalizeTTL(field)
}

// validateNarrowing is for a key without a source.
func (k *KeySpec) validateNarrowing(field string) error {
	if k.Ref != (KeyRef{}) || k.AllowWeak {
		return fieldErr(field+".source", "ref and allow_weak want a source")
	}
	if reflect.DeepEqual(*k, KeySpec{}) {
		return fieldErr(field, "wants a source, something to narrow, or tombstone")
	}
	if k.TTL < 0 || k.MaxTTL < 0 || (k.TTL > 0 && k.TTL.Std() < 10*time.Second) || (k.MaxTTL > 0 && k.MaxTTL.Std() < 10*time.Second) {
		return fieldErr(field+".ttl", "wants at least 10s")
	}
	return nil
}

// validateLists checks what definitions and narrowings have in common.
func (k *KeySpec) validateLists(field string) error {
	if err := validateNames(field+".agents", k.Agents, false); err != nil {
		return err
	}
	if err := validateNames(field+".workflows", k.Workflows, true); err != nil {
		return err
	}
	if err := validateNames(field+".tags", k.Tags, false); err != nil {
		return err
	}
	for _, i := range k.Isolations {
		if i != IsolationOwnUID && i != IsolationSameUID {
			return fieldErr(field+".isolations", "wants own_uid or same_uid")
		}
	}
	if !slices.Contains([]string{"", RiskLow, RiskHigh, RiskCritical}, k.Risk) {
		return fieldErr(field+".risk", "wants low, high or critical")
	}
	if k.Delivery != "" && !slices.Contains(deliveryOrder, k.Delivery) {
		return fieldErr(field+".delivery", "wants proxy or env")
	}
	return nil
}

func (k *KeySpec) normalizeTTL(field string) error {
	if k.TTL == 0 {
		k.TTL = Duration(15 * time.Minute)
	}
	if k.MaxTTL == 0 {
		k.MaxTTL = max(k.TTL, Duration(time.Hour))
	}
	if k.TTL.Std() < 10*time.Second || k.MaxTTL < k.TTL {
		return fieldErr(field+".ttl", "wants at least 10s and at most max_ttl")
	}
	return nil
}

// Digest identifies the key specification, for the manifest and the approval.
func (k KeySpec) Digest() Digest {
	b, err := json.Marshal(k)
	if err != nil {
		return ""
	}
	return DigestOf(DomainKeySpec, b)
}

func validateNames(field string, names []string, star bool) error {
	for _, n := range names {
		if star && n == "*" {
			continue
		}
		if _, err := ParseName(field, n); err != nil {
			return err
		}
	}
	return nil
}

// reservedVars are variables that change what is loaded, whom a client trusts
// or where it connects. A profile may set them neither as a knob nor as a key:
// init does.
var reservedVars = []string{
	"PATH", "HOME", "IFS", "ENV", "SHELLOPTS", "PS4", "PROMPT_COMMAND", "GODEBUG", "GOTRACEBACK", "GLIBC_TUNABLES", "GCONV_PATH", "HOSTALIASES", "RES_OPTIONS", "LOCALDOMAIN",
	"NODE_OPTIONS", "NODE_PATH", "NODE_EXTRA_CA_CERTS", "NODE_TLS_REJECT_UNAUTHORIZED", "PYTHONSTARTUP", "PYTHONPATH", "PYTHONHOME", "PYTHONHTTPSVERIFY",
	"PERL5LIB", "PERL5OPT", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS",
	"SSLKEYLOGFILE", "PIP_CERT", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
}

var (
	reservedPrefixes = []string{"LD_", "DYLD_", "SSL_CERT_", "SEALED_", "BASH_"}
	reservedSuffixes = []string{"_PROXY", "_BASE_URL", "_CA_BUNDLE", "_CAINFO"}
	// Knobs are further kept out of these families; there are keys in them
	// (GIT_TOKEN, VAULT_TOKEN).
	knobPrefixes = []string{"SSL_", "GIT_", "VAULT_", "SPIFFE_", "OTEL_", "NPM_CONFIG_"}

	knobRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

func reserved(name string) bool {
	up := strings.ToUpper(name)
	return slices.Contains(reservedVars, up) || hasPrefixAny(up, reservedPrefixes...) ||
		slices.ContainsFunc(reservedSuffixes, func(s string) bool { return strings.HasSuffix(up, s) })
}

func validateKnob(name, value string) error {
	if !knobRE.MatchString(name) {
		return fieldErr("env", "a variable name is [A-Za-z_][A-Za-z0-9_]{0,127}")
	}
	field := "env." + name
	if len(value) > 4096 || strings.ContainsRune(value, 0) {
		return fieldErr(field, "value longer than 4096 bytes or with a NUL")
	}
	if reserved(name) || hasPrefixAny(strings.ToUpper(name), knobPrefixes...) {
		return fieldErr(field, "loader, proxy and CA variables may not be set by a profile")
	}
	return nil
}
