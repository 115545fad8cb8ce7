package sops

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"filippo.io/age"
	agearmor "filippo.io/age/armor"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/getsops/sops/v3/keyservice"
	"google.golang.org/grpc"

	"sealed.dev/sealed/internal/sealed"
)

// maxDataKey bounds what a master key may have encrypted. A data key is 32
// bytes, a share of one somewhat more.
const maxDataKey = 4 << 10

// keys are the private keys of a source. They are SOPS's key service: the only
// one that it may ask.
type keys struct {
	ages []age.Identity
	pgps openpgp.EntityList
}

var errKeys = &sealed.FieldError{Field: "credential", Reason: "wants age identities or armored PGP private keys without a passphrase"}

const (
	pgpBegin = "-----BEGIN PGP PRIVATE KEY BLOCK-----"
	pgpEnd   = "-----END PGP PRIVATE KEY BLOCK-----"
)

// parseKeys reads a credential. The error matches sealed.ErrInvalid and quotes
// nothing.
func parseKeys(b []byte) (k keys, err error) {
	rest := string(b)
	var ages strings.Builder
	for {
		before, block, found := strings.Cut(rest, pgpBegin)
		ages.WriteString(before + "\n")
		if !found {
			break
		}
		body, after, closed := strings.Cut(block, pgpEnd)
		if !closed {
			return keys{}, errKeys
		}
		ring, err := openpgp.ReadArmoredKeyRing(strings.NewReader(pgpBegin + body + pgpEnd + "\n"))
		if err != nil || !usable(ring) {
			return keys{}, errKeys
		}
		k.pgps = append(k.pgps, ring...)
		rest = after
	}
	for line := range strings.Lines(ages.String()) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		ids, err := age.ParseIdentities(strings.NewReader(line))
		if err != nil {
			return keys{}, errKeys
		}
		k.ages = append(k.ages, ids...)
	}
	if len(k.ages)+len(k.pgps) == 0 {
		return keys{}, errKeys
	}
	return k, nil
}

// usable reports whether every key of a ring can decrypt as it is.
func usable(ring openpgp.EntityList) bool {
	for _, e := range ring {
		if e.PrivateKey == nil || e.PrivateKey.Encrypted {
			return false
		}
		for _, sub := range e.Subkeys {
			if sub.PrivateKey == nil || sub.PrivateKey.Encrypted {
				return false
			}
		}
	}
	return len(ring) > 0
}

var errNoKey = errors.New("no such key here")

// Decrypt implements SOPS's key service for age and PGP. Every other kind of
// key is refused without being looked at.
func (k keys) Decrypt(_ context.Context, req *keyservice.DecryptRequest, _ ...grpc.CallOption) (*keyservice.DecryptResponse, error) {
	var plain io.Reader
	var err error
	switch req.GetKey().GetKeyType().(type) {
	case *keyservice.Key_AgeKey:
		if len(k.ages) == 0 {
			return nil, errNoKey
		}
		plain, err = age.Decrypt(agearmor.NewReader(bytes.NewReader(req.Ciphertext)), k.ages...)
	case *keyservice.Key_PgpKey:
		plain, err = k.openPGP(req.Ciphertext)
	default:
		return nil, errNoKey
	}
	if err != nil {
		return nil, errNoKey
	}
	key, err := io.ReadAll(io.LimitReader(plain, maxDataKey+1))
	if err != nil || len(key) > maxDataKey {
		return nil, errNoKey
	}
	return &keyservice.DecryptResponse{Plaintext: key}, nil
}

func (k keys) openPGP(ciphertext []byte) (io.Reader, error) {
	block, err := armor.Decode(bytes.NewReader(ciphertext))
	if err != nil || len(k.pgps) == 0 {
		return nil, errNoKey
	}
	md, err := openpgp.ReadMessage(block.Body, k.pgps, nil, nil)
	if err != nil || !md.IsEncrypted || md.IsSymmetricallyEncrypted {
		return nil, errNoKey
	}
	return md.UnverifiedBody, nil
}

// Encrypt implements SOPS's key service: nothing is encrypted here.
func (k keys) Encrypt(context.Context, *keyservice.EncryptRequest, ...grpc.CallOption) (*keyservice.EncryptResponse, error) {
	return nil, errNoKey
}
