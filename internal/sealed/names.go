package sealed

import (
	"crypto/rand"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// A KeyName names a credential within a profile: [A-Z][A-Z0-9_]{0,63}.
type KeyName string

// A RunID is a ULID in its canonical upper-case form.
type RunID string

// A Name is the name of a tenant, agent, source, workflow or tag:
// [a-z0-9][a-z0-9._-]{0,63}. It is also safe as one path segment.
type Name string

// A ProfileName is one to four Names joined by "/", such as team/release.
type ProfileName string

// A GrantID or ApprovalID is a ULID.
type (
	GrantID    string
	ApprovalID string
)

var (
	keyNameRE = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
	nameRE    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	// SPIFFE-ID §2.1: a trust domain is lower case, without port or user info.
	trustDomainRE = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
)

// ParseKeyName accepts the grammar of KeyName and nothing else: no case
// folding, no trimming, no Unicode normalisation.
func ParseKeyName(s string) (KeyName, error) {
	if !keyNameRE.MatchString(s) {
		return "", fieldErr("key", "a key name is [A-Z][A-Z0-9_]{0,63}")
	}
	return KeyName(s), nil
}

// ParseName accepts the grammar of Name; what says which field it is for.
func ParseName(what, s string) (Name, error) {
	if !nameRE.MatchString(s) || strings.Contains(s, "..") {
		return "", fieldErr(what, "a name is [a-z0-9][a-z0-9._-]{0,63} without ..")
	}
	return Name(s), nil
}

// ParseProfileName accepts one to four names joined by "/".
func ParseProfileName(s string) (ProfileName, error) {
	parts := strings.Split(s, "/")
	if len(parts) > 4 {
		return "", fieldErr("profile", "at most four segments")
	}
	for _, p := range parts {
		if _, err := ParseName("profile", p); err != nil {
			return "", err
		}
	}
	return ProfileName(s), nil
}

// ParseRunID accepts a canonical ULID.
func ParseRunID(s string) (RunID, error) {
	id, err := ulid.ParseStrict(s)
	if err != nil || id.String() != s {
		return "", fieldErr("run", "a run id is a ULID")
	}
	return RunID(s), nil
}

// NewULID returns a fresh ULID; rnd nil means crypto/rand.
func NewULID(now time.Time, rnd io.Reader) (string, error) {
	if rnd == nil {
		rnd = rand.Reader
	}
	id, err := ulid.New(ulid.Timestamp(now), rnd)
	if err != nil {
		return "", err
	}
	return id.String(), nil
}

// AgentSPIFFEPath is the path of the SPIFFE ID of an agent of a tenant, as in
// spiffe://<trust domain>/sealed/tenant/<tenant>/agent/<agent>.
func AgentSPIFFEPath(tenant, agent Name) string {
	return "/sealed/tenant/" + string(tenant) + "/agent/" + string(agent)
}

// ParseAgentSPIFFEID splits a SPIFFE ID of an agent, segment by segment (no
// prefix comparison), and fails for any other ID.
func ParseAgentSPIFFEID(id string) (trustDomain string, tenant, agent Name, err error) {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 6 || parts[1] != "sealed" || parts[2] != "tenant" || parts[4] != "agent" || !trustDomainRE.MatchString(parts[0]) {
		return "", "", "", fieldErr("spiffe_id", "not the SPIFFE ID of an agent")
	}
	if tenant, err = ParseName("tenant", parts[3]); err != nil {
		return "", "", "", err
	}
	if agent, err = ParseName("agent", parts[5]); err != nil {
		return "", "", "", err
	}
	return parts[0], tenant, agent, nil
}

// ReservedTrustDomain belongs to the embedded authority of one machine. A
// production mount refuses it.
const ReservedTrustDomain = "embedded.sealed.invalid"
