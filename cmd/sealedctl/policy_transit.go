package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"path"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// A transitSigner signs with a key that stays in Vault's transit engine. The
// token needs read on MOUNT/keys/NAME and update on MOUNT/sign/NAME/*. The
// answer is verified by whoever asked for it (opabundle.Sign does).
type transitSigner struct {
	ctx         context.Context // of the one signature that it is made for
	c           *vaultclient.Client
	mount, name string
	version     json.Number
	public      *ecdsa.PublicKey
}

// newTransitSigner reads the public half of the newest version of a key. Errors
// wrap sealed.ErrInvalid when it is not ecdsa-p256.
func newTransitSigner(ctx context.Context, c *vaultclient.Client, ref string) (*transitSigner, error) {
	mount, name := path.Split(ref)
	mount = strings.Trim(mount, "/")
	if mount == "" || name == "" || path.Clean(ref) != ref {
		return nil, usagef("--transit wants MOUNT/NAME, such as transit/policy")
	}
	data, err := c.Read(ctx, mount+"/keys/"+name, nil)
	if err != nil {
		return nil, fmt.Errorf("reading signing key: %w", err)
	}
	bad := fmt.Errorf("reading signing key %s: wants an ecdsa-p256 key: %w", ref, sealed.ErrInvalid)
	version, ok := data["latest_version"].(json.Number)
	if kind, _ := data["type"].(string); kind != "ecdsa-p256" || !ok {
		return nil, bad
	}
	versions, _ := data["keys"].(map[string]any)
	newest, _ := versions[version.String()].(map[string]any)
	text, _ := newest["public_key"].(string)
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, bad
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, bad
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, bad
	}
	return &transitSigner{ctx: ctx, c: c, mount: mount, name: name, version: version, public: public}, nil
}

// Public implements crypto.Signer.
func (s *transitSigner) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer for SHA-256. The signature is DER.
func (s *transitSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, fmt.Errorf("signing with transit: wants SHA-256: %w", sealed.ErrInvalid)
	}
	data, err := s.c.Write(s.ctx, s.mount+"/sign/"+s.name+"/sha2-256", map[string]any{
		"input": base64.StdEncoding.EncodeToString(digest), "prehashed": true, "marshaling_algorithm": "asn1", "key_version": s.version,
	})
	if err != nil {
		return nil, fmt.Errorf("signing with transit: %w", err)
	}
	text, _ := data["signature"].(string)
	encoded, ok := strings.CutPrefix(text, "vault:v"+s.version.String()+":")
	sig, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil {
		return nil, fmt.Errorf("signing with transit: malformed answer: %w", sealed.ErrUnavailable)
	}
	return sig, nil
}
