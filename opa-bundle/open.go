package opabundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader/filter"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"sealed.dev/sealed/internal/sealed"
)

// Open verifies and compiles a signed bundle. An error wraps ErrUnsigned,
// ErrSignature, ErrMalformed or ErrCapability, or is the context's; then there
// is no bundle and the caller keeps the one it has.
//
// An expired bundle opens, so that it can be inspected and replayed; Decide
// denies after Expires. Open does not compare sequences: the caller holds the
// floor. raw is not kept and not changed.
func Open(ctx context.Context, raw []byte, opts Options) (*Bundle, error) {
	limits := opts.Limits.withDefaults()
	files, err := readArchive(raw, limits)
	if err != nil {
		return nil, fmt.Errorf("opening bundle: %w", err)
	}
	files, cfg, err := verifySignature(files, opts.Keys)
	if err != nil {
		return nil, fmt.Errorf("opening bundle: %w", err)
	}
	b, err := load(ctx, files, cfg, limits)
	if err != nil {
		return nil, fmt.Errorf("opening bundle: %w", err)
	}
	sum := sha256.Sum256(raw)
	b.ref.Digest = sealed.Digest(hex.EncodeToString(sum[:]))
	return b, nil
}

// load parses, compiles and prepares files. With a nil cfg the files must
// carry no signature; only Build, before anything is signed, calls it so.
func load(ctx context.Context, files []file, cfg *bundle.VerificationConfig, limits Limits) (*Bundle, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	_, data, found := without(files, manifestName)
	if !found {
		return nil, fmt.Errorf("%w: no %s", ErrMalformed, manifestName)
	}
	m, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	parsed, err := parse(files, cfg)
	if err != nil {
		return nil, err
	}
	compiler, store, err := compile(ctx, parsed)
	if err != nil {
		return nil, err
	}
	queries, err := prepare(compiler, store, wordsOf(compiler, parsed.Data))
	if err != nil {
		return nil, err
	}
	return &Bundle{ref: sealed.BundleRef{Sequence: m.Sequence}, revision: m.Revision, expires: m.Expires, overlay: m.Overlay, limits: limits, queries: queries}, nil
}

// parse gives the files to OPA's reader, which checks roots and, with cfg, the
// signature once more.
func parse(files []file, cfg *bundle.VerificationConfig) (bundle.Bundle, error) {
	for _, f := range files {
		if path.Base(f.name) == dataName {
			if _, err := parseJSON(f.data); err != nil {
				return bundle.Bundle{}, fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	b, err := bundle.NewCustomReader(&memory{files: files}).
		WithBundleVerificationConfig(cfg).
		WithLazyLoadingMode(false).
		WithCapabilities(capabilities()).
		WithRegoVersion(ast.RegoV1).
		Read()
	if err != nil {
		return bundle.Bundle{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if b.Type() != bundle.SnapshotBundleType {
		return bundle.Bundle{}, fmt.Errorf("%w: not a snapshot", ErrMalformed)
	}
	return b, nil
}

func compile(ctx context.Context, b bundle.Bundle) (*ast.Compiler, storage.Store, error) {
	modules := make(map[string]*ast.Module, len(b.Modules))
	for _, m := range b.Modules {
		modules[m.Path] = m.Parsed
	}
	// The store holds the bundle's data and is never written.
	store := inmem.NewFromObjectWithOpts(b.Data, inmem.OptRoundTripOnWrite(false))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer store.Abort(ctx, txn)
	compiler := ast.NewCompiler().
		WithCapabilities(capabilities()).
		WithStrict(true).
		WithPathConflictsCheck(storage.NonEmpty(ctx, store, txn)) // data can't stand in for a rule
	if compiler.Compile(modules); compiler.Failed() {
		if name := forbiddenBuiltin(modules); name != "" {
			return nil, nil, fmt.Errorf("%w: %s: %w", ErrCapability, name, compiler.Errors)
		}
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, compiler.Errors)
	}
	return compiler, store, nil
}

// prepare makes one query per question. Every bundle answers the first two.
func prepare(compiler *ast.Compiler, store storage.Store, known words) (map[string]*query, error) {
	queries := map[string]*query{}
	for i, question := range []string{sealed.QuestionAuthz, sealed.QuestionApproval, QuestionDispatch, QuestionDirective} {
		ref, err := ast.ParseRef("data." + question)
		if err != nil {
			return nil, fmt.Errorf("preparing %s: %w", question, err)
		}
		if i >= 2 && len(compiler.GetRulesExact(ref)) == 0 {
			continue
		}
		if queries[question], err = newQuery(compiler, store, known, ref); err != nil {
			return nil, err
		}
	}
	return queries, nil
}

// memory is a bundle.DirectoryLoader over files that are already checked, so
// that no second tar reader sees the archive.
type memory struct{ files []file }

// NextFile returns the files in order, then io.EOF.
func (m *memory) NextFile() (*bundle.Descriptor, error) {
	if len(m.files) == 0 {
		return nil, io.EOF
	}
	f := m.files[0]
	m.files = m.files[1:]
	return bundle.NewDescriptor(f.name, f.name, bytes.NewBuffer(f.data)), nil
}

// The remaining methods satisfy bundle.DirectoryLoader. There is nothing to
// configure: names are checked and sizes bounded already.

func (m *memory) WithFilter(filter.LoaderFilter) bundle.DirectoryLoader   { return m }
func (m *memory) WithPathFormat(bundle.PathFormat) bundle.DirectoryLoader { return m }
func (m *memory) WithSizeLimitBytes(int64) bundle.DirectoryLoader         { return m }
func (m *memory) WithFollowSymlinks(bool) bundle.DirectoryLoader          { return m }
