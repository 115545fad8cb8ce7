package sealed

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// An ApprovalObject is exactly what a person is shown and says yes to. Its
// digest (DomainApproval over the stored bytes) is what a vote names; anything
// that changes voids it.
type ApprovalObject struct {
	V              int         `json:"v"`
	ID             ApprovalID  `json:"id"`
	Tenant         Name        `json:"tenant"`
	Run            RunID       `json:"run"`
	ManifestDigest Digest      `json:"manifest_digest"`
	CommandDigest  Digest      `json:"command_digest"`
	Agent          Name        `json:"agent"`
	Workflow       Name        `json:"workflow,omitempty"`
	Profile        ProfileName `json:"profile"`
	Key            KeyName     `json:"key"`
	SpecDigest     Digest      `json:"spec_digest"`
	Risk           string      `json:"risk"`
	Delivery       Delivery    `json:"delivery"`
	Bindings       []Binding   `json:"bindings,omitempty"`
	TTL            int64       `json:"ttl"` // seconds
	Isolation      string      `json:"isolation"`
	Requester      string      `json:"requester"` // name
	RequesterID    string      `json:"requester_id"`
	Person         string      `json:"person"`           // of the requester, who may not approve
	Reason         string      `json:"reason,omitempty"` // the agent says; cleaned
	Reasons        []Reason    `json:"reasons"`          // why the policy asks
	Quorum         int         `json:"quorum"`
	Groups         []string    `json:"groups"`
	Bundle         BundleRef   `json:"bundle"`
	Overlay        BundleRef   `json:"overlay,omitzero"` // zero: the tenant has none
	CreatedAt      time.Time   `json:"created_at"`
	ExpiresAt      time.Time   `json:"expires_at"`
}

// Marshal returns the object's bytes and digest.
func (o ApprovalObject) Marshal() ([]byte, Digest, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, "", fmt.Errorf("encoding approval: %w", err)
	}
	return b, DigestOf(DomainApproval, b), nil
}

// A Vote is one person's yes or no.
type Vote struct {
	Person   string    `json:"person"`
	EntityID string    `json:"entity_id"`
	Name     string    `json:"name"`
	Groups   []string  `json:"groups,omitempty"`
	Yes      bool      `json:"yes"`
	At       time.Time `json:"at"`
}

// States of an approval.
const (
	ApprovalPending  = "pending"
	ApprovalApproved = "approved" // quorum reached, not used yet
	ApprovalDenied   = "denied"   // one no is enough
	ApprovalConsumed = "consumed" // by exactly one grant
	ApprovalExpired  = "expired"
	ApprovalVoid     = "void" // what it was for has changed or ended
)

// Approved reports whether the votes reach the quorum: distinct persons in
// one of the groups, none of them the requester, and nobody said no. Persons
// are compared without regard to case, as the engine and the policy do: two
// spellings are one person.
func (o ApprovalObject) Approved(votes []Vote) bool {
	var persons []string
	for _, v := range votes {
		if !v.Yes {
			return false
		}
		eligible := v.Person != "" && !strings.EqualFold(v.Person, o.Person) && v.EntityID != o.RequesterID &&
			slices.ContainsFunc(o.Groups, func(g string) bool { return slices.Contains(v.Groups, g) })
		if eligible && !slices.ContainsFunc(persons, func(p string) bool { return strings.EqualFold(p, v.Person) }) {
			persons = append(persons, v.Person)
		}
	}
	return o.Quorum > 0 && len(persons) >= o.Quorum
}

// An ApprovalView is what `approvals` shows.
type ApprovalView struct {
	Object json.RawMessage `json:"object"` // the exact bytes of the digest
	Digest Digest          `json:"digest"`
	State  string          `json:"state"`
	Votes  []Vote          `json:"votes"`
	Grant  GrantID         `json:"grant,omitempty"`
}
