package vaultplugin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// revocationRow is a revocation as stored. It is never deleted: the epoch of
// the mount is the highest epoch any row names, so that revoking and lifting
// cost one storage write each and the epoch can't fall.
type revocationRow struct {
	sealed.Revocation
	Lifted *lift `json:"lifted,omitempty"`
}

// A lift ends a revocation. It is an act of its own.
type lift struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Epoch  uint64    `json:"epoch"`
	At     time.Time `json:"at"`
}

// revocationState is every revocation of the mount, in memory. The zero value
// is "not loaded".
type revocationState struct {
	// writing is held by whoever loads or changes, across the mount's own
	// storage. Readers of loaded state never wait for it.
	writing sync.Mutex

	mu       sync.Mutex
	loaded   bool
	epoch    uint64
	standing []sealed.Revocation // hard ones first, then by epoch
	changed  chan struct{}       // closed at the next epoch
	// enforce holds hard revocations whose effect on runs and grants is not
	// known to be complete; after a restart, every standing one.
	enforce map[string]sealed.Revocation
	// unlogged are events whose append failed: stopping did not wait for it.
	unlogged []unloggedStop
}

// An unloggedStop is a revocation or lift still to be logged.
type unloggedStop struct {
	typ  string
	body map[string]any
}

// invalidate forgets the rows. Waiters are woken, to look again.
func (r *revocationState) invalidate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded = false
	r.wake()
}

// wake closes the channel of the waiters. The caller holds mu.
func (r *revocationState) wake() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// set replaces the state after a load or a change. The epoch never falls.
func (r *revocationState) set(epoch uint64, standing []sealed.Revocation) {
	slices.SortFunc(standing, func(a, b sealed.Revocation) int {
		if a.Hard != b.Hard {
			if a.Hard {
				return -1
			}
			return 1
		}
		return int(int64(a.Epoch) - int64(b.Epoch))
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if epoch > r.epoch {
		r.epoch = epoch
		r.wake()
	}
	r.loaded, r.standing = true, standing
}

// snapshot returns the state if it is loaded. The slice is not to be changed.
func (r *revocationState) snapshot() (epoch uint64, standing []sealed.Revocation, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch, r.standing, r.loaded
}

// stopped returns epoch and standing revocations, loading them if need be.
func (b *backend) stopped(ctx context.Context, s logical.Storage) (uint64, []sealed.Revocation, error) {
	if epoch, standing, ok := b.stops.snapshot(); ok {
		return epoch, standing, nil
	}
	b.stops.writing.Lock()
	defer b.stops.writing.Unlock()
	return b.loadStops(ctx, s)
}

// loadStops loads unless somebody else has. The caller holds writing. One row
// that can't be read fails the load, and with it everything that asks: what
// can't be read could be the no that matters.
func (b *backend) loadStops(ctx context.Context, s logical.Storage) (uint64, []sealed.Revocation, error) {
	if epoch, standing, ok := b.stops.snapshot(); ok {
		return epoch, standing, nil
	}
	names, err := s.List(ctx, storeRevocations)
	if err != nil {
		return 0, nil, fmt.Errorf("loading revocations: %w: %w", sealed.ErrUnavailable, err)
	}
	var epoch uint64
	var standing []sealed.Revocation
	for _, name := range names {
		row, err := loadRevocation(ctx, s, name)
		if err != nil {
			return 0, nil, fmt.Errorf("loading revocations: %w: %w", sealed.ErrUnavailable, err)
		}
		epoch = max(epoch, row.Epoch)
		if row.Lifted != nil {
			epoch = max(epoch, row.Lifted.Epoch)
			continue
		}
		standing = append(standing, row.Revocation)
	}
	b.stops.set(epoch, standing)
	b.stops.owe(standing...)
	epoch, standing, _ = b.stops.snapshot()
	return epoch, standing, nil
}

// loadRevocation reads one row; a missing one is sealed.ErrNotFound.
func loadRevocation(ctx context.Context, s logical.Storage, id string) (revocationRow, error) {
	var row revocationRow
	ok, err := get(ctx, s, storeRevocations+id, &row)
	if err != nil {
		return row, err
	}
	if !ok || strings.HasSuffix(id, "/") {
		return row, fmt.Errorf("reading revocation: %w", sealed.ErrNotFound)
	}
	if row.ID != id || row.Epoch == 0 || row.Kind == "" {
		return row, fmt.Errorf("decoding stored %s: malformed", storeRevocations+id)
	}
	return row, nil
}

// owe notes that hard revocations have yet to be carried out.
func (r *revocationState) owe(rs ...sealed.Revocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.enforce == nil {
		r.enforce = make(map[string]sealed.Revocation)
	}
	for _, rev := range rs {
		if rev.Hard {
			r.enforce[rev.ID] = rev
		}
	}
}

// paid notes that one has been carried out or lifted.
func (r *revocationState) paid(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.enforce, id)
}

// epoch returns the revocation epoch, which rises with every revocation and
// every lift.
func (b *backend) epoch(ctx context.Context, s logical.Storage) (uint64, error) {
	epoch, _, err := b.stopped(ctx, s)
	return epoch, err
}

// revoked returns the first standing revocation that covers sub, hard ones
// first, or nil.
func (b *backend) revoked(ctx context.Context, s logical.Storage, sub sealed.Subject) (*sealed.Revocation, error) {
	_, standing, err := b.stopped(ctx, s)
	if err != nil {
		return nil, err
	}
	for i := range standing {
		if standing[i].Covers(sub) {
			r := standing[i]
			return &r, nil
		}
	}
	return nil, nil
}

// epochChanged returns a channel that is closed when the epoch next rises (or
// when caches were dropped). Take it before reading the epoch.
func (b *backend) epochChanged() <-chan struct{} {
	b.stops.mu.Lock()
	defer b.stops.mu.Unlock()
	if b.stops.changed == nil {
		b.stops.changed = make(chan struct{})
	}
	return b.stops.changed
}

// writeStop writes one revocation row with the next epoch and publishes it.
// change gets the epoch and fills the row. After a storage error the state is
// read again: the write may have happened.
func (b *backend) writeStop(ctx context.Context, s logical.Storage, change func(epoch uint64) (revocationRow, error)) (revocationRow, error) {
	b.stops.writing.Lock()
	defer b.stops.writing.Unlock()
	epoch, standing, err := b.loadStops(ctx, s)
	if err != nil {
		return revocationRow{}, err
	}
	row, err := change(epoch + 1)
	if err != nil {
		return revocationRow{}, err
	}
	if err := put(ctx, s, storeRevocations+row.ID, row); err != nil {
		b.stops.invalidate()
		return revocationRow{}, fmt.Errorf("storing revocation: %w: %w", sealed.ErrUnavailable, err)
	}
	standing = slices.DeleteFunc(slices.Clone(standing), func(r sealed.Revocation) bool { return r.ID == row.ID })
	if row.Lifted == nil {
		standing = append(standing, row.Revocation)
		b.stops.owe(row.Revocation)
	} else {
		b.stops.paid(row.ID)
	}
	b.stops.set(epoch+1, standing)
	return row, nil
}
