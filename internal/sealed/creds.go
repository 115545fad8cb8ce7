package sealed

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Every call that init makes after the claim is a Signed document in
// DomainRequest, signed by the run key. Run and Path repeat where it is sent,
// so that one call can't be replayed as another; Idempotency makes a repeated
// call answer the same thing.

// A CredsRequest asks for one credential.
type CredsRequest struct {
	Run         RunID    `json:"run"`
	Path        string   `json:"path"` // runs/<id>/creds/<key>
	Idempotency string   `json:"idempotency"`
	Delivery    Delivery `json:"delivery"`
	Reason      string   `json:"reason,omitempty"` // the agent says
}

// A CredsAnswer is signed by the answer key in DomainAnswer. Ciphertext is
// the value sealed to the run's HPKE key (package secret); nothing else in the
// answer is secret.
type CredsAnswer struct {
	Run        RunID     `json:"run"`
	Grant      GrantID   `json:"grant"`
	Key        KeyName   `json:"key"`
	Delivery   Delivery  `json:"delivery"`
	Bindings   []Binding `json:"bindings,omitempty"`
	Ciphertext string    `json:"ciphertext"` // base64 std
	AllowWeak  bool      `json:"allow_weak,omitempty"`
	TTL        int64     `json:"ttl"` // seconds
	Expires    time.Time `json:"expires"`
	Epoch      uint64    `json:"epoch"`
	Renewable  bool      `json:"renewable"`
}

// A ConfirmRequest tells the engine the lease id under which Vault registered
// the grant. Until it is answered the credential is not used.
type ConfirmRequest struct {
	Run     RunID   `json:"run"`
	Path    string  `json:"path"` // runs/<id>/confirm
	Grant   GrantID `json:"grant"`
	LeaseID string  `json:"lease_id"`
	Epoch   uint64  `json:"epoch"`
}

// A ConfirmAnswer is signed by the answer key in DomainAnswer.
type ConfirmAnswer struct {
	Run   RunID   `json:"run"`
	Grant GrantID `json:"grant"`
	Epoch uint64  `json:"epoch"`
}

// A MoreRequest is the agent asking, through init, for a key of its profile.
type MoreRequest struct {
	Run    RunID   `json:"run"`
	Path   string  `json:"path"` // runs/<id>/requests
	Key    KeyName `json:"key"`
	Reason string  `json:"reason"` // at most MaxReason bytes
}

// A MoreAnswer is granted (effect allow: fetch it now), pending with the id of
// an approval, or denied with reasons.
type MoreAnswer struct {
	Key      KeyName    `json:"key"`
	Effect   Effect     `json:"effect"`
	Reasons  []Reason   `json:"reasons,omitempty"`
	Approval ApprovalID `json:"approval,omitempty"`
	Delivery Delivery   `json:"delivery,omitempty"`
}

// MaxReason bounds a reason, in bytes.
const MaxReason = 512

// CleanReason makes text of an agent fit to be shown to a person: control,
// bidirectional and invisible formatting characters become spaces, white space
// is folded, and it is cut at MaxReason bytes on a rune boundary. Cleaning what
// is clean changes nothing. It does not touch letters that look alike.
func CleanReason(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) || r == 0x2065 || (r >= 0xe0000 && r <= 0xe0fff) {
			return ' ' // the last two: unassigned, but invisible by rule (Default_Ignorable_Code_Point)
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= MaxReason {
		return s
	}
	end := MaxReason
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.TrimRight(s[:end], " ")
}

// A WatchRequest waits up to Wait (bounded by the engine at one second) for
// the epoch to pass Epoch.
type WatchRequest struct {
	Run   RunID    `json:"run"`
	Path  string   `json:"path"` // runs/<id>/watch
	Epoch uint64   `json:"epoch"`
	Wait  Duration `json:"wait"`
}

// Orders to a running run.
const (
	OrderContinue = "continue"
	OrderAbort    = "abort"
)

// A WatchAnswer says whether to go on, and which grants are no longer good.
// Came and Time are the engine's clock: when the call arrived and when the state
// was read. Between them the engine has waited.
type WatchAnswer struct {
	Run     RunID     `json:"run"`
	Came    time.Time `json:"came"`
	Time    time.Time `json:"time"`
	Epoch   uint64    `json:"epoch"`
	Mark    string    `json:"mark"`  // stands for order, reason, rhythm and dead grants; see HostRun
	Every   Duration  `json:"every"` // the run is to call again by then, whatever its host hears
	Order   string    `json:"order"`
	Reason  string    `json:"reason,omitempty"`
	Dead    []GrantID `json:"dead,omitempty"`    // revoked grants: stop using them
	Blocked []KeyName `json:"blocked,omitempty"` // keys under a soft revocation: no new issue
}

// An EventsRequest reports what happened in the sandbox; names and counts
// only. The engine accepts the types of RunEvents and nothing else.
type EventsRequest struct {
	Run    RunID      `json:"run"`
	Path   string     `json:"path"` // runs/<id>/events
	Events []RunEvent `json:"events"`
	// Input is a RedactedInput, its exact JSON text. It is sent once, before
	// the agent starts; Events may be empty then.
	Input string `json:"input,omitempty"`
}

// A RunEvent is aggregated by its first four fields.
type RunEvent struct {
	Type   string  `json:"type"`
	Key    KeyName `json:"key,omitempty"`
	Detail string  `json:"detail,omitempty"` // an enum or a host name, at most 128 bytes, cleaned
	Stream string  `json:"stream,omitempty"`
	Count  int     `json:"count"`
}

// RunEvents are the types a run may report about itself.
var RunEvents = []string{"redact.hit", "redact.miss", "redact.detected", "egress.denied", "egress.foreign_auth", "egress.allowed", "proxy.used", "workspace.quarantined", "env.injected", "proxy.frozen", "lease.renewed"}

// A FinishRequest ends a run. Record is the DSSE envelope of the run record.
type FinishRequest struct {
	Run    RunID  `json:"run"`
	Path   string `json:"path"` // runs/<id>/finish
	Record string `json:"record"`
	Exit   int    `json:"exit"`
}

// A HeadRequest asks for the log's newest checkpoint and a consistency proof
// from the one init saw at claim.
type HeadRequest struct {
	Run     RunID  `json:"run"`
	Path    string `json:"path"` // runs/<id>/head
	OldSize int64  `json:"old_size"`
}

// A HeadAnswer carries a signed note and the proof, base64 std hashes.
type HeadAnswer struct {
	Checkpoint string   `json:"checkpoint"`
	Proof      []string `json:"proof"`
}

func hasAny(s, chars string) bool { return strings.ContainsAny(s, chars) }

func hasPrefixAny(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
