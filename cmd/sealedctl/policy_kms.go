package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"sealed.dev/sealed/internal/sealed"
)

// A kmsSigner signs with a key that stays in a key management system, through
// sigstore's plugin for it: a program sigstore-kms-SCHEME in PATH, which is
// trusted with the login, never with the key. It gets a digest, and what it
// answers is verified by who asked.
type kmsSigner struct {
	ctx    context.Context
	key    signature.Signer
	public crypto.PublicKey
}

var kmsSchemeRE = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// newKMSSigner takes a key reference as sigstore's tools do, such as
// awskms:///alias/policy. The errors match sealed.ErrInvalid or
// sealed.ErrUnavailable.
func newKMSSigner(ctx context.Context, uri string) (*kmsSigner, error) {
	scheme, key, _ := strings.Cut(uri, "://")
	if !kmsSchemeRE.MatchString(scheme) || key == "" {
		return nil, fmt.Errorf("using the key: %w", &sealed.FieldError{Field: "key", Reason: "wants a file, or SCHEME://KEY of a key management system"})
	}
	program := cliplugin.PluginBinaryPrefix + scheme
	sv, err := cliplugin.LoadSignerVerifier(ctx, uri, crypto.SHA256)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, &hintError{err: fmt.Errorf("using the key: there is no %s in PATH: %w", program, sealed.ErrUnavailable), hint: "install " + program + ", sigstore's plugin for " + scheme}
	}
	if err != nil {
		return nil, fmt.Errorf("using the key: %w: %w", err, sealed.ErrUnavailable)
	}
	public, err := sv.PublicKey(options.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading the public key from %s: %w: %w", program, err, sealed.ErrUnavailable)
	}
	return &kmsSigner{ctx: ctx, key: sv, public: public}, nil
}

// Public implements crypto.Signer.
func (s *kmsSigner) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer.
func (s *kmsSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := s.key.SignMessage(strings.NewReader(""), options.WithContext(s.ctx), options.WithDigest(digest), options.WithCryptoSignerOpts(opts))
	if err != nil {
		return nil, fmt.Errorf("signing in the key management system: %w: %w", err, sealed.ErrUnavailable)
	}
	return sig, nil
}
