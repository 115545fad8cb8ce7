// Package onepassword is the source of static values in a vault of 1Password,
// read through a Connect server.
//
// It speaks the server's REST API (version 1.7.1 of its OpenAPI document in
// 1Password/connect, docs/openapi/spec.yaml) with the standard library: at most
// three calls find the vault by name, the item by title, and read the item.
//
// A reference is the title or the id of an item (26 lower-case letters and
// digits); its field is the id or the label of a field, "SECTION/LABEL" where
// the label alone is not enough, or empty for the item's password. What is
// ambiguous is refused, as are archived and deleted items. Connect reads the
// current version of an item only: a pinned version that is not the current
// one is an error, never another value.
//
// The credential is a Connect token, which should see one vault, read-only.
// Package source states what a call guarantees. A value that was read can't be
// un-issued here.
package onepassword

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

// idRE is what the OpenAPI document says an id is.
var idRE = regexp.MustCompile(`^[\da-z]{26}$`)

// A Source reads from one vault. It is safe for concurrent use.
type Source struct {
	source.Static
	client *source.Client
	token  *secret.Value
	vault  string // name or id
}

// Open makes a source and takes ownership of token. It makes no call. The
// error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, token *secret.Value) (*Source, error) {
	if err := source.CheckToken(token, "a token of a Connect server"); err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	client, err := source.NewClient(cfg.Address, cfg.CA, true)
	if err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	return &Source{client: client, token: token, vault: cfg.Mount}, nil
}

// An item is the part of FullItem that is read here.
type item struct {
	ID      string `json:"id"`
	Title   string `json:"title"`
	State   string `json:"state"`
	Version int    `json:"version"`
	Vault   struct {
		ID string `json:"id"`
	} `json:"vault"`
	Sections []section `json:"sections"`
	Fields   []field   `json:"fields"`
}

type section struct {
	ID    string `json:"id"`
	Label string `json:"label"`
}

type field struct {
	ID      string          `json:"id"`
	Label   string          `json:"label"`
	Purpose string          `json:"purpose"`
	Section section         `json:"section"`
	Value   json.RawMessage `json:"value"`
}

// Mint reads one field. The error matches sealed.ErrInvalid for a reference
// that can't be one, else sealed.ErrUnavailable, and sealed.ErrNotFound too
// when the item or its pinned version is not there.
func (s *Source) Mint(ctx context.Context, ref sealed.KeyRef, _ string) (source.Minted, error) {
	it, err := s.item(ctx, ref)
	if err != nil {
		return source.Minted{}, err
	}
	defer it.wipe()
	value, err := it.pick(ref.Field)
	if err != nil {
		return source.Minted{}, fmt.Errorf("reading item: %w", err)
	}
	return source.Minted{Value: value, Version: sealed.VersionNumber(it.Version)}, nil
}

// Newest is the version of an item, which counts its changes in any field. The
// API has no way to ask for it alone: the item is read, and wiped. The error is
// as of Mint.
func (s *Source) Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	it, err := s.item(ctx, ref)
	if err != nil {
		return "", err
	}
	it.wipe()
	return sealed.VersionNumber(it.Version), nil
}

