package sealed

import (
	"slices"
	"strings"
	"time"
)

// Kinds of revocation.
const (
	RevokeKey      = "key"      // target: key name; optionally within a profile: team/x#KEY
	RevokeProfile  = "profile"  // target: profile name at any level, keys added later included
	RevokeSource   = "source"   // target: source name
	RevokeIdentity = "identity" // target: SPIFFE ID
	RevokeRun      = "run"      // target: run id
	RevokeTenant   = "tenant"   // target: the tenant's name
)

// A Revocation is a standing no. Soft: nothing new is issued or renewed.
// Hard: what was issued is revoked at the source and every run that holds it
// is ordered to stop.
type Revocation struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`
	Target    string    `json:"target"`
	Hard      bool      `json:"hard"`
	Reason    string    `json:"reason"`
	By        string    `json:"by"`
	Epoch     uint64    `json:"epoch"`
	CreatedAt time.Time `json:"created_at"`
}

// Validate checks kind, target and reason.
func (r Revocation) Validate() error {
	if !slices.Contains([]string{RevokeKey, RevokeProfile, RevokeSource, RevokeIdentity, RevokeRun, RevokeTenant}, r.Kind) {
		return fieldErr("kind", "wants key, profile, source, identity, run or tenant")
	}
	if r.Target == "" || len(r.Target) > 512 {
		return fieldErr("target", "wants 1 to 512 characters")
	}
	if r.Reason == "" || len(r.Reason) > MaxReason {
		return fieldErr("reason", "wants 1 to 512 characters")
	}
	return nil
}

// A Subject is everything a revocation could name about one use of a key.
type Subject struct {
	Tenant   Name
	Run      RunID
	SPIFFEID string
	// Profiles are the one that the run named and those that had a say about
	// the key: revoking any of them covers it.
	Profiles []ProfileName
	Key      KeyName // empty when the run as a whole is meant
	Source   Name
}

// Covers reports whether the revocation applies to a subject.
func (r Revocation) Covers(s Subject) bool {
	switch r.Kind {
	case RevokeTenant:
		return r.Target == string(s.Tenant)
	case RevokeRun:
		return r.Target == string(s.Run)
	case RevokeIdentity:
		return s.SPIFFEID != "" && r.Target == s.SPIFFEID
	case RevokeProfile:
		return r.Target != "" && slices.Contains(s.Profiles, ProfileName(r.Target))
	case RevokeSource:
		return s.Source != "" && r.Target == string(s.Source)
	case RevokeKey:
		profile, key, within := strings.Cut(r.Target, "#")
		if !within {
			return s.Key != "" && r.Target == string(s.Key)
		}
		return s.Key != "" && key == string(s.Key) && slices.Contains(s.Profiles, ProfileName(profile))
	}
	return true // an unknown kind stops everything: fail closed
}
