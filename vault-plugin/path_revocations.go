package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// revocationsPerMinute bounds what one actor revokes: each is an epoch, an
// entry, and a look at every run. It is far above what a person does, and one
// revocation of a profile, a source or the tenant stops more than a thousand
// of runs.
const revocationsPerMinute = 120

// errTooMany says that the limit is the actor's, and that what stands stands.
var errTooMany = logical.CodedError(http.StatusTooManyRequests,
	"too many revocations in a minute; a revocation of a profile, source, identity or the tenant covers more at once")

func (b *backend) pathRevocations() []*framework.Path {
	fields := map[string]*framework.FieldSchema{
		"kind":   {Type: framework.TypeString, Description: "key, profile, source, identity, run or tenant."},
		"target": {Type: framework.TypeString, Description: "What is revoked: a key (KEY or profile#KEY), profile, source, SPIFFE ID, run id, or the tenant's name."},
		"hard":   {Type: framework.TypeBool, Description: "Also revoke what was issued and stop every run that holds it."},
		"reason": {Type: framework.TypeString, Description: "Why, for people."},
	}
	id := &framework.FieldSchema{Type: framework.TypeString, Description: "Id of the revocation."}
	update := func(summary string, f nounFunc) map[logical.Operation]framework.OperationHandler {
		return map[logical.Operation]framework.OperationHandler{logical.UpdateOperation: b.op(summary, f)}
	}
	create := update("Revoke.", b.revocationCreate)
	create[logical.ListOperation] = b.list("List revocations, lifted ones too.", revocationIDs)
	return []*framework.Path{
		{
			Pattern: "revocations/?$", DisplayAttrs: display("revocations"), Fields: fields, Operations: create,
			HelpSynopsis:    "A standing no.",
			HelpDescription: "Soft: nothing new is issued or renewed. Hard: issued credentials are revoked at the source and runs that hold them stop. The caller then revokes the leases by prefix.",
		},
		{
			Pattern: "revocations/preview$", DisplayAttrs: display("revocation-preview"), Fields: fields,
			Operations:      update("Show what a hard revocation would stop, without revoking.", b.revocationPreview),
			HelpSynopsis:    "Preview a revocation.",
			HelpDescription: "Names the runs, the lease prefixes and the number of grants that are covered now.",
		},
		{
			Pattern: "revocations/(?P<id>[0-9A-Z]{26})$", DisplayAttrs: display("revocation"), Fields: map[string]*framework.FieldSchema{"id": id},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.op("Read a revocation.", b.revocationRead),
			},
			HelpSynopsis:    "Read a revocation.",
			HelpDescription: "A revocation is never deleted; it can be lifted.",
		},
		{
			Pattern: "revocations/(?P<id>[0-9A-Z]{26})/lift$", DisplayAttrs: display("revocation-lift"),
			Fields:          map[string]*framework.FieldSchema{"id": id, "reason": fields["reason"]},
			Operations:      update("Lift a revocation.", b.revocationLift),
			HelpSynopsis:    "End a standing no.",
			HelpDescription: "Lifting is an act of its own, with a reason and an entry. It brings back nothing that was revoked.",
		},
	}
}

// revocationCreate is the exception to "log, then act". Stopping never waits
// for the log: the one storage write and the new epoch come first, then the
// entry, then what was issued is undone. If the append or the undoing fails the
// revocation stands all the same, the answer says so, and the worker repeats
// what is missing.
func (b *backend) revocationCreate(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	rev, err := b.parseRevocation(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if b.mem.count("revoke/"+rev.By, b.now()) > revocationsPerMinute {
		return nil, errTooMany
	}
	// What it will stop is looked up first: a run that learns of the new epoch
	// ends by itself, perhaps before enforce comes to it, and its leases are the
	// caller's to revoke all the same. Stopping does not depend on it.
	touched, _, _, lookErr := b.affected(ctx, req.Storage, rev)
	if lookErr != nil {
		b.Logger().Warn("looking up what a revocation stops", "error", lookErr)
	}
	row, err := b.writeStop(ctx, req.Storage, func(epoch uint64) (revocationRow, error) {
		id, err := sealed.NewULID(b.now(), b.rand)
		if err != nil {
			return revocationRow{}, fmt.Errorf("making revocation id: %w", err)
		}
		rev.ID, rev.Epoch, rev.CreatedAt = id, epoch, b.now().UTC()
		return revocationRow{Revocation: rev}, nil
	})
	if err != nil {
		return nil, err
	}
	rev = row.Revocation
	body := map[string]any{"id": rev.ID, "kind": rev.Kind, "target": rev.Target, "hard": rev.Hard, "reason": rev.Reason, "by": rev.By, "epoch": rev.Epoch}
	out := map[string]any{"id": rev.ID, "epoch": strconv.FormatUint(rev.Epoch, 10), "logged": b.logStop(ctx, req.Storage, "revocation.created", body), "enforced": true}
	if !rev.Hard {
		return out, nil
	}
	runs, grants, err := b.enforce(ctx, req.Storage, rev)
	if err != nil {
		b.Logger().Error("enforcing revocation; the worker repeats it", "id", rev.ID, "error", err)
		out["enforced"] = false
		return out, nil
	}
	b.stops.paid(rev.ID)
	for _, r := range touched {
		if !slices.Contains(runs, r) {
			runs = append(runs, r)
		}
	}
	out["runs"], out["grants"] = stringsOf(runs), stringsOf(grants)
	return out, nil
}

// logStop appends an event that is already in effect. If that fails the event
// is kept for the worker. An append that failed may still reach the log, so the
// entry may be there twice; its id tells.
func (b *backend) logStop(ctx context.Context, s logical.Storage, typ string, body map[string]any) bool {
	_, err := b.record(ctx, s, audit.Event{Type: typ, Body: body, Essential: true})
	if err == nil {
		return true
	}
	b.Logger().Error("logging revocation; the worker repeats it", "type", typ, "error", err)
	b.stops.mu.Lock()
	defer b.stops.mu.Unlock()
	b.stops.unlogged = append(b.stops.unlogged, unloggedStop{typ: typ, body: body})
	return false
}

// parseRevocation accepts a revocation whose target could name something here:
// one that covers nothing because of a slip is worse than an error. A token
// without an entity may stop too; stopping is always safe.
func (b *backend) parseRevocation(ctx context.Context, req *logical.Request, d *framework.FieldData) (sealed.Revocation, error) {
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return sealed.Revocation{}, err
	}
	hard, _ := d.Get("hard").(bool)
	r := sealed.Revocation{Kind: text(d, "kind"), Target: text(d, "target"), Hard: hard, Reason: sealed.CleanReason(text(d, "reason")), By: b.actor(req)}
	if err := r.Validate(); err != nil {
		return r, err
	}
	return r, validateTarget(cfg, r.Kind, r.Target)
}

