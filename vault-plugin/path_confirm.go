package vaultplugin

import (
	"context"
	"errors"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

const maxLeaseID = 1024 // bytes

// pathConfirm is where init names the lease of a grant. The lease exists only
// after the handler of creds has returned, so nobody else can (R09).
func (b *backend) pathConfirm() []*framework.Path {
	return []*framework.Path{{
		Pattern:      runPattern + "/confirm$",
		DisplayAttrs: display("confirm"),
		Fields:       requestField(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.op("Confirm the lease of a grant", b.confirmGrant),
		},
		HelpSynopsis:    "Confirm a grant with its lease id, before its value is used.",
		HelpDescription: "Refused when a revocation came since the grant was made. A grant that nobody confirms is revoked at its source.",
	}}
}

func (b *backend) confirmGrant(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	entry := b.journal.expect()
	defer entry.over()
	var cr sealed.ConfirmRequest
	r, err := b.openRunCall(ctx, req, d, whileClaimed, &cr, func() (sealed.RunID, string) { return cr.Run, cr.Path })
	if err != nil {
		return nil, err
	}
	entry.over() // see intend
	defer b.lockRun(r.ID)()
	entry.comes()
	s := req.Storage
	g, r, err := b.grant(ctx, s, r.ID, cr.Grant)
	if err != nil {
		if unlessDenied(err) == nil {
			return nil, errRefused
		}
		return nil, err
	}
	// The lease id is Vault's word through init; it has to be of this path.
	if len(cr.LeaseID) > maxLeaseID || !strings.Contains(cr.LeaseID, "runs/"+string(r.ID)+"/creds/"+string(g.Key)+"/") {
		return nil, invalid("lease_id", "is not a lease of this grant")
	}
	epoch, err := b.epoch(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := b.confirmable(ctx, s, r, g, cr.LeaseID); err != nil {
		return nil, err
	}
	if g.State != grantConfirmed {
		if err := b.writeConfirmed(ctx, s, g, cr.LeaseID, epoch, entry); err != nil {
			return nil, err
		}
	}
	return b.answer(ctx, s, sealed.ConfirmAnswer{Run: r.ID, Grant: g.ID, Epoch: epoch})
}

// confirmable refuses a grant that has ended or is covered by a revocation,
// and kills it in the second case.
func (b *backend) confirmable(ctx context.Context, s logical.Storage, r runRow, g grantRow, lease string) error {
	if !r.alive() || (g.State != grantReturned && g.State != grantConfirmed) || (g.State == grantConfirmed && g.Lease != lease) {
		return errRefused
	}
	err := b.coveredGrant(ctx, s, r, g)
	if !errors.Is(err, sealed.ErrRevoked) {
		return err
	}
	if _, err := b.record(ctx, s, audit.Event{Type: "issue.failed", Run: string(r.ID), Essential: true, Body: map[string]any{
		"key": g.Key, "grant": g.ID, "source": g.Source, "what": "revoked",
	}}); err != nil {
		return err
	}
	return b.killGrant(ctx, s, g, outcomeRevoked, errRefused)
}

// writeConfirmed logs issue.ok and stores the confirmation. Only its answer
// lets init use the value, so the log knows of every use.
func (b *backend) writeConfirmed(ctx context.Context, s logical.Storage, g grantRow, lease string, epoch uint64, entry *arrival) error {
	entry.over()
	if _, err := b.record(ctx, s, audit.Event{Type: "issue.ok", Run: string(g.Run), Essential: true, Body: map[string]any{
		"key": g.Key, "grant": g.ID, "lease": lease, "delivery": g.Delivery, "ends": g.Ends, "attempt": g.Attempt,
	}}); err != nil {
		return err
	}
	g.State, g.Lease, g.Epoch, g.ChangedAt = grantConfirmed, lease, epoch, b.now().UTC()
	return b.saveGrant(ctx, s, g)
}
