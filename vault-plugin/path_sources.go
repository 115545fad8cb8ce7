package vaultplugin

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	maxSource     = 64 << 10
	maxCredential = 8 << 10
	// domainSource separates the digest that ties a credential to where it may
	// be sent.
	domainSource sealed.Domain = "sealed.source.v1"
)

// sourceCredential is a source's own login, seal-wrapped and write-only. For
// names the place it was written for: it is used with no other, so that
// whoever can re-point a source gains nothing (R10), even if the deletion of
// the credential was interrupted.
type sourceCredential struct {
	For        sealed.Digest `json:"for"`
	Credential []byte        `json:"credential"`
}

// openedSource is a configured source ready for use.
type openedSource struct {
	cfg    sealed.SourceConfig
	source Source
}

func (b *backend) pathSources() []*framework.Path {
	name := &framework.FieldSchema{Type: framework.TypeString, Description: "Name of the source."}
	return []*framework.Path{
		{
			Pattern:         "sources/?$",
			DisplayAttrs:    display("sources"),
			Operations:      map[logical.Operation]framework.OperationHandler{logical.ListOperation: b.list("List the sources.", b.sourceNames)},
			HelpSynopsis:    "List sources.",
			HelpDescription: "A source is where values come from. The source builtin always exists: it is the mount's own store under secrets/.",
		},
		{
			Pattern:      "sources/(?P<name>[^/]+)$",
			DisplayAttrs: display("source"),
			Fields: map[string]*framework.FieldSchema{
				"name":       name,
				"source":     {Type: framework.TypeString, Description: "Source configuration (JSON)."},
				"credential": {Type: framework.TypeString, Description: "The source's own login. Write-only.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
				"force":      {Type: framework.TypeBool, Description: "On delete: also when a current profile uses it."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   b.op("Read a source, without its credential.", b.sourceRead),
				logical.UpdateOperation: b.op("Write a source. Changing where it points drops its credential.", b.sourceWrite),
				logical.DeleteOperation: b.op("Delete a source and its credential.", b.sourceDelete),
			},
			HelpSynopsis: "Configure where values come from.",
			HelpDescription: "Changing any field but levels drops the credential unless the same request brings a new one. A new source, another place, login or CA, " +
				"and a further level wait for a second person (proposals/source), and the login is written afterwards.",
		},
		{
			Pattern:         "sources/(?P<name>[^/]+)/check$",
			DisplayAttrs:    display("source-check"),
			Fields:          map[string]*framework.FieldSchema{"name": name},
			Operations:      map[logical.Operation]framework.OperationHandler{logical.ReadOperation: b.op("Tell whether the source can be used.", b.sourceCheck)},
			HelpSynopsis:    "Check a source without reading a value.",
			HelpDescription: "Makes one call to the source, at most 3 s.",
		},
	}
}

// source returns a source's configuration and the source, opened with its own
// credential. sealed.ErrNotFound: there is no such source.
// sealed.ErrUnavailable: it has no credential, or one written for another place.
func (b *backend) source(ctx context.Context, s logical.Storage, name sealed.Name) (sealed.SourceConfig, Source, error) {
	opened, err := b.nouns.sources.get(string(name), func() (openedSource, error) {
		cfg, err := loadSource(ctx, s, name)
		if err != nil {
			return openedSource{}, err
		}
		if cfg.Type == sealed.SourceBuiltin {
			return openedSource{cfg, builtinSource{b: b, storage: s}}, nil
		}
		cred, err := loadCredential(ctx, s, cfg)
		if err != nil {
			return openedSource{}, err
		}
		if cred == nil {
			return openedSource{}, fmt.Errorf("opening source %s: it has no credential: %w", name, sealed.ErrUnavailable)
		}
		src, err := b.openSource(ctx, s, cfg, secret.New(cred))
		if err != nil {
			return openedSource{}, fmt.Errorf("opening source %s: %w", name, err)
		}
		return openedSource{cfg, src}, nil
	})
	return opened.cfg, opened.source, err
}

func loadSource(ctx context.Context, s logical.Storage, name sealed.Name) (sealed.SourceConfig, error) {
	var cfg sealed.SourceConfig
	if _, err := sealed.ParseName("source", string(name)); err != nil {
		return cfg, err
	}
	ok, err := get(ctx, s, storeSources+string(name), &cfg)
	if err != nil {
		return cfg, err
	}
	if !ok && name == sealed.SourceBuiltin {
		return sealed.SourceConfig{Name: name, Type: sealed.SourceBuiltin}, nil
	}
	if !ok {
		return cfg, fmt.Errorf("loading source %s: %w", name, sealed.ErrNotFound)
	}
	if cfg.Name != name || validateSource(cfg) != nil {
		return cfg, fmt.Errorf("decoding stored %s: malformed", storeSources+string(name))
	}
	return cfg, nil
}

// loadCredential returns the credential for cfg, or nil when there is none or
// it was written for another place.
func loadCredential(ctx context.Context, s logical.Storage, cfg sealed.SourceConfig) ([]byte, error) {
	var row sourceCredential
	ok, err := get(ctx, s, storeSourceCreds+string(cfg.Name), &row)
	if err != nil || !ok || row.For != placeOf(cfg) {
		clear(row.Credential)
		return nil, err
	}
	return row.Credential, nil
}

// placeOf digests everything that says where a source's credential is sent.
func placeOf(cfg sealed.SourceConfig) sealed.Digest {
	cfg.HasCredential, cfg.Levels = false, nil
	doc, err := json.Marshal(cfg)
	if err != nil { // strings and a bool always marshal
		return ""
	}
	return sealed.DigestOf(domainSource, doc)
}

func validateSource(cfg sealed.SourceConfig) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Type != sealed.SourceBuiltin && cfg.Name == sealed.SourceBuiltin {
		return invalid("name", "builtin is the mount's own store")
	}
	if cfg.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(cfg.CA)) {
		return invalid("ca", "wants PEM certificates")
	}
	return nil
}

