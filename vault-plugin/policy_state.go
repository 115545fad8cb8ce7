package vaultplugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

const (
	// maxBundle bounds an uploaded bundle, in bytes.
	maxBundle = 1 << 20
	// bundleChunk keeps each storage entry of a bundle, base64 in JSON, well
	// below raft's limit of 1 MiB.
	bundleChunk = 384 << 10
)

// storePolicyKeys holds the PEM public keys that bundles are checked against.
const storePolicyKeys = "policy/keys"

// policyState serializes changes of the policy. The zero value is ready.
type policyState struct {
	changing sync.Mutex
	trials   trials
}

// policyRow names the bundle in force, the overlay over it, and the bundle on trial
// beside it. Its write is the activation. Sequence never falls: it is the floor for
// the next bundle.
type policyRow struct {
	Digest      sealed.Digest `json:"digest"`
	Sequence    uint64        `json:"sequence"`
	Expires     time.Time     `json:"expires"`
	ActivatedAt time.Time     `json:"activated_at"`
	Previous    sealed.Digest `json:"previous,omitempty"`
	Overlay     overlayRow    `json:"overlay,omitzero"`
	Shadow      *shadowRow    `json:"shadow,omitempty"` // never changed in place
}

// policyKeys are trusted to sign bundles. Version rises with every change.
type policyKeys struct {
	Version int               `json:"version"`
	Keys    map[string]string `json:"keys"` // id → PEM
}

// bundlePart is one chunk of a stored bundle.
type bundlePart struct {
	Of   int    `json:"of"` // number of parts
	Data []byte `json:"data"`
}

// inForce returns the bundle that a row names, without its overlay, or
// sealed.ErrUnavailable when there is none.
func (b *backend) inForce(ctx context.Context, s logical.Storage, row policyRow) (Bundle, error) {
	if row.Digest == "" {
		return nil, fmt.Errorf("loading policy: no bundle was uploaded: %w", sealed.ErrUnavailable)
	}
	bundle, err := b.bundleByDigest(ctx, s, row.Digest)
	if err != nil {
		return nil, err
	}
	if bundle.Ref().Sequence != row.Sequence {
		return nil, fmt.Errorf("loading policy: the stored bundle has another sequence: %w", sealed.ErrUnavailable)
	}
	return bundle, nil
}

// policyRow returns what is in force; the zero row means nothing.
func (b *backend) policyRow(ctx context.Context, s logical.Storage) (policyRow, error) {
	return b.nouns.policy.get("", func() (row policyRow, err error) {
		_, err = get(ctx, s, storePolicy, &row)
		return row, err
	})
}

// bundleByDigest returns a stored bundle, verified again against the policy
// keys of now (a key that was removed takes its bundles with it) and against
// its digest (E16). It is sealed.ErrUnavailable when it is not there.
func (b *backend) bundleByDigest(ctx context.Context, s logical.Storage, d sealed.Digest) (Bundle, error) {
	return b.nouns.bundles.get(string(d), func() (Bundle, error) { return b.openStored(ctx, s, storeBundles, d) })
}

// openStored reads, checks and compiles what is stored under a prefix.
func (b *backend) openStored(ctx context.Context, s logical.Storage, under string, d sealed.Digest) (Bundle, error) {
	if err := d.Validate("bundle"); err != nil {
		return nil, err
	}
	raw, err := loadBundle(ctx, s, under, d)
	if err != nil {
		return nil, err
	}
	if digestOfBundle(raw) != d {
		return nil, fmt.Errorf("loading policy bundle: digest mismatch: %w", sealed.ErrUnavailable)
	}
	keys, err := loadPolicyKeys(ctx, s)
	if err != nil {
		return nil, err
	}
	bundle, err := b.deps.OpenBundle(ctx, raw, keys.Keys)
	if err != nil {
		return nil, fmt.Errorf("opening stored policy bundle: %w: %w", sealed.ErrUnavailable, err)
	}
	if bundle.Ref().Digest != d {
		return nil, fmt.Errorf("opening stored policy bundle: digest mismatch: %w", sealed.ErrUnavailable)
	}
	if bundle.IsOverlay() != (under == storeOverlays) {
		return nil, fmt.Errorf("opening stored policy bundle: it lies in the wrong place: %w", sealed.ErrUnavailable)
	}
	return bundle, nil
}