// item reads the item that ref means; the caller wipes it.
func (s *Source) item(ctx context.Context, ref sealed.KeyRef) (item, error) {
	if err := checkRef(ref); err != nil {
		return item{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	vault, err := s.find(ctx, "v1/vaults", "name", s.vault)
	if err != nil {
		return item{}, fmt.Errorf("finding vault: %w", err)
	}
	items := "v1/vaults/" + vault + "/items"
	id, err := s.find(ctx, items, "title", ref.Path)
	if err != nil {
		return item{}, fmt.Errorf("finding item: %w", err)
	}
	var it item
	if err := s.get(ctx, source.Request{Path: items + "/" + id}, &it); err != nil {
		return item{}, fmt.Errorf("reading item: %w", err)
	}
	switch {
	case it.ID != id || it.Vault.ID != vault:
		err = fmt.Errorf("the answer is about another one: %w", sealed.ErrUnavailable)
	case it.State != "":
		err = fmt.Errorf("archived or deleted: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
	default:
		err = source.SameVersion(ref, sealed.VersionNumber(it.Version))
	}
	if err != nil {
		it.wipe()
		return item{}, fmt.Errorf("reading item: %w", err)
	}
	return it, nil
}

// Check reports whether the token sees the vault. It reads no item.
func (s *Source) Check(ctx context.Context) error {
	if !idRE.MatchString(s.vault) {
		_, err := s.find(ctx, "v1/vaults", "name", s.vault)
		return err
	}
	var answer section
	if err := s.get(ctx, source.Request{Path: "v1/vaults/" + s.vault}, &answer); err != nil {
		return err
	}
	if answer.ID != s.vault {
		return fmt.Errorf("checking vault: the answer is about another one: %w", sealed.ErrUnavailable)
	}
	return nil
}

// checkRef accepts what can be quoted in a filter: the grammar of SCIM filters
// (RFC 7644, 3.4.2.2) has escapes that servers read differently.
func checkRef(ref sealed.KeyRef) error {
	if ref.Path == "" || len(ref.Path) > 256 || strings.ContainsFunc(ref.Path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '"' || r == '\\' }) {
		return &sealed.FieldError{Field: "ref.path", Reason: "wants the title or the id of an item"}
	}
	return nil
}

// find returns the id of the one thing in a collection whose attribute is
// name. An id is taken as it is.
func (s *Source) find(ctx context.Context, collection, attribute, name string) (string, error) {
	if idRE.MatchString(name) {
		return name, nil
	}
	var found []struct {
		ID    string `json:"id"`
		Name  string `json:"name"`
		Title string `json:"title"`
		State string `json:"state"`
	}
	query := url.Values{"filter": {attribute + ` eq "` + name + `"`}}
	if err := s.get(ctx, source.Request{Path: collection, Query: query}, &found); err != nil {
		return "", err
	}
	id := ""
	for _, f := range found {
		if (attribute == "name" && f.Name != name) || (attribute == "title" && f.Title != name) || f.State != "" {
			continue // the server is not asked to decide what equal means
		}
		if id != "" {
			return "", fmt.Errorf("more than one has this %s: %w", attribute, sealed.ErrUnavailable)
		}
		id = f.ID
	}
	if !idRE.MatchString(id) {
		return "", fmt.Errorf("none has this %s: %w: %w", attribute, sealed.ErrNotFound, sealed.ErrUnavailable)
	}
	return id, nil
}

func (s *Source) get(ctx context.Context, r source.Request, out any) error {
	r.Method, r.Bearer = http.MethodGet, s.token
	answer, err := s.client.Do(ctx, r)
	if err != nil {
		return err
	}
	defer answer.Wipe()
	if err := answer.Decode(out); err != nil {
		if source.NotFound(err) {
			return fmt.Errorf("%w: %w", sealed.ErrNotFound, err)
		}
		return err
	}
	return nil
}

// pick returns the value of the one field that name means.
func (it item) pick(name string) (*secret.Value, error) {
	data := map[string]json.RawMessage{}
	for _, f := range it.Fields {
		if !it.means(name, f) {
			continue
		}
		if len(data) > 0 {
			return nil, fmt.Errorf("picking field %s: more than one has this name: %w", name, sealed.ErrUnavailable)
		}
		data[name] = f.Value
	}
	return source.StringField(data, name)
}

// means reports whether name means a field.
func (it item) means(name string, f field) bool {
	if name == "" {
		return f.Purpose == "PASSWORD"
	}
	if name == f.ID || name == f.Label {
		return true
	}
	for _, s := range it.Sections {
		if f.Section.ID != "" && s.ID == f.Section.ID && (name == s.Label+"/"+f.Label || name == s.ID+"/"+f.ID) {
			return true
		}
	}
	return false
}

func (it item) wipe() {
	for _, f := range it.Fields {
		clear(f.Value)
	}
}
