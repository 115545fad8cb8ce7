package sealed

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// An Effect is what a decision says. The order of strength is
// deny > require_approval > allow.
type Effect string

// The effects. The zero Effect counts as deny wherever effects are combined.
const (
	EffectDeny            Effect = "deny"
	EffectRequireApproval Effect = "require_approval"
	EffectAllow           Effect = "allow"
)

// Fixed reason codes for a policy that could not answer. Each means deny.
const (
	ReasonUndefined   = "policy_undefined"
	ReasonError       = "policy_error"
	ReasonTimeout     = "policy_timeout"
	ReasonShape       = "policy_shape"
	ReasonExpired     = "bundle_expired"
	ReasonNoBundle    = "no_bundle"
	ReasonRevoked     = "revoked"
	ReasonNoSuchKey   = "no_such_key"
	ReasonChanged     = "profile_changed"
	ReasonRunNotAlive = "run_not_alive"
	// ReasonSourceLevel: the level that defines the key may not name its source.
	ReasonSourceLevel = "source_level"
	// ReasonIsolation: the key is not for sandboxes of the run's isolation.
	ReasonIsolation = "isolation_not_allowed"
	// ReasonCascade and why a key has ended (package cascade) make one code,
	// such as cascade_tombstone.
	ReasonCascade = "cascade_"
)

// The questions a bundle answers. Each is the document data.<question>.
const (
	QuestionAuthz    = "sealed.authz.decision"
	QuestionApproval = "sealed.approval.decision"
)

// A Reason is a constant code and a sentence for people.
type Reason struct {
	Code string `json:"code"`
	Msg  string `json:"msg"`
}

// Obligations bind whoever acts on a decision. Zero values oblige to nothing.
type Obligations struct {
	TTL       int64               `json:"ttl,omitempty"`      // seconds; one period of the lease may not be longer
	Delivery  Delivery            `json:"delivery,omitempty"` // the weakest delivery allowed
	Approvals ApprovalObligations `json:"approvals"`
	Egress    string              `json:"egress,omitempty"` // "bound": no network beyond the bound hosts
	Review    ReviewObligation    `json:"review,omitzero"`
}

// A ReviewObligation asks for a second look afterwards: somebody of a group, who
// neither used the credential nor agreed to it, has to review the use in time.
type ReviewObligation struct {
	Within int64    `json:"within,omitempty"` // seconds after the issue, at most MaxReview; 0 asks for none
	Groups []string `json:"groups,omitempty"`
}

// MaxReview bounds how long a review may take: 31 days, in seconds.
const MaxReview = 31 * 24 * 60 * 60

// Valid reports whether the obligation names both a time and a group, or neither.
func (r ReviewObligation) Valid() bool {
	return r.Within >= 0 && r.Within <= MaxReview && (r.Within > 0) == (len(r.Groups) > 0)
}

// ApprovalObligations say who has to say yes, and for how long a yes holds.
type ApprovalObligations struct {
	Quorum int      `json:"quorum,omitempty"`
	Groups []string `json:"groups,omitempty"`
	TTL    int64    `json:"ttl,omitempty"` // seconds
}

// A Decision is the answer to one question.
type Decision struct {
	Effect      Effect      `json:"effect"`
	Reasons     []Reason    `json:"reasons"`
	Obligations Obligations `json:"obligations"`
}

// Deny returns a denial with one reason.
func Deny(code, msg string) Decision {
	return Decision{Effect: EffectDeny, Reasons: []Reason{{Code: code, Msg: msg}}}
}

// ParseDecision decodes what a policy returned. Anything but the documented
// shape is an error, and the caller must deny with ReasonShape.
func ParseDecision(data []byte) (Decision, error) {
	var d Decision
	if err := Decode(data, 64<<10, &d); err != nil {
		return Decision{}, fmt.Errorf("parsing decision: %w", err)
	}
	if !slices.Contains([]Effect{EffectDeny, EffectRequireApproval, EffectAllow}, d.Effect) {
		return Decision{}, fieldErr("effect", "wants allow, require_approval or deny")
	}
	o := d.Obligations
	if o.TTL < 0 || o.Approvals.TTL < 0 || o.Approvals.Quorum < 0 || (o.Delivery != "" && !slices.Contains(deliveryOrder, o.Delivery)) || (o.Egress != "" && o.Egress != "bound") {
		return Decision{}, fieldErr("obligations", "negative, or an unknown delivery or egress")
	}
	if !o.Review.Valid() {
		return Decision{}, fieldErr("obligations.review", "wants 1 to 2678400 seconds and groups")
	}
	if d.Effect == EffectRequireApproval && (o.Approvals.Quorum < 1 || len(o.Approvals.Groups) == 0) {
		return Decision{}, fieldErr("obligations.approvals", "require_approval wants a quorum and groups")
	}
	if d.Effect != EffectAllow && len(d.Reasons) == 0 {
		return Decision{}, fieldErr("reasons", "a refusal names a reason")
	}
	return d, nil
}

// Combine joins decisions of which all must agree: the strongest effect wins,
// reasons of that effect are united in order, obligations intersect. No
// decision at all is a denial, and so is an effect that is none of the three.
func Combine(ds ...Decision) Decision {
	if len(ds) == 0 {
		return Deny(ReasonUndefined, "no policy answered")
	}
	out := Decision{Effect: EffectAllow}
	for _, d := range ds {
		if strength(d.Effect) > strength(out.Effect) {
			out.Effect = d.Effect
		}
	}
	for i, d := range ds {
		if strength(d.Effect) == strength(out.Effect) {
			for _, r := range d.Reasons {
				if !slices.Contains(out.Reasons, r) {
					out.Reasons = append(out.Reasons, r)
				}
			}
		}
		if i == 0 {
			out.Obligations = d.Obligations
			continue
		}
		out.Obligations = intersect(out.Obligations, d.Obligations)
	}
	if out.Effect == EffectRequireApproval && len(out.Obligations.Approvals.Groups) == 0 {
		return Deny(ReasonShape, "the policies name no common group of approvers")
	}
	if !out.Obligations.Review.Valid() {
		return Deny(ReasonShape, "the policies name no common group of reviewers")
	}
	if strength(out.Effect) == 2 {
		out.Effect = EffectDeny // whatever it was called
		if len(out.Reasons) == 0 {
			out.Reasons = []Reason{{Code: ReasonShape, Msg: "a policy denied without a reason"}}
		}
	}
	return out
}

