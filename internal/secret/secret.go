// Package secret holds credential values and seals them to a run.
//
// A Value prints as [REDACTED] through fmt, log/slog and the standard
// encoders; the bytes come out only through Reveal, so that a search for
// Reveal finds every use. A Value is wiped by Destroy.
//
// Values travel from the engine to sealed-init as HPKE ciphertext (RFC 9180,
// base mode) for the run's key: KEM MLKEM768-X25519 (0x647a), KDF HKDF-SHA256,
// AEAD AES-256-GCM, so that what lies in a lease store or a snapshot today
// can't be opened by tomorrow's quantum computer either. The info string binds
// run, grant and key name: a ciphertext can't be passed off as another's.
//
// # What this package does not do
//
// Wiping is best effort: Go may have copied the bytes before (a grown slice, a
// TLS buffer, a JSON decoder). Memory is not locked.
package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

const redacted = "[REDACTED]"

// A Value is a credential. The zero Value is empty. It is safe for concurrent
// use and must be passed by pointer.
type Value struct {
	mu sync.RWMutex
	// A closure, because fmt looks past the methods below where it meets a
	// Value held by value, or a verb that does not exist, and prints fields.
	bytes func() []byte
}

// New takes ownership of b: the caller must not keep or change it.
func New(b []byte) *Value { return &Value{bytes: func() []byte { return b }} }

// Reveal calls use with the bytes. They are valid during the call only and
// must not be changed or kept. A nil or destroyed Value reveals nothing (an
// empty slice).
func (v *Value) Reveal(use func([]byte) error) error {
	if v == nil {
		return use(nil)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.bytes == nil {
		return use(nil)
	}
	return use(v.bytes())
}

// Destroy overwrites the bytes and forgets them. It may be called again.
func (v *Value) Destroy() {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bytes != nil {
		clear(v.bytes())
		v.bytes = nil
	}
}

// String implements fmt.Stringer and never shows the value.
func (v *Value) String() string { return redacted }

// GoString implements fmt.GoStringer and never shows the value.
func (v *Value) GoString() string { return redacted }

// Format implements fmt.Formatter, for every verb.
func (v *Value) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer.
func (v *Value) LogValue() slog.Value { return slog.StringValue(redacted) }

var errEncode = errors.New("a secret.Value is not encoded")

// MarshalJSON always fails: a value has no place in a document.
func (v *Value) MarshalJSON() ([]byte, error) { return nil, errEncode }

// MarshalText always fails.
func (v *Value) MarshalText() ([]byte, error) { return nil, errEncode }

// GobEncode always fails.
func (v *Value) GobEncode() ([]byte, error) { return nil, errEncode }

var (
	_ fmt.Formatter  = (*Value)(nil)
	_ slog.LogValuer = (*Value)(nil)
	_ json.Marshaler = (*Value)(nil)
)
