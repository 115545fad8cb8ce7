package sealed

import (
	"encoding/json"
	"fmt"
	"time"
)

// The domains of a proposal and of what it would replace.
const (
	DomainProposal     Domain = "sealed.proposal.v1"
	DomainProposalBase Domain = "sealed.proposal-base.v1"
)

// A ProposalID is a ULID.
type ProposalID string

// Kinds of proposal: whoever may confirm one is said per kind.
const (
	ProposalProfile   = "profile"    // a version of a profile, or its end
	ProposalSource    = "source"     // the configuration of a source, never its login
	ProposalPolicyKey = "policy-key" // the keys that sign policies
	ProposalTrust     = "trust"      // trust bundle, its endpoint and that one's CA
	ProposalConfig    = "config"     // of the mount
	ProposalOverlay   = "overlay"    // the end of the policy's overlay
)

// ProposalKinds lists the kinds of proposal.
var ProposalKinds = []string{ProposalProfile, ProposalSource, ProposalPolicyKey, ProposalTrust, ProposalConfig, ProposalOverlay}

// A ProposalObject is exactly what a second person is shown and confirms. Its
// digest (DomainProposal over the stored bytes) is what a confirmation names.
// It holds no credential.
type ProposalObject struct {
	V      int        `json:"v"`
	ID     ProposalID `json:"id"`
	Tenant Name       `json:"tenant"`
	Kind   string     `json:"kind"`
	Target string     `json:"target,omitempty"` // level/name of a profile, name of a source
	// Version is that of the profile or set of keys which is replaced; 0: there is none.
	Version int `json:"version,omitempty"`
	// Base is the digest (DomainProposalBase) of the text that is replaced, which
	// is empty if there is nothing. With another text the proposal does not apply.
	Base    Digest `json:"base"`
	Delete  bool   `json:"delete,omitempty"` // the target ends
	Force   bool   `json:"force,omitempty"`  // with Delete: also while runs use it
	Content string `json:"content"`          // the new text, JSON; with Delete empty
	// Widens names the fields of Content that let more happen than before. A
	// name stands for all that lies below it.
	Widens     []string  `json:"widens"`
	Proposer   string    `json:"proposer"` // name
	ProposerID string    `json:"proposer_id"`
	Person     string    `json:"person"` // of the proposer, who may not confirm
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at"`
}

// Marshal returns the object's bytes and digest.
func (o ProposalObject) Marshal() ([]byte, Digest, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, "", fmt.Errorf("encoding proposal: %w", err)
	}
	return b, DigestOf(DomainProposal, b), nil
}

// States of a proposal. One that was confirmed or rejected is not there any more.
const (
	ProposalPending = "pending"
	ProposalExpired = "expired"
	ProposalStale   = "stale" // what it would replace has changed: it can't be confirmed
)

// A ProposalView is what reading a proposal shows.
type ProposalView struct {
	Object json.RawMessage `json:"object"` // the exact bytes of the digest
	Digest Digest          `json:"digest"`
	State  string          `json:"state"`
	// Before is the text that is there now. Unless the proposal is stale, it is
	// the one with the digest Base.
	Before string `json:"before"`
}

// A Proposed is the answer to a change that waits for a second person: nothing
// was changed.
type Proposed struct {
	ID      ProposalID `json:"proposal"`
	Kind    string     `json:"kind"`
	Digest  Digest     `json:"digest"`
	Widens  []string   `json:"widens"`
	Expires time.Time  `json:"expires"`
	// LoginDropped: the login that came with a source was not kept.
	LoginDropped bool `json:"credential_dropped,omitempty"`
}
