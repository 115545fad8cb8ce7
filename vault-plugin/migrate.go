package vaultplugin

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// storeVersion says which version the layout of the mount's storage has. A mount
// that was configured before there was such a row has version 0.
const storeVersion = "storage-version"

// storageVersion is the layout that this program reads and writes. See store.go.
const storageVersion = 3

// A versionRow is stored under storeVersion.
type versionRow struct {
	Version int `json:"version"`
}

// A migration brings storage from one version to the next. It may be killed at
// any moment and is then run again from its beginning.
type migration func(ctx context.Context, s logical.Storage) error

// migrations are the steps, by the version that they start from.
func migrations() []migration {
	return []migration{
		0: same, // the row itself
		1: same, // journals of the log may carry rows of intents, and versions of values may be ids
		2: same, // the policy may have an overlay, which an older program would not ask
	}
}

// same is for what this program reads as it is, and an older one would not.
func same(context.Context, logical.Storage) error { return nil }

// A layout knows whether storage was brought to this program's version. The zero
// layout does not. It is safe for concurrent use.
type layout struct {
	mu   sync.Mutex
	done bool
}

// ready brings storage to storageVersion, once; afterwards it costs no storage
// operation. It comes before every request and every round of the worker, not at
// unseal, where nothing may be read. Storage of a newer version is refused with
// sealed.ErrUnavailable, as a whole: what this program does not know, it could
// only damage. A node that may not write leaves it to the one that may: logical.ErrReadOnly.
func (l *layout) ready(ctx context.Context, b *backend, s logical.Storage) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return nil
	}
	var row versionRow
	if _, err := get(ctx, s, storeVersion, &row); err != nil {
		return unavailable(err)
	}
	switch {
	case row.Version > storageVersion:
		return fmt.Errorf("the mount's storage has version %d, this plug-in (%s) knows %d: install the newer plug-in again: %w",
			row.Version, Version, storageVersion, sealed.ErrUnavailable)
	case row.Version < 0:
		return fmt.Errorf("decoding stored %s: malformed", storeVersion)
	}
	configured := row.Version > 0
	if !configured {
		e, err := s.Get(ctx, storeConfig)
		if err != nil {
			return unavailable(fmt.Errorf("reading %s: %w", storeConfig, err))
		}
		configured = e != nil
	}
	if !configured {
		return nil // an empty mount; its first configuration writes the row
	}
	if row.Version < storageVersion {
		if !b.WriteSafeReplicationState() {
			return logical.ErrReadOnly // as it is: Vault forwards the request then
		}
		if err := migrate(ctx, s, row.Version, migrations()); err != nil {
			return unavailable(err)
		}
		b.Logger().Info("storage migrated", "from", row.Version, "to", storageVersion)
	}
	l.done = true
	return nil
}

// migrate takes every step from a version on, and stores each new version.
func migrate(ctx context.Context, s logical.Storage, from int, steps []migration) error {
	for v := from; v < len(steps); v++ {
		if err := steps[v](ctx, s); err != nil {
			return fmt.Errorf("migrating storage from version %d: %w", v, err)
		}
		if err := put(ctx, s, storeVersion, versionRow{Version: v + 1}); err != nil {
			return err
		}
	}
	return nil
}

// drop makes the next call look again.
func (l *layout) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = false
}
