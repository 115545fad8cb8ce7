package sealed

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Modes of a run.
const (
	ModeBare      = "bare"      // no sandbox, no identity, no keys
	ModeSandboxed = "sandboxed" // sandbox, no identity, no keys
	ModeIdentity  = "identity"  // sandbox and attested identity, no keys
	ModeJIT       = "jit"       // sandbox, identity, keys just in time
)

// Network modes of a sandbox. There is no route in any of them; the way out
// is init's proxy.
const (
	NetworkNone      = "none"      // bound hosts only
	NetworkAllowlist = "allowlist" // bound hosts and listed ones
	NetworkFull      = "full"      // any public address
)

// Isolation and assurance grades.
const (
	IsolationOwnUID  = "own_uid"
	IsolationSameUID = "same_uid"

	AssuranceAttested = "attested"
	AssuranceLauncher = "launcher"

	BackendLocal = "local"
)

// A SandboxSpec is what the launcher promises and init measures.
type SandboxSpec struct {
	Backend     string   `json:"backend"`
	Isolation   string   `json:"isolation"`
	Network     string   `json:"network"`
	Allow       []string `json:"allow,omitempty"` // hosts for NetworkAllowlist
	Interactive bool     `json:"interactive"`
	WallTime    Duration `json:"wall_time"` // 0: one hour
}

// An EnqueueRequest asks for a run. It carries digests of command and input,
// never the text: nobody can redact yet.
type EnqueueRequest struct {
	IdempotencyKey  string      `json:"idempotency_key"`
	Agent           Name        `json:"agent"`
	Mode            string      `json:"mode"`
	Profile         ProfileName `json:"profile,omitempty"`
	Workflow        Name        `json:"workflow,omitempty"`
	Tags            []Name      `json:"tags,omitempty"`
	CommandDigest   Digest      `json:"command_digest"`
	InputDigest     Digest      `json:"input_digest,omitempty"`
	WorkspaceDigest Digest      `json:"workspace_digest,omitempty"`
	Sandbox         SandboxSpec `json:"sandbox"`
}

// ParseEnqueueRequest decodes and validates an enqueue request.
func ParseEnqueueRequest(data []byte) (EnqueueRequest, error) {
	var r EnqueueRequest
	if err := Decode(data, 64<<10, &r); err != nil {
		return r, fmt.Errorf("parsing run: %w", err)
	}
	if err := r.validate(); err != nil {
		return r, fmt.Errorf("parsing run: %w", err)
	}
	return r, nil
}

func (r *EnqueueRequest) validate() error {
	if len(r.IdempotencyKey) < 16 || len(r.IdempotencyKey) > 64 {
		return fieldErr("idempotency_key", "wants 16 to 64 characters")
	}
	if _, err := ParseName("agent", string(r.Agent)); err != nil {
		return err
	}
	if !slices.Contains([]string{ModeBare, ModeSandboxed, ModeIdentity, ModeJIT}, r.Mode) {
		return fieldErr("mode", "wants bare, sandboxed, identity or jit")
	}
	if r.Profile != "" {
		if _, err := ParseProfileName(string(r.Profile)); err != nil {
			return err
		}
	}
	if r.Workflow != "" {
		if _, err := ParseName("workflow", string(r.Workflow)); err != nil {
			return err
		}
	}
	for _, t := range r.Tags {
		if _, err := ParseName("tags", string(t)); err != nil {
			return err
		}
	}
	if err := r.CommandDigest.Validate("command_digest"); err != nil {
		return err
	}
	for field, d := range map[string]Digest{"input_digest": r.InputDigest, "workspace_digest": r.WorkspaceDigest} {
		if d != "" {
			if err := d.Validate(field); err != nil {
				return err
			}
		}
	}
	return r.Sandbox.validate()
}

func (s *SandboxSpec) validate() error {
	if s.Backend != BackendLocal {
		return fieldErr("sandbox.backend", "wants local")
	}
	if s.Isolation != IsolationOwnUID && s.Isolation != IsolationSameUID {
		return fieldErr("sandbox.isolation", "wants own_uid or same_uid")
	}
	if !slices.Contains([]string{NetworkNone, NetworkAllowlist, NetworkFull}, s.Network) {
		return fieldErr("sandbox.network", "wants none, allowlist or full")
	}
	if s.Network != NetworkAllowlist && len(s.Allow) > 0 {
		return fieldErr("sandbox.allow", "only with network allowlist")
	}
	for _, h := range s.Allow {
		if err := ValidateHost(strings.TrimPrefix(h, "*.")); err != nil {
			return fieldErr("sandbox.allow", "wants DNS names")
		}
	}
	if s.WallTime == 0 {
		s.WallTime = Duration(time.Hour)
	}
	if s.WallTime.Std() > 24*time.Hour {
		return fieldErr("sandbox.wall_time", "at most 24h")
	}
	return nil
}

