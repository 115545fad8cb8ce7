package demo

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	"sealed.dev/sealed/rego"
)

// sameUIDRule is what the demo adds to the default policy on a machine without
// root, where every sandbox has the operator's uid.
const sameUIDRule = `package sealed.authz

_isolated if input.run.isolation == "same_uid"
`

// relax uploads the default policy with sameUIDRule added. Without it the
// policy refuses the key that a person is to allow, and rightly so.
func (s *show) relax(ctx context.Context) error {
	s.say("Without root a sandbox has the operator's uid, and the default policy gives it keys of low risk only.")
	s.say("For this demo one rule is added to it, signed and uploaded:\n\n%s", sameUIDRule)
	dir := filepath.Join(s.dir, "policy")
	if err := os.CopyFS(dir, rego.FS()); err != nil {
		return fmt.Errorf("copying the default policy: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sealed", "authz", "demo.rego"), []byte(sameUIDRule), 0o600); err != nil {
		return fmt.Errorf("writing the demo's rule: %w", err)
	}
	key, err := readKey(filepath.Join(s.dir, "dev", "private", "policy-key.pem"))
	if err != nil {
		return err
	}
	raw, err := opabundle.Build(ctx, os.DirFS(dir), opabundle.Manifest{Revision: "demo", Sequence: 2, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		return err
	}
	if raw, err = opabundle.Sign(ctx, raw, key, devstack.PolicyKeyID); err != nil {
		return err
	}
	_, err = s.admin.UploadPolicy(ctx, raw)
	return err
}

func readKey(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the policy key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("reading the policy key: no PEM: %w", sealed.ErrInvalid)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the policy key: %w", err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("reading the policy key: not a signing key: %w", sealed.ErrInvalid)
	}
	return signer, nil
}
