package opabundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/storage"

	"sealed.dev/sealed/internal/sealed"
)

// An Inspection is a bundle in the hands of somebody who writes policies, or
// who checks what a policy once decided. Its signature was NOT looked at:
// whoever made the bytes decides what it answers. It is a type of its own so
// that it can't be taken for a Bundle that Open has verified. Compare Ref().Digest
// with a digest that you have reason to believe. It is immutable and safe for
// concurrent use.
type Inspection struct {
	b        *Bundle
	compiler *ast.Compiler // with METADATA, for Explain
	store    storage.Store
}

// Inspect opens a bundle, signed or not, with every check of Open but that of
// the signature. Errors are those of Open.
func Inspect(ctx context.Context, raw []byte, limits Limits) (*Inspection, error) {
	limits = limits.withDefaults()
	files, err := readArchive(raw, limits)
	if err != nil {
		return nil, fmt.Errorf("inspecting bundle: %w", err)
	}
	files, _, _ = without(files, signaturesName)
	b, err := load(ctx, files, nil, limits)
	if err != nil {
		return nil, fmt.Errorf("inspecting bundle: %w", err)
	}
	sum := sha256.Sum256(raw)
	b.ref.Digest = sealed.Digest(hex.EncodeToString(sum[:]))
	parsed, err := bundle.NewCustomReader(&memory{files: files}).
		WithLazyLoadingMode(false).
		WithCapabilities(capabilities()).
		WithRegoVersion(ast.RegoV1).
		WithProcessAnnotations(true).
		Read()
	if err != nil {
		return nil, fmt.Errorf("inspecting bundle: %w: %w", ErrMalformed, err)
	}
	compiler, store, err := compile(ctx, parsed)
	if err != nil {
		return nil, fmt.Errorf("inspecting bundle: %w", err)
	}
	return &Inspection{b: b, compiler: compiler, store: store}, nil
}

// Decide answers like (*Bundle).Decide.
func (i *Inspection) Decide(ctx context.Context, question string, input any, at time.Time) sealed.Decision {
	return i.b.Decide(ctx, question, input, at)
}

// Ref returns the plain SHA-256 of the bytes, signature included, and the sequence.
func (i *Inspection) Ref() sealed.BundleRef { return i.b.Ref() }

// Revision returns the free text that the builder gave the bundle.
func (i *Inspection) Revision() string { return i.b.Revision() }

// Expires returns the moment from which Decide denies.
func (i *Inspection) Expires() time.Time { return i.b.Expires() }

// IsOverlay reports whether it is made to be laid over another bundle.
func (i *Inspection) IsOverlay() bool { return i.b.IsOverlay() }