// A Manifest is everything fixed at enqueue. Its digest, in DomainManifest
// over the stored bytes, names the run's terms in approvals, log and record.
type Manifest struct {
	V               int           `json:"v"`
	Run             RunID         `json:"run"`
	Tenant          Name          `json:"tenant"`
	Requester       Requester     `json:"requester"`
	Agent           InputAgent    `json:"agent"`
	Mode            string        `json:"mode"`
	Workflow        Name          `json:"workflow,omitempty"`
	WorkflowProven  bool          `json:"workflow_proven"`
	Tags            []InputTag    `json:"tags,omitempty"`
	Profile         ProfileName   `json:"profile,omitempty"`  // as asked for
	Profiles        []ProfileRef  `json:"profiles,omitempty"` // the levels of the cascade that exist under that name
	Keys            []ManifestKey `json:"keys,omitempty"`
	CommandDigest   Digest        `json:"command_digest"`
	InputDigest     Digest        `json:"input_digest,omitempty"`
	WorkspaceDigest Digest        `json:"workspace_digest,omitempty"`
	Sandbox         SandboxSpec   `json:"sandbox"`
	Bundle          BundleRef     `json:"bundle"`
	Overlay         BundleRef     `json:"overlay,omitzero"` // zero: the tenant had none
	Epoch           uint64        `json:"epoch"`
	CreatedAt       time.Time     `json:"created_at"`
	ReplayOf        RunID         `json:"replay_of,omitempty"` // the run that this one replays
	ReplayAs        string        `json:"replay_as,omitempty"`
}

// A ProfileRef pins one version of a profile.
type ProfileRef struct {
	Level   string      `json:"level"`
	Name    ProfileName `json:"name"`
	Version int         `json:"version"`
}

// A BundleRef pins a policy bundle.
type BundleRef struct {
	Digest   Digest `json:"digest"`
	Sequence uint64 `json:"sequence"`
}

// A ManifestKey is one effective key of a run with the decision taken at
// enqueue. It is decided again at issue. Approval is filled in answers only
// (Enqueued, the view of a run) and empty in the stored manifest: an approval
// names the manifest's digest, so the manifest can't name the approval.
type ManifestKey struct {
	Name       KeyName      `json:"name"`
	Origin     ProfileRef   `json:"origin"` // the level that defines it
	NarrowedBy []ProfileRef `json:"narrowed_by,omitempty"`
	SpecDigest Digest       `json:"spec_digest"` // of the key after the cascade
	Source     Name         `json:"source,omitempty"`
	Risk       string       `json:"risk"`
	Delivery   Delivery     `json:"delivery"`
	Bindings   []Binding    `json:"bindings,omitempty"`
	Decision   Decision     `json:"decision"`
	Approval   ApprovalID   `json:"approval,omitempty"`
	// SourceVersion pins the version of the value, for a replay; none: as the
	// profile says.
	SourceVersion SourceVersion `json:"source_version,omitempty"`
}

// MarshalManifest returns the manifest's bytes and digest.
func MarshalManifest(m Manifest) ([]byte, Digest, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, "", fmt.Errorf("encoding manifest: %w", err)
	}
	return b, DigestOf(DomainManifest, b), nil
}

// States of a run, in order. Transitions are append-only.
const (
	RunEnqueued = "enqueued"
	RunClaimed  = "claimed"
	RunFinished = "finished" // record signed by the run
	RunClosed   = "closed"   // by the engine; no signed record
	RunAborted  = "aborted"  // ordered to stop by a revocation or a person
	RunExpired  = "expired"  // never claimed
)

// An Enqueued answer goes to the launcher once. Ticket is a secret of the
// run: single use, at most 60 s.
type Enqueued struct {
	Run            RunID         `json:"run"`
	Ticket         string        `json:"ticket"`
	TicketExpires  time.Time     `json:"ticket_expires"`
	ManifestDigest Digest        `json:"manifest_digest"`
	Keys           []ManifestKey `json:"keys"`
	Warnings       []string      `json:"warnings,omitempty"`
}
