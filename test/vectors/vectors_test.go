// Package vectors holds no code: it runs the vectors of this folder against
// the packages that read the formats. README.md says how others can run them.
package vectors

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

func load(t *testing.T, file string, v any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("reading %s: %v", file, err)
	}
}

// A tally counts cases by what is expected, and keeps those that went wrong.
type tally struct {
	accepted, refused int
	wrong             []string
}

func (n *tally) check(what string, accepted, want bool) {
	if want {
		n.accepted++
	} else {
		n.refused++
	}
	if accepted != want {
		n.wrong = append(n.wrong, fmt.Sprintf("%s: accepted %v, want %v", what, accepted, want))
	}
}

// done reports. A file without both kinds, or with fewer refusals, proves little.
func (n *tally) done(t *testing.T) {
	t.Helper()
	for _, w := range n.wrong {
		t.Error(w)
	}
	if n.accepted == 0 || n.refused <= n.accepted {
		t.Errorf("%d accepted and %d refused: want some of the first and more of the second", n.accepted, n.refused)
	}
}

type nameCases struct {
	About string `json:"about"`
	Cases []struct {
		Kind string `json:"kind"`
		In   string `json:"in"`
		OK   bool   `json:"ok"`
	} `json:"cases"`
}

func TestNames(t *testing.T) {
	var f nameCases
	load(t, "names.json", &f)
	parsers := map[string]func(string) error{
		"key":             func(s string) error { _, err := sealed.ParseKeyName(s); return err },
		"name":            func(s string) error { _, err := sealed.ParseName("name", s); return err },
		"profile":         func(s string) error { _, err := sealed.ParseProfileName(s); return err },
		"run":             func(s string) error { _, err := sealed.ParseRunID(s); return err },
		"agent_spiffe_id": func(s string) error { _, _, _, err := sealed.ParseAgentSPIFFEID(s); return err },
		"host":            sealed.ValidateHost,
	}
	tallies := map[string]*tally{}
	for _, c := range f.Cases {
		if tallies[c.Kind] == nil {
			tallies[c.Kind] = &tally{}
		}
		tallies[c.Kind].check(fmt.Sprintf("%s %q", c.Kind, c.In), parsers[c.Kind](c.In) == nil, c.OK)
	}
	for _, n := range tallies {
		n.done(t)
	}
	for kind := range parsers {
		if tallies[kind] == nil {
			t.Errorf("no vectors for %s", kind)
		}
	}
}

// A reader that accepts, refuses, trims or folds everything is found out.
func TestNegativeControl(t *testing.T) {
	var f nameCases
	load(t, "names.json", &f)
	key := func(s string) bool { _, err := sealed.ParseKeyName(s); return err == nil }
	for name, reader := range map[string]func(string) bool{
		"accepts":   func(string) bool { return true },
		"refuses":   func(string) bool { return false },
		"trims":     func(s string) bool { return key(strings.TrimSpace(s)) },
		"folds":     func(s string) bool { return key(strings.ToUpper(s)) },
		"unescapes": func(s string) bool { u, err := url.PathUnescape(s); return err == nil && key(u) },
	} {
		n := &tally{}
		for _, c := range f.Cases {
			if c.Kind == "key" {
				n.check(c.In, reader(c.In), c.OK)
			}
		}
		if len(n.wrong) == 0 {
			t.Errorf("a reader that %s is not found out", name)
		}
	}
}

// parseBinding parses a binding as part of a profile.
func parseBinding(b json.RawMessage) (sealed.Binding, error) {
	doc := `{"name":"p","level":"user","keys":{"K":{"source":"s","ref":{"path":"a"},"risk":"low","bindings":[` + string(b) + `]}}}`
	p, err := sealed.ParseProfile([]byte(doc))
	if err != nil {
		return sealed.Binding{}, err
	}
	return p.Keys["K"].Bindings[0], nil
}