func (b *backend) sourceNames(ctx context.Context, s logical.Storage) ([]string, error) {
	names, err := s.List(ctx, storeSources)
	if err != nil {
		return nil, fmt.Errorf("listing sources: %w", err)
	}
	if !slices.Contains(names, sealed.SourceBuiltin) {
		names = append(names, sealed.SourceBuiltin)
	}
	slices.Sort(names)
	return names, nil
}

func (b *backend) sourceRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	cfg, err := loadSource(ctx, req.Storage, sealed.Name(text(d, "name")))
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	cred, err := loadCredential(ctx, req.Storage, cfg)
	if err != nil {
		return nil, err
	}
	cfg.HasCredential = cred != nil
	clear(cred)
	doc, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("encoding source: %w", err)
	}
	return map[string]any{"source": string(doc)}, nil
}

func (b *backend) sourceWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	name, err := sealed.ParseName("name", text(d, "name"))
	if err != nil {
		return nil, err
	}
	cfg, err := parseSource(name, text(d, "source"))
	if err != nil {
		return nil, err
	}
	cred, given := d.GetOk("credential")
	switch {
	case given && cfg.Type == sealed.SourceBuiltin:
		return nil, invalid("credential", "the built-in store has none")
	case given && (cred.(string) == "" || len(cred.(string)) > maxCredential):
		return nil, invalid("credential", "wants 1 byte to 8 KiB")
	}
	if !given {
		return b.putSource(ctx, req, cfg, nil, nil)
	}
	login := []byte(cred.(string))
	defer clear(login)
	return b.putSource(ctx, req, cfg, login, nil)
}

// putSource deletes a credential that was for another place before it points
// the source there, and writes a new one last. A login that comes with what
// becomes a proposal is not kept: it has no place yet.
func (b *backend) putSource(ctx context.Context, req *logical.Request, cfg sealed.SourceConfig, login []byte, yes *consent) (map[string]any, error) {
	s, name := req.Storage, string(cfg.Name)
	defer b.locks.lock(storeSources + name)()
	old, err := loadSource(ctx, s, cfg.Name)
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	exists := err == nil
	answer, err := b.gate(ctx, req, widening{kind: sealed.ProposalSource, target: name,
		before: sourceText(old, exists), after: textOf(cfg), widens: sourceWidens(old, cfg, exists)}, yes)
	if answer != nil || err != nil {
		if answer != nil {
			answer["credential_dropped"] = login != nil
		}
		return answer, err
	}
	moved := exists && placeOf(old) != placeOf(cfg)
	body := map[string]any{"source": name, "type": cfg.Type, "moved": moved, "credential_written": login != nil}
	if err := b.change(ctx, req, "source.changed", yes.sign(body)); err != nil {
		return nil, err
	}
	defer b.nouns.sources.drop()
	if moved {
		if err := s.Delete(ctx, storeSourceCreds+name); err != nil {
			return nil, fmt.Errorf("dropping credential: %w", err)
		}
	}
	if err := put(ctx, s, storeSources+name, cfg); err != nil {
		return nil, err
	}
	if login != nil {
		if err := put(ctx, s, storeSourceCreds+name, sourceCredential{For: placeOf(cfg), Credential: login}); err != nil {
			return nil, err
		}
	}
	return map[string]any{"credential_dropped": moved && login == nil}, nil
}

