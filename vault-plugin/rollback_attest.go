package vaultplugin

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// lostAtOnce is how many lost numbers are filled by one call of the log.
const lostAtOnce = 256

// An attestation is what a person says about a restore.
type attestation struct {
	by, reason string
	size       uint64 // of the lost head that the person was shown
	policy     uint64 // sequence of the newest policy that ever was in force
	overlay    uint64 // and of the newest overlay; 0: there never was one
}

// attest ends the rolled-back state, in this order:
//
//  1. Numbers of lost entries are filled, so that none ever names two entries,
//     and every checkpoint from here on is larger than any that was lost.
//  2. The attestation is logged, with both heads.
//  3. What may have been used up in the lost history is made worthless: every run
//     that is not over is aborted, and with it its ticket, its grants and its
//     approvals; and the floors of policy and overlay are raised.
//  4. The row is stored.
//
// Interrupted anywhere, the mount is rolled back still, and the same attestation
// can be made again.
func (b *backend) attest(ctx context.Context, s logical.Storage, a attestation) (aborted int, err error) {
	b.restore.changing.Lock()
	defer b.restore.changing.Unlock()
	row, err := b.rollbackRow(ctx, s)
	if err != nil {
		return 0, unavailable(err)
	}
	policy, err := b.policyRow(ctx, s)
	if err != nil {
		return 0, unavailable(err)
	}
	switch {
	case row.Seen == nil:
		return 0, fmt.Errorf("attesting: the mount is not rolled back: %w", sealed.ErrConflict)
	case a.size != row.Seen.LostSize:
		return 0, fmt.Errorf("attesting: the lost head has %d entries, not %d: %w", row.Seen.LostSize, a.size, sealed.ErrConflict)
	case a.policy < policy.Sequence:
		return 0, invalid("policy_sequence", fmt.Sprintf("is below that of the policy in force, %d", policy.Sequence))
	case a.overlay < policy.Overlay.Sequence:
		return 0, invalid("overlay_sequence", fmt.Sprintf("is below that of the overlay that is known, %d", policy.Overlay.Sequence))
	}
	if err := b.fillLost(ctx, s, a.size); err != nil {
		return 0, err
	}
	body := map[string]any{
		"by": a.by, "reason": a.reason, "lost": row.Seen.Lost, "restored": row.Seen.Restored, "seen_by": row.Seen.By, "seen_at": row.Seen.At,
		"policy_sequence": strconv.FormatUint(a.policy, 10),
	}
	if a.overlay > 0 {
		body["overlay_sequence"] = strconv.FormatUint(a.overlay, 10)
	}
	if _, err := b.record(ctx, s, audit.Event{Type: "log.rollback_attested", Essential: true, Body: body}); err != nil {
		return 0, err
	}
	if aborted, err = b.abortAll(ctx, s, a); err != nil {
		return aborted, err
	}
	if err := b.raiseFloors(ctx, s, a); err != nil {
		return aborted, err
	}
	return aborted, b.saveRollback(ctx, s, rollbackRow{GivenUpTo: a.size, GivenUpAt: b.now().UTC()})
}

// fillLost appends an entry of the type log.lost for every number up to size
// that the log does not have.
func (b *backend) fillLost(ctx context.Context, s logical.Storage, size uint64) error {
	for {
		h, err := b.heads(ctx, s, false)
		if err != nil || h.Size >= size {
			return err
		}
		lost := make([]audit.Event, min(size-h.Size, lostAtOnce))
		for i := range lost {
			lost[i] = audit.Event{Type: "log.lost", Essential: true}
		}
		if _, err := b.record(ctx, s, lost...); err != nil {
			return err
		}
	}
}

// raiseFloors makes a policy and an overlay necessary that are at least as new as
// the newest that ever were in force. If they are not the present ones, nothing is
// decided until they are uploaded. An overlay that was removed in the history that
// is lost has to be removed again.
func (b *backend) raiseFloors(ctx context.Context, s logical.Storage, a attestation) error {
	b.policy.changing.Lock()
	defer b.policy.changing.Unlock()
	row, err := b.policyRow(ctx, s)
	if err != nil {
		return unavailable(err)
	}
	next := row
	// A sequence is taken once, so a floor is just below the one that may come.
	if a.policy > row.Sequence {
		next = policyRow{Sequence: a.policy - 1, Previous: cmp.Or(row.Digest, row.Previous), Overlay: row.Overlay, Shadow: row.Shadow}
	}
	if a.overlay > row.Overlay.Sequence {
		next.Overlay = overlayRow{Sequence: a.overlay - 1, Previous: cmp.Or(row.Overlay.Digest, row.Overlay.Previous), Awaited: true}
	}
	if next == row {
		return nil
	}
	defer b.nouns.policy.drop()
	if err := put(ctx, s, storePolicy, next); err != nil {
		return unavailable(err)
	}
	return nil
}

func (b *backend) abortAll(ctx context.Context, s logical.Storage, a attestation) (n int, err error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return 0, err
	}
	for _, r := range x.list() {
		if !r.waiting() {
			continue
		}
		_, err := b.endRun(ctx, s, r.ID, sealed.RunAborted, a.by, "the mount was restored from a snapshot", runRow.waiting)
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
