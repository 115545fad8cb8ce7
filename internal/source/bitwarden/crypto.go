package bitwarden

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	keySize  = 64 // AES-256, then HMAC-SHA256
	seedSize = 16
)

var uuidRE = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// An accessToken is a machine account's login, taken apart.
type accessToken struct {
	id     string
	secret *secret.Value
	key    *secret.Value // derived; opens the payload of a login
}

var errToken = &sealed.FieldError{Field: "credential", Reason: "wants an access token of a machine account"}

// parseAccessToken takes "0.ID.SECRET:SEED" apart and derives the key. The
// error matches sealed.ErrInvalid and quotes nothing.
func parseAccessToken(b []byte) (accessToken, error) {
	head, seed64, ok := bytes.Cut(b, []byte(":"))
	parts := bytes.Split(head, []byte("."))
	if !ok || len(parts) != 3 || string(parts[0]) != "0" || !uuidRE.Match(parts[1]) || len(parts[2]) == 0 || len(b) > 1024 {
		return accessToken{}, errToken
	}
	if bytes.ContainsFunc(parts[2], func(r rune) bool { return r <= ' ' || r > '~' }) {
		return accessToken{}, errToken
	}
	// The seed is written with padding and read without.
	seed := make([]byte, base64.RawStdEncoding.DecodedLen(len(seed64)))
	defer clear(seed)
	n, err := base64.RawStdEncoding.Decode(seed, bytes.TrimRight(seed64, "="))
	if err != nil || n != seedSize {
		return accessToken{}, errToken
	}
	key, err := deriveKey(seed[:n])
	if err != nil {
		return accessToken{}, errToken
	}
	return accessToken{id: string(parts[1]), secret: secret.New(bytes.Clone(parts[2])), key: key}, nil
}

// deriveKey is HKDF-SHA256 (RFC 5869) with the salt and info that Bitwarden
// uses for access tokens.
func deriveKey(seed []byte) (*secret.Value, error) {
	key, err := hkdf.Key(sha256.New, seed, []byte("bitwarden-accesstoken"), "sm-access-token", keySize)
	if err != nil {
		return nil, err
	}
	return secret.New(key), nil
}

var errCipher = fmt.Errorf("decrypting: not made with this key, or changed: %w", sealed.ErrUnavailable)

// decrypt opens an EncString of type 2, "2.IV|CIPHERTEXT|MAC" in base64:
// AES-256-CBC with PKCS #7, and HMAC-SHA256 over IV and ciphertext, which is
// checked before anything is decrypted. Type 0 has no MAC and type 7 another
// format: both are refused, so that an upstream can't choose a weaker one. The
// error matches sealed.ErrUnavailable and is the same for every cause.
func decrypt(key *secret.Value, enc string) (plain []byte, err error) {
	iv, text, mac, err := parseEncString(enc)
	if err != nil {
		return nil, err
	}
	return plain, key.Reveal(func(k []byte) error {
		if len(k) != keySize {
			return errCipher
		}
		h := hmac.New(sha256.New, k[32:])
		h.Write(iv)
		h.Write(text)
		if !hmac.Equal(h.Sum(nil), mac) {
			return errCipher
		}
		block, err := aes.NewCipher(k[:32])
		if err != nil {
			return errCipher
		}
		cipher.NewCBCDecrypter(block, iv).CryptBlocks(text, text)
		plain, err = unpad(text)
		return err
	})
}

// parseEncString takes an EncString apart. The slices are its own.
func parseEncString(enc string) (iv, text, mac []byte, err error) {
	rest, ok := bytes.CutPrefix([]byte(enc), []byte("2."))
	parts := bytes.Split(rest, []byte("|"))
	if !ok || len(parts) != 3 {
		return nil, nil, nil, errCipher
	}
	var errs [3]error
	for i, p := range parts {
		out := make([]byte, base64.StdEncoding.DecodedLen(len(p)))
		n := 0
		n, errs[i] = base64.StdEncoding.Strict().Decode(out, p)
		parts[i] = out[:n]
	}
	iv, text, mac = parts[0], parts[1], parts[2]
	if errors.Join(errs[:]...) != nil || len(iv) != aes.BlockSize || len(text) == 0 || len(text)%aes.BlockSize != 0 || len(mac) != sha256.Size {
		return nil, nil, nil, errCipher
	}
	return iv, text, mac, nil
}

// unpad removes the padding of PKCS #7. The MAC was right, so a wrong padding
// tells an attacker nothing: it was made by who has the key.
func unpad(text []byte) ([]byte, error) {
	n := int(text[len(text)-1])
	if n == 0 || n > aes.BlockSize || n > len(text) || !bytes.Equal(text[len(text)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		clear(text)
		return nil, errCipher
	}
	return text[:len(text)-n], nil
}
