package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

// Storage layout. Every object is JSON written in one Put.
const (
	storeConfig      = "config"
	storeKeys        = "keys" // answer key, log key; seal-wrapped
	storeTrustBundle = "trust-bundle"
	storePolicy      = "policy/current"
	storeBundles     = "policy/bundle/"     // <digest>: raw bundle, kept while a run pins it
	storeSources     = "source/"            // <name>: sealed.SourceConfig
	storeSourceCreds = "source-credential/" // <name>; seal-wrapped
	storeSecrets     = "secret/"            // <path>/<version>; seal-wrapped
	storeSecretMeta  = "secret-meta/"       // <path>
	storeAgents      = "agent/"             // <name>
	storeProfiles    = "profile/"           // <level>/<name>/<version>; "current" names the newest
	storeRuns        = "run/"               // <id>: runRow
	storeIdempotency = "idempotency/"       // <sha256 of requester and key>: run id
	storeGrants      = "grant/"             // <run>/<grant>: grantRow
	storeApprovals   = "approval/"          // <id>: approvalRow
	storeProposals   = "proposal/"          // <kind>/<id>: proposalRow
	storeReviews     = "review/"            // <grant>: sealed.Review, while it is open
	storeRevocations = "revocation/"        // <id>
	storeRecords     = "record/"            // <run>: DSSE envelope
	storeLog         = "log/"               // internal/audit
)

// put writes v as JSON in one storage operation.
func put(ctx context.Context, s logical.Storage, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", key, err)
	}
	if err := s.Put(ctx, &logical.StorageEntry{Key: key, Value: b}); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	return nil
}

// get reads key into v and reports whether it exists. Storage that does not
// decode is an error, never a zero value.
func get(ctx context.Context, s logical.Storage, key string, v any) (bool, error) {
	e, err := s.Get(ctx, key)
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", key, err)
	}
	if e == nil {
		return false, nil
	}
	if err := json.Unmarshal(e.Value, v); err != nil {
		return false, fmt.Errorf("decoding stored %s: malformed", key)
	}
	return true, nil
}

// logStorage gives internal/audit its corner of the mount.
type logStorage struct{ s logical.Storage }

func (l logStorage) Get(ctx context.Context, key string) ([]byte, error) {
	e, err := l.s.Get(ctx, storeLog+key)
	if err != nil || e == nil {
		return nil, err
	}
	return e.Value, nil
}

func (l logStorage) Put(ctx context.Context, key string, value []byte) error {
	return l.s.Put(ctx, &logical.StorageEntry{Key: storeLog + key, Value: value})
}

func (l logStorage) Delete(ctx context.Context, key string) error {
	return l.s.Delete(ctx, storeLog+key)
}

func (l logStorage) List(ctx context.Context, prefix string) ([]string, error) {
	return l.s.List(ctx, storeLog+prefix)
}

// lockTable is a fixed set of mutexes chosen by name, so that a lock costs no
// memory per run. Two names may share a mutex; never take two at once.
type lockTable struct {
	once sync.Once
	seed maphash.Seed
	mus  [256]sync.Mutex
}

// lock locks the mutex of name and returns its unlock.
func (t *lockTable) lock(name string) func() {
	t.once.Do(func() { t.seed = maphash.MakeSeed() })
	m := &t.mus[maphash.String(t.seed, name)%uint64(len(t.mus))]
	m.Lock()
	return m.Unlock
}