func strength(e Effect) int {
	switch e {
	case EffectAllow:
		return 0
	case EffectRequireApproval:
		return 1
	}
	return 2
}

func intersect(a, b Obligations) Obligations {
	out := Obligations{TTL: least(a.TTL, b.TTL), Delivery: a.Delivery, Egress: a.Egress}
	if a.Delivery == "" || (b.Delivery != "" && b.Delivery.Stronger(a.Delivery)) {
		out.Delivery = b.Delivery
	}
	if b.Egress != "" {
		out.Egress = b.Egress
	}
	x, y := a.Approvals, b.Approvals
	out.Approvals = ApprovalObligations{Quorum: max(x.Quorum, y.Quorum), TTL: least(x.TTL, y.TTL), Groups: x.Groups}
	switch {
	case x.Quorum == 0:
		out.Approvals.Groups = y.Groups
	case y.Quorum > 0:
		out.Approvals.Groups = common(x.Groups, y.Groups)
	}
	out.Review = ReviewObligation{Within: least(a.Review.Within, b.Review.Within), Groups: a.Review.Groups}
	switch {
	case a.Review.Within == 0:
		out.Review.Groups = b.Review.Groups
	case b.Review.Within > 0:
		out.Review.Groups = common(a.Review.Groups, b.Review.Groups)
	}
	return out
}

// common are the groups of a that are in b too.
func common(a, b []string) (out []string) {
	for _, g := range a {
		if slices.Contains(b, g) {
			out = append(out, g)
		}
	}
	return out
}

// least is the smaller of two limits of which 0 means "no limit".
func least(a, b int64) int64 {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// Input is the document that sealed.authz.decision sees. All facts were
// established by the engine; what a person or an agent merely asserts is
// marked (proven: false).
type Input struct {
	Phase     string       `json:"phase"` // enqueue, issue or request
	Time      time.Time    `json:"time"`
	Tenant    Name         `json:"tenant"`
	Requester Requester    `json:"requester"`
	Agent     InputAgent   `json:"agent"`
	Run       InputRun     `json:"run"`
	Profile   InputProfile `json:"profile"`
	Key       InputKey     `json:"key"`
	Reason    string       `json:"reason,omitempty"` // the agent says; never trusted
}

// A Requester is who enqueued the run, as Vault's identity store knows it.
type Requester struct {
	EntityID string            `json:"entity_id"`
	Name     string            `json:"name"`
	Person   string            `json:"person"` // the configured unique claim; approvals compare persons
	Groups   []string          `json:"groups"`
	Claims   map[string]string `json:"claims"`
}

// InputAgent is the agent as defined, and as attested once it is.
type InputAgent struct {
	Name             Name   `json:"name"`
	DefinitionDigest Digest `json:"definition_digest"`
	SPIFFEID         string `json:"spiffe_id,omitempty"` // empty before the claim
}

// InputRun is the run as enqueued, with the isolation as attested after the claim.
type InputRun struct {
	ID             RunID      `json:"id"`
	Mode           string     `json:"mode"`
	Workflow       string     `json:"workflow"`
	WorkflowProven bool       `json:"workflow_proven"`
	Tags           []InputTag `json:"tags"`
	Backend        string     `json:"backend"`
	Isolation      string     `json:"isolation"`
	Assurance      string     `json:"assurance"`
	Network        string     `json:"network"`
	Interactive    bool       `json:"interactive"`
}

// InputTag is a tag and whether the requester may assert it.
type InputTag struct {
	Name   string `json:"name"`
	Proven bool   `json:"proven"`
}

// InputProfile is the profile that the key comes from.
type InputProfile struct {
	Name             ProfileName `json:"name"`
	Level            string      `json:"level"`
	Version          int         `json:"version"`
	Owner            string      `json:"owner"`
	Tags             []string    `json:"tags"`
	AllowedWorkflows []string    `json:"allowed_workflows"`
}

// InputKey is the key as the profile specifies it.
type InputKey struct {
	Name       KeyName   `json:"name"`
	Source     Name      `json:"source"`
	SourceKind string    `json:"source_kind"` // static or dynamic
	Agents     []string  `json:"agents"`
	Workflows  []string  `json:"workflows"`
	Tags       []string  `json:"tags"`
	Risk       string    `json:"risk"`
	Delivery   Delivery  `json:"delivery"`
	Bindings   []Binding `json:"bindings"`
	TTL        int64     `json:"ttl"`     // seconds
	MaxTTL     int64     `json:"max_ttl"` // seconds
	// RequesterMatches: the requester is named by the requesters of the key,
	// or of the profile when the key names none.
	RequesterMatches bool `json:"requester_matches"`
}

// ApprovalInput is the document that sealed.approval.decision sees: may this
// person vote on this approval?
type ApprovalInput struct {
	Time     time.Time       `json:"time"`
	Tenant   Name            `json:"tenant"`
	Voter    Requester       `json:"voter"`
	Approval json.RawMessage `json:"approval"` // the ApprovalObject as shown
	Votes    []Vote          `json:"votes"`
}
