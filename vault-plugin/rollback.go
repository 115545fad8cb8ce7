package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// A snapshot of Vault that was restored takes everything back: the log, the
// floor of the policy's sequence, approvals and tickets that were used up,
// revocations. The engine can't see that in its own storage, which is consistent
// in itself. It is seen from outside: whoever holds a checkpoint that the log's
// key has signed, and that is not a prefix of the log as it is now, holds the
// proof that storage went back. Such checkpoints are what callers saw last and
// kept; they present them at log/seen, sealedctl before every run.
//
// From the first such proof on the mount is rolled back. That is durable, and
// until somebody who configures the mount attests the restore, the engine does
// what stops and nothing else (see stops): it issues nothing, renews nothing,
// starts nothing, takes no vote and no policy.
//
// What this does not guarantee: a restore that nobody presents a proof of stays
// unseen. Nobody can make a false one without the log's key, so presenting is
// no way to stop a mount that was not restored.

// storeRollback holds the rollbackRow.
const storeRollback = "rollback"

// A rollbackRow is what the mount knows about restores of its storage. The zero
// row is a mount without any.
type rollbackRow struct {
	Seen *sighting `json:"seen,omitempty"` // not nil: rolled back

	// GivenUpTo is the size of the longest history that was attested to be gone,
	// and GivenUpAt when. No checkpoint since then is as small.
	GivenUpTo uint64    `json:"given_up_to,omitempty"`
	GivenUpAt time.Time `json:"given_up_at"`
}

// A sighting is a proof that storage went back: two heads signed by the log's
// key of which the first is no prefix of the second.
type sighting struct {
	Lost         string    `json:"lost"` // signed note
	LostSize     uint64    `json:"lost_size"`
	Restored     string    `json:"restored"` // signed note; what storage held when Lost was presented
	RestoredSize uint64    `json:"restored_size"`
	At           time.Time `json:"at"`
	By           string    `json:"by"` // entity of who presented it
}

// rollbackState is what the engine keeps in memory of restores. The zero value is
// ready.
type rollbackState struct {
	changing sync.Mutex // of the row
	row      cache[rollbackRow]
}

func (b *backend) rollbackRow(ctx context.Context, s logical.Storage) (rollbackRow, error) {
	return b.restore.row.get("", func() (row rollbackRow, err error) {
		_, err = get(ctx, s, storeRollback, &row)
		return row, err
	})
}

func (b *backend) saveRollback(ctx context.Context, s logical.Storage, row rollbackRow) error {
	defer b.restore.row.drop()
	if err := put(ctx, s, storeRollback, row); err != nil {
		return unavailable(err)
	}
	return nil
}

// refuseRolledBack refuses what a mount that was rolled back does not do. It is
// asked before every request; the row is in memory.
func (b *backend) refuseRolledBack(ctx context.Context, req *logical.Request) error {
	switch req.Operation {
	case logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation, logical.DeleteOperation, logical.RenewOperation:
	default:
		if !issues(req.Path) {
			return nil
		}
	}
	if req.Operation != logical.RenewOperation && stops(req.Path) || b.mem.off.rollback {
		return nil
	}
	row, err := b.rollbackRow(ctx, req.Storage)
	if err != nil {
		return unavailable(err)
	}
	if row.Seen == nil {
		return nil
	}
	return fmt.Errorf("the mount's storage went back (a snapshot was restored): nothing is issued until config/attest-rollback: %w", sealed.ErrUnavailable)
}

// issues reports whether a read of path changes something: it gives a credential.
func issues(path string) bool {
	parts := strings.Split(path, "/")
	return len(parts) > 2 && parts[0] == "runs" && parts[2] == "creds"
}

// stops reports whether a write to path can only stop, end or tell something, or
// is how the mount is configured. Every other path is refused while the mount is
// rolled back, those that are added later too.
func stops(path string) bool {
	noun, rest, _ := strings.Cut(strings.TrimSuffix(path, "/"), "/")
	switch noun {
	case "config":
		return true
	case "log":
		return rest == "seen"
	case "revocations":
		return !strings.HasSuffix(rest, "/lift")
	case "approvals":
		return strings.HasSuffix(rest, "/deny")
	case "proposals":
		return strings.HasSuffix(rest, "/reject")
	case "runs":
		_, act, _ := strings.Cut(rest, "/")
		switch act {
		case "confirm", "watch", "events", "head", "finish", "close", "stop":
			return true
		}
	}
	return false
}

