package sealed

import (
	"cmp"
	"fmt"
	"strings"
)

// A PreviewRequest describes a run that nobody makes.
type PreviewRequest struct {
	Profile     ProfileName `json:"profile"`
	Agent       Name        `json:"agent"`
	Workflow    Name        `json:"workflow,omitempty"`
	Tags        []Name      `json:"tags,omitempty"`
	Mode        string      `json:"mode,omitempty"`      // empty: jit
	Isolation   string      `json:"isolation,omitempty"` // empty: own_uid
	Network     string      `json:"network,omitempty"`   // empty: none
	Interactive bool        `json:"interactive,omitempty"`
	// Delivery is what the agent would ask for; empty: what each key needs.
	Delivery Delivery `json:"delivery,omitempty"`
}

// ParsePreviewRequest decodes and validates a preview request and fills in
// defaults.
func ParsePreviewRequest(data []byte) (PreviewRequest, error) {
	var p PreviewRequest
	if err := Decode(data, 16<<10, &p); err != nil {
		return p, fmt.Errorf("parsing preview: %w", err)
	}
	if p.Profile == "" {
		return p, fmt.Errorf("parsing preview: %w", fieldErr("profile", "wants the name of a profile"))
	}
	if p.Delivery != "" && !p.Delivery.Stronger(p.Delivery) {
		return p, fmt.Errorf("parsing preview: %w", fieldErr("delivery", "wants proxy or env"))
	}
	p.Mode, p.Isolation, p.Network = cmp.Or(p.Mode, ModeJIT), cmp.Or(p.Isolation, IsolationOwnUID), cmp.Or(p.Network, NetworkNone)
	er := p.Enqueue()
	if err := er.validate(); err != nil {
		return p, fmt.Errorf("parsing preview: %w", err)
	}
	return p, nil
}

// Enqueue is the request that would make such a run, of an empty command.
func (p PreviewRequest) Enqueue() EnqueueRequest {
	return EnqueueRequest{
		IdempotencyKey: strings.Repeat("0", 16), Agent: p.Agent, Mode: p.Mode, Profile: p.Profile, Workflow: p.Workflow, Tags: p.Tags,
		CommandDigest: CommandDigest([]string{}),
		Sandbox:       SandboxSpec{Backend: BackendLocal, Isolation: p.Isolation, Network: p.Network, Interactive: p.Interactive},
	}
}

// A Preview is what such a run would have. It holds no value.
type Preview struct {
	Requester      string                 `json:"requester"` // entity id
	Profiles       []ProfileRef           `json:"profiles"`  // levels, earliest first
	WorkflowProven bool                   `json:"workflow_proven"`
	Bundle         BundleRef              `json:"bundle"`
	Overlay        BundleRef              `json:"overlay,omitzero"` // zero: the tenant has none
	Keys           []PreviewKey           `json:"keys"`
	Knobs          map[string]PreviewKnob `json:"knobs"`
	Shadowed       []string               `json:"shadowed,omitempty"` // knobs that are not there because a level has a key of the name
	Warnings       []string               `json:"warnings,omitempty"`
}

// A PreviewKey is a ManifestKey with how long a credential would live and, for
// a key that the cascade ended, how that came.
type PreviewKey struct {
	ManifestKey
	Ended   string      `json:"ended,omitempty"` // tombstone, orphan or disjoint
	EndedBy *ProfileRef `json:"ended_by,omitempty"`
	TTL     Duration    `json:"ttl"`
	MaxTTL  Duration    `json:"max_ttl"`
}

// A PreviewKnob is a plain variable with the level that sets it.
type PreviewKnob struct {
	Value  string     `json:"value"`
	Origin ProfileRef `json:"origin"`
}
