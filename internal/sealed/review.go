package sealed

import "time"

// A Review is the second look that one use of a credential owes; see
// ReviewObligation. It is open until somebody closes it with a finding: then only
// the log has it.
type Review struct {
	ID          GrantID     `json:"id"` // of the grant; at the same time the approval's, if there was one
	Run         RunID       `json:"run"`
	Key         KeyName     `json:"key"`
	Profile     ProfileName `json:"profile"`
	Agent       Name        `json:"agent"`
	Workflow    Name        `json:"workflow,omitempty"`
	Requester   string      `json:"requester"`
	RequesterID string      `json:"requester_id"`
	Person      string      `json:"person,omitempty"`
	Reasons     []string    `json:"reasons"`         // codes, of the decision that asked for the review
	Votes       []Vote      `json:"votes,omitempty"` // of those who agreed to the use
	Groups      []string    `json:"groups"`          // whose members may review
	OpenedAt    time.Time   `json:"opened_at"`
	DueAt       time.Time   `json:"due_at"`
}

// Findings of a review.
const (
	FindingJustified   = "justified"
	FindingUnjustified = "unjustified"
)