func TestBindings(t *testing.T) {
	var f struct {
		About    string `json:"about"`
		Bindings []struct {
			In json.RawMessage `json:"in"`
			OK bool            `json:"ok"`
		} `json:"bindings"`
		Paths []struct {
			Pattern string `json:"pattern"`
			Method  string `json:"method"`
			Path    string `json:"path"`
			OK      bool   `json:"ok"`
		} `json:"paths"`
	}
	load(t, "bindings.json", &f)
	n := &tally{}
	for _, c := range f.Bindings {
		_, err := parseBinding(c.In)
		n.check(string(c.In), err == nil, c.OK)
	}
	n.done(t)
	n = &tally{}
	for _, c := range f.Paths {
		doc, err := json.Marshal(sealed.Binding{Host: "api.example.com", Methods: []string{"GET"}, Paths: []string{c.Pattern}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := parseBinding(doc)
		if err != nil {
			t.Errorf("%s: %v", c.Pattern, err)
			continue
		}
		n.check(fmt.Sprintf("%s, %s %s", c.Pattern, c.Method, c.Path), b.Allows(c.Method, c.Path), c.OK)
	}
	n.done(t)
}

func TestDecisions(t *testing.T) {
	var f struct {
		About string `json:"about"`
		Parse []struct {
			In string `json:"in"`
			OK bool   `json:"ok"`
		} `json:"parse"`
		Combine []struct {
			In          []sealed.Decision   `json:"in"`
			Effect      sealed.Effect       `json:"effect"`
			Obligations *sealed.Obligations `json:"obligations"`
			Codes       []string            `json:"codes"`
		} `json:"combine"`
	}
	load(t, "decisions.json", &f)
	n := &tally{}
	for _, c := range f.Parse {
		_, err := sealed.ParseDecision([]byte(c.In))
		n.check(c.In, err == nil, c.OK)
	}
	n.done(t)
	for i, c := range f.Combine {
		got := sealed.Combine(c.In...)
		if got.Effect != c.Effect {
			t.Errorf("combine %d: got %s, want %s", i, got.Effect, c.Effect)
		}
		if c.Obligations != nil && cmp.Diff(*c.Obligations, got.Obligations) != "" {
			t.Errorf("combine %d: %s", i, cmp.Diff(*c.Obligations, got.Obligations))
		}
		var codes []string
		for _, r := range got.Reasons {
			codes = append(codes, r.Code)
		}
		if c.Codes != nil && cmp.Diff(c.Codes, codes) != "" {
			t.Errorf("combine %d: %s", i, cmp.Diff(c.Codes, codes))
		}
	}
}

func TestSigned(t *testing.T) {
	var f struct {
		About string `json:"about"`
		Cases []struct {
			Name      string        `json:"name"`
			Domain    sealed.Domain `json:"domain"`
			Payload   string        `json:"payload"`
			Signature string        `json:"signature"`
			PublicKey []byte        `json:"public_key"`
			OK        bool          `json:"ok"`
		} `json:"cases"`
		Digests []struct {
			Domain  sealed.Domain `json:"domain"`
			Payload string        `json:"payload"`
			Digest  sealed.Digest `json:"digest"`
		} `json:"digests"`
		Commands []struct {
			Argv   []string      `json:"argv"`
			Digest sealed.Digest `json:"digest"`
		} `json:"commands"`
	}
	load(t, "signed.json", &f)
	n := &tally{}
	for _, c := range f.Cases {
		var doc sealed.ConfirmAnswer
		err := sealed.Signed{Payload: c.Payload, Signature: c.Signature}.Open(c.Domain, ed25519.PublicKey(c.PublicKey), &doc)
		n.check(c.Name, err == nil, c.OK)
	}
	n.done(t)
	for _, c := range f.Digests {
		if got := sealed.DigestOf(c.Domain, []byte(c.Payload)); got != c.Digest {
			t.Errorf("digest of %q in %s: got %s", c.Payload, c.Domain, got)
		}
	}
	for _, c := range f.Commands {
		if got := sealed.CommandDigest(c.Argv); got != c.Digest {
			t.Errorf("digest of command %q: got %s", c.Argv, got)
		}
	}
}

func TestLog(t *testing.T) {
	var f struct {
		About  string `json:"about"`
		Leaves []struct {
			Name string `json:"name"`
			In   string `json:"in"`
			OK   bool   `json:"ok"`
			Hash string `json:"leaf_hash"`
		} `json:"leaves"`
		Bundles []struct {
			Name   string `json:"name"`
			In     string `json:"in"`
			OK     bool   `json:"ok"`
			Leaves int    `json:"leaves"`
		} `json:"bundles"`
		Sides []struct {
			Name   string `json:"name"`
			In     string `json:"in"`
			OK     bool   `json:"ok"`
			Digest string `json:"digest"`
		} `json:"sides"`
	}
	load(t, "log.json", &f)
	n := &tally{}
	for _, c := range f.Leaves {
		_, err := audit.ParseLeaf([]byte(c.In))
		n.check("leaf: "+c.Name, err == nil, c.OK)
		if h := tlog.RecordHash([]byte(c.In)); c.OK && hex.EncodeToString(h[:]) != c.Hash {
			t.Errorf("leaf: %s: hash %x", c.Name, h)
		}
	}
	n.done(t)
	n = &tally{}
	for _, c := range f.Bundles {
		raw, err := base64.StdEncoding.DecodeString(c.In)
		if err != nil {
			t.Fatal(err)
		}
		leaves, err := audit.ParseBundle(raw)
		n.check("bundle: "+c.Name, err == nil, c.OK)
		if len(leaves) != c.Leaves {
			t.Errorf("bundle: %s: %d leaves, want %d", c.Name, len(leaves), c.Leaves)
		}
	}
	n.done(t)
	n = &tally{}
	for _, c := range f.Sides {
		side, err := audit.ParseSide([]byte(c.In))
		n.check("side: "+c.Name, err == nil, c.OK)
		if d := side.Digest(); c.OK && hex.EncodeToString(d[:]) != c.Digest {
			t.Errorf("side: %s: digest %x", c.Name, d)
		}
	}
	n.done(t)
}
