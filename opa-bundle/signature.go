package opabundle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/bundle"

	"sealed.dev/sealed/internal/sealed"
)

const algES256 = "ES256"

// jwtHeader is the only header accepted: no crit, no embedded or remote key.
type jwtHeader struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	Typ string `json:"typ,omitempty"`
}

// verifySignature checks that .signatures.json holds one ES256 signature by a
// configured key over exactly the other files. It returns the files with
// .signatures.json reduced to what was checked, and the configuration with
// which OPA's own reader checks the same again.
//
// The header only selects the key. The algorithm is ours, not the header's,
// and every configured key is P-256 (E08: no confusion of algorithms).
func verifySignature(files []file, keys map[string]string) ([]file, *bundle.VerificationConfig, error) {
	rest, data, found := without(files, signaturesName)
	if !found {
		return nil, nil, fmt.Errorf("verifying bundle: %w: no %s", ErrUnsigned, signaturesName)
	}
	token, err := parseSignatures(data)
	if err != nil {
		return nil, nil, fmt.Errorf("verifying bundle: %w", err)
	}
	cfg, err := verificationConfig(token, keys)
	if err != nil {
		return nil, nil, fmt.Errorf("verifying bundle: %w: %w", ErrSignature, err)
	}
	sc := bundle.SignaturesConfig{Signatures: []string{token}}
	if err := verifyFiles(rest, sc, cfg); err != nil {
		return nil, nil, fmt.Errorf("verifying bundle: %w: %w", ErrSignature, err)
	}
	canonical, err := json.Marshal(sc)
	if err != nil {
		return nil, nil, fmt.Errorf("verifying bundle: %w: %w", ErrSignature, err)
	}
	return append(rest, file{name: signaturesName, data: canonical}), cfg, nil
}

// parseSignatures returns the one token. A plugin would choose another
// verifier; only "_default" is accepted, which opa sign writes and OPA reserves
// for its own.
func parseSignatures(data []byte) (string, error) {
	var doc struct {
		Signatures []string `json:"signatures"`
		Plugin     string   `json:"plugin"`
	}
	if err := sealed.Decode(data, 1<<20, &doc); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrSignature, signaturesName, err)
	}
	if doc.Plugin != "" && doc.Plugin != "_default" {
		return "", fmt.Errorf("%w: %s: plugin", ErrSignature, signaturesName)
	}
	switch len(doc.Signatures) {
	case 0:
		return "", fmt.Errorf("%w: %s is empty", ErrUnsigned, signaturesName)
	case 1:
		return doc.Signatures[0], nil
	}
	return "", fmt.Errorf("%w: %s: more than one signature", ErrSignature, signaturesName)
}

func verificationConfig(token string, keys map[string]string) (*bundle.VerificationConfig, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("not a JWT")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(parts[0])
	if err != nil {
		return nil, errors.New("JWT header: not base64url")
	}
	var h jwtHeader
	if err := sealed.Decode(raw, 4<<10, &h); err != nil {
		return nil, fmt.Errorf("JWT header: %w", err)
	}
	if h.Alg != algES256 {
		return nil, errors.New("JWT header: alg must be ES256")
	}
	if h.Kid == "" {
		return nil, errors.New("JWT header: no kid")
	}
	key, ok := keys[h.Kid]
	if !ok {
		return nil, fmt.Errorf("key %q is not configured", h.Kid)
	}
	if err := ValidateKey(key); err != nil {
		return nil, fmt.Errorf("key %q: %w", h.Kid, err)
	}
	return bundle.NewVerificationConfig(map[string]*bundle.KeyConfig{h.Kid: {Key: key, Algorithm: algES256}}, h.Kid, "", nil), nil
}

// ValidateKey reports whether key is one PEM block "PUBLIC KEY" (RFC 7468)
// with an ECDSA P-256 key, which is what Options.Keys accepts. A private key
// or a certificate is refused.
func ValidateKey(key string) error {
	block, rest := pem.Decode([]byte(key))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return errors.New("wants one PEM block PUBLIC KEY")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return errors.New("not a public key")
	}
	if pub, ok := parsed.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return errors.New("wants an ECDSA P-256 key")
	}
	return nil
}

// verifyFiles checks token and file hashes with OPA's own code, and that the
// token names every file and no other.
func verifyFiles(files []file, sc bundle.SignaturesConfig, cfg *bundle.VerificationConfig) error {
	listed, err := bundle.VerifyBundleSignature(sc, cfg)
	if err != nil {
		return err
	}
	for _, f := range files {
		switch listed[f.name].Algorithm {
		case string(bundle.SHA256), string(bundle.SHA384), string(bundle.SHA512), "":
		default: // MD5 and SHA-1 have collisions
			return fmt.Errorf("file %s: weak hash", f.name)
		}
		if err := bundle.VerifyBundleFile(f.name, *bytes.NewBuffer(f.data), listed); err != nil {
			return err
		}
	}
	if len(listed) > 0 {
		return errors.New("the signature names files that are not there")
	}
	return nil
}