func validateTarget(cfg *engineConfig, kind, target string) error {
	var err error
	switch kind {
	case sealed.RevokeKey:
		key := target
		if profile, rest, ok := strings.Cut(target, "#"); ok {
			key = rest
			if _, err := sealed.ParseProfileName(profile); err != nil {
				return invalid("target", "wants KEY or profile#KEY")
			}
		}
		_, err = sealed.ParseKeyName(key)
	case sealed.RevokeProfile:
		_, err = sealed.ParseProfileName(target)
	case sealed.RevokeSource:
		_, err = sealed.ParseName("target", target)
	case sealed.RevokeRun:
		_, err = sealed.ParseRunID(target)
	case sealed.RevokeIdentity:
		domain, tenant, _, perr := sealed.ParseAgentSPIFFEID(target)
		if err = perr; err == nil && (domain != cfg.TrustDomain || tenant != cfg.Tenant) {
			return invalid("target", "is not the SPIFFE ID of an agent of this tenant")
		}
	case sealed.RevokeTenant:
		if target != string(cfg.Tenant) {
			return invalid("target", "is not the tenant of this mount")
		}
	}
	if err != nil {
		return invalid("target", "can't be the name of a "+kind)
	}
	return nil
}

func (b *backend) revocationPreview(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	rev, err := b.parseRevocation(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if b.mem.count("preview/"+rev.By, b.now()) > revocationsPerMinute {
		return nil, errTooMany
	}
	runs, prefixes, grants, err := b.affected(ctx, req.Storage, rev)
	if err != nil {
		return nil, err
	}
	return map[string]any{"runs": stringsOf(runs), "lease_prefixes": prefixes, "grants": grants}, nil
}

func revocationIDs(ctx context.Context, s logical.Storage) ([]string, error) {
	ids, err := s.List(ctx, storeRevocations)
	if err != nil {
		return nil, fmt.Errorf("listing revocations: %w", err)
	}
	return ids, nil
}

func (b *backend) revocationRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	row, err := loadRevocation(ctx, req.Storage, text(d, "id"))
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(row)
	if err != nil {
		return nil, fmt.Errorf("encoding revocation: %w", err)
	}
	return map[string]any{"revocation": string(doc), "standing": row.Lifted == nil}, nil
}

// revocationLift logs first: unlike stopping, going on can wait. The append
// happens outside the lock that revoking needs.
func (b *backend) revocationLift(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	reason := sealed.CleanReason(text(d, "reason"))
	if reason == "" {
		return nil, invalid("reason", "wants 1 to 512 characters")
	}
	who, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	s, id := req.Storage, text(d, "id")
	row, err := loadStanding(ctx, s, id)
	if err != nil {
		return nil, err
	}
	if err := b.change(ctx, req, "revocation.lifted", map[string]any{"id": id, "kind": row.Kind, "target": row.Target, "reason": reason}); err != nil {
		return nil, err
	}
	row, err = b.writeStop(ctx, s, func(epoch uint64) (revocationRow, error) {
		row, err := loadStanding(ctx, s, id)
		if err != nil {
			return row, err
		}
		row.Lifted = &lift{By: who.EntityID, Reason: reason, Epoch: epoch, At: b.now().UTC()}
		return row, nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": row.ID, "epoch": strconv.FormatUint(row.Lifted.Epoch, 10)}, nil
}

// loadStanding reads a revocation that was not lifted.
func loadStanding(ctx context.Context, s logical.Storage, id string) (revocationRow, error) {
	row, err := loadRevocation(ctx, s, id)
	if err == nil && row.Lifted != nil {
		err = fmt.Errorf("lifting revocation: it was lifted before: %w", sealed.ErrConflict)
	}
	return row, err
}

// stringsOf converts ids for a response.
func stringsOf[T ~string](in []T) []string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, string(v))
	}
	return out
}