// sourceText is the text of a source's configuration; none is empty.
func sourceText(cfg sealed.SourceConfig, exists bool) string {
	if !exists {
		return ""
	}
	cfg.HasCredential = false
	return textOf(cfg)
}

func sourceTextNow(ctx context.Context, s logical.Storage, name sealed.Name) (string, error) {
	cfg, err := loadSource(ctx, s, name)
	if isNotFound(err) {
		return "", nil
	}
	return sourceText(cfg, err == nil), err
}

func parseSource(name sealed.Name, doc string) (sealed.SourceConfig, error) {
	var cfg sealed.SourceConfig
	if err := sealed.Decode([]byte(doc), maxSource, &cfg); err != nil {
		return cfg, fmt.Errorf("parsing source: %w", err)
	}
	if cfg.Name != name {
		return cfg, invalid("source.name", "differs from the path")
	}
	cfg.Address = strings.TrimSuffix(cfg.Address, "/")
	cfg.HasCredential = false // what is stored decides
	return cfg, validateSource(cfg)
}

func (b *backend) sourceDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	name, err := sealed.ParseName("name", text(d, "name"))
	if err != nil {
		return nil, err
	}
	s := req.Storage
	defer b.locks.lock(storeSources + string(name))()
	exists, err := get(ctx, s, storeSources+string(name), new(json.RawMessage))
	if err != nil || !exists {
		return nil, err
	}
	if err := b.keepNarrow(ctx, s, name); err != nil {
		return nil, err
	}
	force, _ := d.Get("force").(bool)
	if !force {
		user, err := b.profileUsing(ctx, s, name)
		if err != nil {
			return nil, err
		}
		if user != "" {
			return nil, fmt.Errorf("deleting source: profile %s uses it: %w", user, sealed.ErrConflict)
		}
	}
	if err := b.change(ctx, req, "source.deleted", map[string]any{"source": name, "forced": force}); err != nil {
		return nil, err
	}
	defer b.nouns.sources.drop()
	if err := s.Delete(ctx, storeSourceCreds+string(name)); err != nil {
		return nil, fmt.Errorf("deleting credential: %w", err)
	}
	if err := s.Delete(ctx, storeSources+string(name)); err != nil {
		return nil, fmt.Errorf("deleting source: %w", err)
	}
	return nil, nil
}

// keepNarrow refuses to delete a row of the built-in source without which more
// levels may name it than before: that is a change to write, and to confirm.
func (b *backend) keepNarrow(ctx context.Context, s logical.Storage, name sealed.Name) error {
	if name != sealed.SourceBuiltin {
		return nil
	}
	old, err := loadSource(ctx, s, name)
	if err != nil {
		return err
	}
	cfg, err := b.config(ctx, s)
	if err != nil || cfg.SecondPersonOff || len(sourceWidens(old, sealed.SourceConfig{Name: name, Type: sealed.SourceBuiltin}, true)) == 0 {
		return err
	}
	return fmt.Errorf("deleting source: without its row more levels may name it; write the levels instead: %w", sealed.ErrConflict)
}

func (b *backend) sourceCheck(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	_, src, err := b.source(ctx, req.Storage, sealed.Name(text(d, "name")))
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	if err := src.Check(ctx); err != nil {
		return map[string]any{"ok": false, "error": sealed.CleanReason(err.Error())}, nil
	}
	return map[string]any{"ok": true}, nil
}
