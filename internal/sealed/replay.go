package sealed

import "fmt"

// How a run is replayed (Manifest.ReplayAs). A replay is always a new run with
// the command, input, workspace, agent, mode, profile name, workflow, tags and
// sandbox of the old one, asked for by whoever replays.
const (
	// ReplayRecorded: with the keys, the policy bundle and the versions of the
	// values of the old run, or without the key.
	ReplayRecorded = "recorded"
	// ReplayCurrent: with what profile, bundle and sources say now.
	ReplayCurrent = "current"
)

// In what a key differs from the old run (ReplayKey.Differs).
const (
	ReplayRevoked       = "revoked"        // a standing revocation covers it; it is not issued
	ReplaySourceGone    = "source_gone"    // the source, or the version of the value, is not there
	ReplayKeyGone       = "key_gone"       // the profile does not name it any more
	ReplayKeyAdded      = "key_added"      // the old run did not have it
	ReplayKeyChanged    = "key_changed"    // the profile says something else about it
	ReplayBundleChanged = "bundle_changed" // another policy bundle or overlay is current
	ReplayRotated       = "rotated"        // the source has a newer value
	ReplayNotUsed       = "not_used"       // the old run never got it: there is no version to compare
	ReplayUnknown       = "unknown"        // the source does not tell versions
	ReplayFresh         = "fresh"          // every issue makes a new credential
)

// ReasonReplay denies a key of a replay as recorded that is not as recorded.
const ReasonReplay = "replay_differs"

// A ReplaySpec asks for a replay. The digests are those of what the caller is
// about to run; one that differs from the old run's is refused by name.
type ReplaySpec struct {
	IdempotencyKey  string `json:"idempotency_key"`
	CommandDigest   Digest `json:"command_digest"`
	InputDigest     Digest `json:"input_digest,omitempty"`
	WorkspaceDigest Digest `json:"workspace_digest,omitempty"`
}

// ParseReplaySpec decodes a spec. That its fields fit the old run is for the
// engine to check.
func ParseReplaySpec(data []byte) (ReplaySpec, error) {
	var r ReplaySpec
	if err := Decode(data, 4<<10, &r); err != nil {
		return r, fmt.Errorf("parsing replay: %w", err)
	}
	if len(r.IdempotencyKey) < 16 || len(r.IdempotencyKey) > 64 {
		return r, fieldErr("idempotency_key", "wants 16 to 64 characters")
	}
	return r, nil
}

// A Replay tells how a replay stands to the old run. No value is compared, only
// names, digests and versions.
type Replay struct {
	Of           RunID       `json:"of"`
	As           string      `json:"as"`
	DryRun       bool        `json:"dry_run"`
	AgentChanged bool        `json:"agent_changed"` // another agent definition is current
	Keys         []ReplayKey `json:"keys"`
	// Enqueued is the new run; nil for a dry run.
	Enqueued *Enqueued `json:"enqueued,omitempty"`
}

// A ReplayKey is one key of the old run or of the new one.
type ReplayKey struct {
	Name KeyName `json:"name"`
	// Differs is empty when the key is as it was. Fresh, unknown and not_used
	// are not differences but what can't be compared.
	Differs []string `json:"differs,omitempty"`
	// Recorded and Current are versions of the value at its source.
	Recorded SourceVersion `json:"recorded,omitempty"`
	Current  SourceVersion `json:"current,omitempty"`
	Effect   Effect        `json:"effect"` // of the decision for the new run
	Reasons  []Reason      `json:"reasons,omitempty"`
}
