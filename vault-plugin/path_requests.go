package vaultplugin

import (
	"context"
	"errors"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// requestsPerMinute bounds what an agent may ask for (E24).
const requestsPerMinute = 10

// pathRequests is where an agent asks, through init, for a key.
func (b *backend) pathRequests() []*framework.Path {
	return []*framework.Path{{
		Pattern:      runPattern + "/requests$",
		DisplayAttrs: display("request"),
		Fields:       requestField(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Ask for a key", b.requestKey),
		},
		HelpSynopsis:    "Ask whether a key of the run may be used now, and for an approval if one is needed.",
		HelpDescription: "The answer is allow, deny with reasons, or require_approval with the id of the approval that is pending. Ten calls a minute.",
	}}
}

func (b *backend) requestKey(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	var mr sealed.MoreRequest
	r, err := b.openRunCall(ctx, req, d, whileClaimed, &mr, func() (sealed.RunID, string) { return mr.Run, mr.Path })
	if err != nil {
		return nil, err
	}
	if _, err := sealed.ParseKeyName(string(mr.Key)); err != nil {
		return nil, err
	}
	if len(mr.Reason) > sealed.MaxReason {
		return nil, invalid("reason", "longer than 512 bytes")
	}
	if err := b.throttle(ctx, req.Storage, r); err != nil {
		return nil, err
	}
	defer b.lockRun(r.ID)()
	if r, err = b.run(ctx, req.Storage, r.ID); err != nil {
		return nil, err
	}
	if !r.alive() {
		return nil, errRefused
	}
	answer, err := b.considerKey(ctx, req.Storage, r, mr)
	if err != nil {
		return nil, err
	}
	return b.answer(ctx, req.Storage, answer)
}

// throttle refuses a flood, with one entry a minute.
func (b *backend) throttle(ctx context.Context, s logical.Storage, r runRow) error {
	n := b.mem.count("requests/"+string(r.ID), b.now())
	if n <= requestsPerMinute {
		return nil
	}
	if n == requestsPerMinute+1 {
		_, err := b.record(ctx, s, audit.Event{Type: "request.flood", Run: string(r.ID), Body: map[string]any{"limit": requestsPerMinute}})
		if err != nil && !errors.Is(err, audit.ErrBudget) {
			return err
		}
	}
	return logical.CodedError(http.StatusTooManyRequests, "at most 10 requests a minute")
}

// considerKey decides and, if people have to say yes, makes sure that they are
// asked. The reason of a repeated request does not change what they see.
func (b *backend) considerKey(ctx context.Context, s logical.Storage, r runRow, mr sealed.MoreRequest) (sealed.MoreAnswer, error) {
	v, err := b.decideAgain(ctx, s, phaseRequest, r, mr.Key, mr.Reason, b.lookUp(ctx, s, r))
	if err != nil {
		return sealed.MoreAnswer{}, err
	}
	if v.Effect != sealed.EffectDeny {
		err := b.coveredGrant(ctx, s, r, grantRow{Profile: v.terms.key.Origin.Name, Key: mr.Key, Source: v.terms.spec.Source})
		if errors.Is(err, sealed.ErrRevoked) {
			v = refuse(sealed.ReasonRevoked, "a revocation covers the key")
		} else if err != nil {
			return sealed.MoreAnswer{}, err
		}
	}
	out := sealed.MoreAnswer{Key: mr.Key, Effect: v.Effect, Reasons: v.Reasons}
	if v.Effect == sealed.EffectRequireApproval {
		a, approved, err := b.approvalFor(ctx, s, r, v.bundle, v.terms, v.Decision, mr.Reason)
		switch {
		case errors.Is(err, sealed.ErrDenied):
			v = refuse("approval_denied", "a person said no")
			out.Effect, out.Reasons = v.Effect, v.Reasons
		case err != nil:
			return out, err
		case approved:
			out.Effect, out.Approval = sealed.EffectAllow, a.ID
		default:
			out.Approval = a.ID
		}
	}
	if out.Effect == sealed.EffectDeny {
		if err := b.deniedKey(ctx, s, r, mr.Key, v.Decision, sealed.ErrDenied); !errors.Is(err, errRefused) {
			return out, err
		}
		return out, nil
	}
	out.Delivery = v.terms.delivery
	return out, nil
}