func digestOfBundle(raw []byte) sealed.Digest {
	sum := sha256.Sum256(raw)
	return sealed.Digest(hex.EncodeToString(sum[:]))
}

func loadPolicyKeys(ctx context.Context, s logical.Storage) (policyKeys, error) {
	var keys policyKeys
	_, err := get(ctx, s, storePolicyKeys, &keys)
	return keys, err
}

// storeBundle writes a bundle in parts. Nothing refers to it until policyRow
// does, so an interrupted write is only garbage.
func storeBundle(ctx context.Context, s logical.Storage, d sealed.Digest, raw []byte) error {
	return storeParts(ctx, s, storeBundles, d, raw)
}

func storeParts(ctx context.Context, s logical.Storage, under string, d sealed.Digest, raw []byte) error {
	of := (len(raw) + bundleChunk - 1) / bundleChunk
	for i := range of {
		part := bundlePart{Of: of, Data: raw[i*bundleChunk : min((i+1)*bundleChunk, len(raw))]}
		if err := put(ctx, s, partUnder(under, d, i), part); err != nil {
			return err
		}
	}
	return nil
}

func loadBundle(ctx context.Context, s logical.Storage, under string, d sealed.Digest) ([]byte, error) {
	var raw []byte
	for i, of := 0, 1; i < of; i++ {
		var part bundlePart
		ok, err := get(ctx, s, partUnder(under, d, i), &part)
		if err != nil {
			return nil, err
		}
		if !ok || part.Of < 1 || part.Of > maxBundle/bundleChunk+1 {
			return nil, fmt.Errorf("loading policy bundle: not stored: %w", sealed.ErrUnavailable)
		}
		raw, of = append(raw, part.Data...), part.Of
	}
	return raw, nil
}

func partKey(d sealed.Digest, i int) string { return partUnder(storeBundles, d, i) }

func partUnder(under string, d sealed.Digest, i int) string {
	return under + string(d) + "/" + strconv.Itoa(i)
}

// sweepBundles deletes stored bundles and overlays that are neither in force, nor
// the one before (a run may be pinning it just now), nor pinned by a live run, and
// shadows that are not on trial.
func (b *backend) sweepBundles(ctx context.Context, s logical.Storage) error {
	b.policy.changing.Lock()
	defer b.policy.changing.Unlock()
	row, err := b.policyRow(ctx, s)
	if err != nil {
		return err
	}
	if err := sweepShadows(ctx, s, row); err != nil {
		return err
	}
	if err := b.sweepUnder(ctx, s, storeBundles, row.Digest, row.Previous); err != nil {
		return err
	}
	return b.sweepUnder(ctx, s, storeOverlays, row.Overlay.Digest, row.Overlay.Previous)
}

// sweepUnder deletes what is stored under a prefix, but for two and what live runs pin.
func (b *backend) sweepUnder(ctx context.Context, s logical.Storage, under string, current, previous sealed.Digest) error {
	names, err := s.List(ctx, under)
	if err != nil {
		return fmt.Errorf("listing bundles: %w", err)
	}
	for _, name := range names {
		d := sealed.Digest(strings.TrimSuffix(name, "/"))
		if d == current || d == previous {
			continue
		}
		pinned, err := b.livePins(ctx, s, d)
		if err != nil || pinned {
			continue // what is not known to be unused stays
		}
		if err := deleteAll(ctx, s, under+name); err != nil {
			return err
		}
	}
	return nil
}

// deleteAll removes every object directly under a prefix.
func deleteAll(ctx context.Context, s logical.Storage, prefix string) error {
	names, err := s.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("listing %s: %w", prefix, err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			continue
		}
		if err := s.Delete(ctx, prefix+name); err != nil {
			return fmt.Errorf("deleting %s: %w", prefix+name, err)
		}
	}
	return nil
}
