package opabundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// A Manifest is what a signer says about a bundle. Sequence (≥ 1) must rise
// with every bundle of a mount; from Expires on the bundle denies everything.
type Manifest struct {
	Revision string // free text for people, at most 256 bytes
	Sequence uint64
	Expires  time.Time // kept in whole seconds
	Overlay  bool      // to be laid over another bundle, never to decide alone
}

// manifestDoc is .manifest. Everything that OPA knows beyond it (wasm,
// file_rego_versions) is an unknown field and refused.
type manifestDoc struct {
	Revision    string   `json:"revision"`
	Roots       []string `json:"roots"`
	RegoVersion int      `json:"rego_version"`
	Metadata    struct {
		Sequence uint64 `json:"sequence"`
		Expires  string `json:"expires"`
		Overlay  bool   `json:"overlay,omitempty"`
	} `json:"metadata"`
}

func (m Manifest) marshal() ([]byte, error) {
	doc := manifestDoc{Revision: m.Revision, Roots: []string{"sealed"}, RegoVersion: 1}
	doc.Metadata.Sequence, doc.Metadata.Overlay = m.Sequence, m.Overlay
	doc.Metadata.Expires = m.Expires.UTC().Format(time.RFC3339)
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding manifest: %w", err)
	}
	if _, err := parseManifest(b); err != nil {
		return nil, err
	}
	return b, nil
}

// parseManifest reads .manifest. The signature covers the parsed value, not
// the bytes, so the value is taken from the same parse: generic first, then
// into the strict shape. Errors wrap ErrMalformed.
func parseManifest(data []byte) (Manifest, error) {
	value, err := parseJSON(data)
	if err != nil {
		return Manifest{}, fmt.Errorf("parsing manifest: %w", err)
	}
	canonical, err := json.Marshal(value)
	if err != nil {
		return Manifest{}, fmt.Errorf("parsing manifest: %w: %w", ErrMalformed, err)
	}
	var doc manifestDoc
	if err := sealed.Decode(canonical, 64<<10, &doc); err != nil {
		return Manifest{}, fmt.Errorf("parsing manifest: %w: %w", ErrMalformed, err)
	}
	if len(doc.Roots) != 1 || doc.Roots[0] != "sealed" {
		return Manifest{}, fmt.Errorf("parsing manifest: %w: roots must be exactly [\"sealed\"]", ErrMalformed)
	}
	if doc.RegoVersion != 1 {
		return Manifest{}, fmt.Errorf("parsing manifest: %w: rego_version must be 1", ErrMalformed)
	}
	if doc.Metadata.Sequence < 1 {
		return Manifest{}, fmt.Errorf("parsing manifest: %w: metadata.sequence must be at least 1", ErrMalformed)
	}
	if len(doc.Revision) > 256 {
		return Manifest{}, fmt.Errorf("parsing manifest: %w: revision longer than 256 bytes", ErrMalformed)
	}
	expires, err := time.Parse(time.RFC3339, doc.Metadata.Expires)
	if err != nil || expires.Unix() <= 0 {
		return Manifest{}, fmt.Errorf("parsing manifest: %w: metadata.expires must be an RFC 3339 time", ErrMalformed)
	}
	return Manifest{Revision: doc.Revision, Sequence: doc.Metadata.Sequence, Expires: expires.UTC(), Overlay: doc.Metadata.Overlay}, nil
}

// parseJSON is OPA's reading of a structured file, without OPA's fall-back to
// YAML: numbers stay text, of two equal keys the later wins. Requiring valid
// JSON keeps OPA's two readers (hash and load) on the same value.
func parseJSON(data []byte) (any, error) {
	if !json.Valid(data) {
		return nil, fmt.Errorf("%w: not valid JSON", ErrMalformed)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("%w: not valid JSON", ErrMalformed)
	}
	return v, nil
}