// A heads is the log's newest checkpoint, and the key that both it and whatever
// is compared with it have to be signed by.
type heads struct {
	log      *audit.Log
	verifier note.Verifier
	text     []byte
	audit.Checkpoint
}

func (b *backend) heads(ctx context.Context, s logical.Storage, again bool) (h heads, err error) {
	keys, err := b.engineKeys(ctx, s)
	if err != nil {
		return h, err
	}
	if h.verifier, err = note.NewVerifier(keys.logVerifier); err != nil {
		return h, fmt.Errorf("reading log key: %w", err)
	}
	if h.log, err = b.auditLog(ctx, s); err != nil {
		return h, err
	}
	if again {
		h.log.Reload(ctx)
	}
	if h.text, err = h.log.Checkpoint(ctx); err != nil {
		return h, unavailable(err)
	}
	if len(h.text) == 0 {
		return h, nil
	}
	if h.Checkpoint, err = audit.OpenCheckpoint(h.text, h.verifier); err != nil {
		return h, fmt.Errorf("opening checkpoint: %w", err)
	}
	return h, nil
}

// continues returns the proof that the log continues a checkpoint. Without one
// the error matches audit.ErrInconsistent.
func (h heads) continues(ctx context.Context, seen []byte, size uint64) ([]audit.Hash, error) {
	if size > h.Size {
		return nil, fmt.Errorf("%w: it has %d entries, the log %d", audit.ErrInconsistent, size, h.Size)
	}
	proof, err := h.log.ConsistencyProof(ctx, size, h.Size)
	if err != nil {
		return nil, unavailable(err)
	}
	return proof, audit.CheckConsistency(seen, h.text, proof, h.verifier)
}

// seen compares a checkpoint that a caller kept with the log. If it proves that
// storage went back, the mount is rolled back from here on.
//
// What is in memory is not trusted for that verdict: storage is read again. And
// the verdict counts once its write was acknowledged, which it is only for the
// node that leads: one that was cut off, and may be behind, can't write it.
func (b *backend) seen(ctx context.Context, s logical.Storage, text []byte, by string) (heads, []audit.Hash, error) {
	h, err := b.heads(ctx, s, false)
	if err != nil {
		return h, nil, err
	}
	c, err := audit.OpenCheckpoint(text, h.verifier)
	if err != nil {
		return h, nil, invalid("checkpoint", "is not one that this log's key has signed")
	}
	proof, err := h.continues(ctx, text, c.Size)
	if !errors.Is(err, audit.ErrInconsistent) {
		return h, proof, err
	}
	b.restore.changing.Lock()
	defer b.restore.changing.Unlock()
	if h, err = b.heads(ctx, s, true); err != nil {
		return h, nil, err
	}
	if proof, err = h.continues(ctx, text, c.Size); !errors.Is(err, audit.ErrInconsistent) {
		return h, proof, err
	}
	return h, nil, b.markRolledBack(ctx, s, sighting{
		Lost: string(text), LostSize: c.Size, Restored: string(h.text), RestoredSize: h.Size, At: b.now().UTC(), By: by,
	})
}

// markRolledBack stores a sighting, unless it is of a history that was given up.
// It keeps the longest, which names most of what was lost. It never returns nil.
func (b *backend) markRolledBack(ctx context.Context, s logical.Storage, got sighting) error {
	row, err := b.rollbackRow(ctx, s)
	if err != nil {
		return unavailable(err)
	}
	if got.LostSize <= row.GivenUpTo {
		return fmt.Errorf("the checkpoint is of a history that was given up on %s: forget it: %w", row.GivenUpAt.Format(time.RFC3339), sealed.ErrConflict)
	}
	if row.Seen == nil || got.LostSize > row.Seen.LostSize {
		b.Logger().Error("the log's storage went back: nothing is issued until it is attested",
			"lost_size", got.LostSize, "size", got.RestoredSize, "presented_by", got.By)
		row.Seen = &got
		if err := b.saveRollback(ctx, s, row); err != nil {
			return err
		}
	}
	return fmt.Errorf("the log went back: %d entries were seen of which it does not have all; nothing is issued until config/attest-rollback: %w", got.LostSize, sealed.ErrUnavailable)
}
