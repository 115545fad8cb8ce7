package secret

import (
	"crypto/hpke"
	"encoding/base64"
	"errors"
	"fmt"
)

// ErrOpen means that a ciphertext is not for this key, run, grant and name,
// or was changed.
var ErrOpen = errors.New("opening sealed value failed")

// A Context names what a ciphertext is for. Sender and receiver must agree on
// every field.
type Context struct {
	Run, Grant, Key string
}

func (c Context) info() []byte {
	return []byte("sealed.creds.v1\x00" + c.Run + "\x00" + c.Grant + "\x00" + c.Key)
}

// A PrivateKey is the run's HPKE key. It lives in sealed-init's memory only.
type PrivateKey struct{ k hpke.PrivateKey }

func kem() hpke.KEM { return hpke.MLKEM768X25519() }

// GenerateKey makes a run's HPKE key.
func GenerateKey() (*PrivateKey, error) {
	k, err := kem().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("generating HPKE key: %w", err)
	}
	return &PrivateKey{k: k}, nil
}

// Public returns the public key, base64 std.
func (p *PrivateKey) Public() string {
	return base64.StdEncoding.EncodeToString(p.k.PublicKey().Bytes())
}

// ValidatePublic reports whether s is a public key of this KEM.
func ValidatePublic(s string) error {
	_, err := parsePublic(s)
	return err
}

func parsePublic(s string) (hpke.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("parsing HPKE key: not base64")
	}
	pk, err := kem().NewPublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("parsing HPKE key: %w", err)
	}
	return pk, nil
}

// Seal encrypts v to a public key (base64 std). The result is base64 std.
func Seal(public string, c Context, v *Value) (string, error) {
	s, err := NewSealer(public, c)
	if err != nil {
		return "", err
	}
	return s.Seal(v)
}

// A Sealer is ready to encrypt one value. Making one is most of the work, and
// needs no value. It is for one goroutine, and for one call of Seal.
type Sealer struct {
	encapsulated []byte
	sender       *hpke.Sender
}

// NewSealer prepares Seal.
func NewSealer(public string, c Context) (*Sealer, error) {
	pk, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	encapsulated, sender, err := hpke.NewSender(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), c.info())
	if err != nil {
		return nil, fmt.Errorf("sealing value: %w", err)
	}
	return &Sealer{encapsulated, sender}, nil
}

// Seal encrypts v. The result is base64 std. A second call is an error.
func (s *Sealer) Seal(v *Value) (string, error) {
	sender := s.sender
	if s.sender = nil; sender == nil {
		return "", errors.New("sealing value: the sealer is used up")
	}
	var out []byte
	if err := v.Reveal(func(b []byte) error {
		sealed, err := sender.Seal(nil, b)
		out = append(s.encapsulated, sealed...)
		return err
	}); err != nil {
		return "", fmt.Errorf("sealing value: %w", err)
	}
	return base64.StdEncoding.EncodeToString(out), nil
}

// Open decrypts what Seal made for the same Context. Errors are ErrOpen.
func (p *PrivateKey) Open(c Context, ciphertext string) (*Value, error) {
	b, err := base64.StdEncoding.DecodeString(ciphertext)
	if err != nil {
		return nil, ErrOpen
	}
	plain, err := hpke.Open(p.k, hpke.HKDFSHA256(), hpke.AES256GCM(), c.info(), b)
	if err != nil {
		return nil, ErrOpen
	}
	return New(plain), nil
}
