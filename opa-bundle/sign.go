package opabundle

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"path"

	"github.com/open-policy-agent/opa/v1/bundle"
)

// jwtPayload is what opa sign writes. The keyid claim is the older place of
// the key id, for readers before the header was used.
type jwtPayload struct {
	Files []bundle.FileInfo `json:"files"`
	KeyID string            `json:"keyid"`
}

// Sign returns the bundle raw with a signature by key, which must be ECDSA
// P-256 and may live in a KMS. A signature that is there already is replaced.
// keyID is the name under which Options.Keys and opa --verification-key-id
// know the key: 1 to 128 bytes.
//
// Sign reads what it signs under the default Limits and refuses what is not a
// bundle of this format, but compiles nothing: Build and Open do.
func Sign(ctx context.Context, raw []byte, key crypto.Signer, keyID string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("signing bundle: %w", err)
	}
	if keyID == "" || len(keyID) > 128 {
		return nil, fmt.Errorf("signing bundle: %w: a key id has 1 to 128 bytes", ErrSignature)
	}
	files, err := readArchive(raw, Limits{}.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("signing bundle: %w", err)
	}
	files, _, _ = without(files, signaturesName)
	payload := jwtPayload{KeyID: keyID}
	for _, f := range files {
		info, err := fileInfo(f)
		if err != nil {
			return nil, fmt.Errorf("signing bundle: %s: %w", f.name, err)
		}
		payload.Files = append(payload.Files, info)
	}
	token, err := signToken(jwtHeader{Alg: algES256, Kid: keyID, Typ: "JWT"}, payload, key)
	if err != nil {
		return nil, fmt.Errorf("signing bundle: %w", err)
	}
	doc, err := json.Marshal(bundle.SignaturesConfig{Signatures: []string{token}})
	if err != nil {
		return nil, fmt.Errorf("signing bundle: %w", err)
	}
	return writeArchive(append(files, file{name: signaturesName, data: doc}))
}

// fileInfo hashes as OPA does: structured files by value, others by bytes.
func fileInfo(f file) (bundle.FileInfo, error) {
	var value any = f.data
	if f.name == manifestName || path.Base(f.name) == dataName {
		var err error
		if value, err = parseJSON(f.data); err != nil {
			return bundle.FileInfo{}, err
		}
	}
	h, err := bundle.NewSignatureHasher(bundle.SHA256)
	if err != nil {
		return bundle.FileInfo{}, err
	}
	sum, err := h.HashFile(value)
	if err != nil {
		return bundle.FileInfo{}, err
	}
	return bundle.NewFile(f.name, hex.EncodeToString(sum), bundle.SHA256.String()), nil
}

func signToken(h jwtHeader, p jwtPayload, key crypto.Signer) (string, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return "", fmt.Errorf("%w: the key must be ECDSA P-256", ErrSignature)
	}
	header, err := json.Marshal(h)
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding
	input := enc.EncodeToString(header) + "." + enc.EncodeToString(payload)
	sum := sha256.Sum256([]byte(input))
	der, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("using the key: %w", err)
	}
	if !ecdsa.VerifyASN1(pub, sum[:], der) {
		return "", fmt.Errorf("%w: the signer's answer does not verify", ErrSignature)
	}
	// JWS wants the two numbers side by side, not DER (RFC 7518 §3.4).
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 {
		return "", fmt.Errorf("%w: the signer's answer is not DER", ErrSignature)
	}
	sig := make([]byte, 64)
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return input + "." + enc.EncodeToString(sig), nil
}

// GenerateKey makes an ECDSA P-256 key pair as PEM: PKCS #8 "PRIVATE KEY" and
// PKIX "PUBLIC KEY". The caller keeps the private key secret and wipes it.
func GenerateKey() (private, public []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generating key: %w", err)
	}
	priv, err1 := x509.MarshalPKCS8PrivateKey(key)
	pub, err2 := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, fmt.Errorf("encoding key: %w", err)
	}
	private = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})
	public = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
	return private, public, nil
}
