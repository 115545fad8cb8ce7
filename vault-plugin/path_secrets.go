package vaultplugin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

const (
	maxSecret         = 64 << 10
	maxSecretVersions = 16 // older ones are deleted
)

// secretRow is one version of a value, seal-wrapped. Path and version are
// repeated, so that an object moved in storage is not taken for another.
type secretRow struct {
	Path    string `json:"path"`
	Version int    `json:"version"`
	Value   []byte `json:"value"`
}

// secretMeta lists the versions of one path. Its write makes a version exist.
// It survives deletion, so that a version number is never used twice.
type secretMeta struct {
	Last     int             `json:"last"`
	Versions []secretVersion `json:"versions"` // ascending
}

type secretVersion struct {
	Version   int       `json:"version"`
	CreatedAt time.Time `json:"created_at"`
}

func (m secretMeta) has(v int) bool {
	return slices.ContainsFunc(m.Versions, func(x secretVersion) bool { return x.Version == v })
}

// newest is 0 when there is no version.
func (m secretMeta) newest() int {
	if len(m.Versions) == 0 {
		return 0
	}
	return m.Versions[len(m.Versions)-1].Version
}

// pick is the version that ref pins, or the newest. The error matches
// sealed.ErrInvalid or sealed.ErrNotFound.
func (m secretMeta) pick(ref sealed.KeyRef) (int, error) {
	version, err := ref.PinnedNumber()
	if err != nil {
		return 0, err
	}
	if version == 0 {
		version = m.newest()
	}
	if !m.has(version) {
		return 0, fmt.Errorf("no such secret or version: %w", sealed.ErrNotFound)
	}
	return version, nil
}

var secretPathRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63}){0,7}$`)

func validateSecretPath(p string) error {
	if !secretPathRE.MatchString(p) || strings.Contains(p, "..") {
		return invalid("path", "wants 1 to 8 segments of letters, digits, dot, dash and underscore, joined by /")
	}
	return nil
}

func secretKey(path string, version int) string {
	return storeSecrets + path + "/" + strconv.Itoa(version)
}

func (b *backend) pathSecrets() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "secrets/(?P<path>.*)",
		DisplayAttrs: display("secret"),
		Fields: map[string]*framework.FieldSchema{
			"path":     {Type: framework.TypeString, Description: "Path of the secret."},
			"value":    {Type: framework.TypeString, Description: "The value, at most 64 KiB. Write-only.", DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
			"encoding": {Type: framework.TypeString, Description: "base64 when value is encoded so; empty for text."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.op("Read which versions exist and when they were written. Nobody reads a value here.", b.secretRead),
			logical.UpdateOperation: b.op("Write a new version of a value.", b.secretWrite),
			logical.DeleteOperation: b.op("Delete a secret with all its versions.", b.secretDelete),
			logical.ListOperation:   &framework.PathOperation{Summary: "List secrets.", Callback: b.secretList},
		},
		HelpSynopsis:    "The mount's own encrypted store, source builtin.",
		HelpDescription: "Values go in here and come out only as ciphertext for a run. The newest 16 versions are kept.",
	}}
}

func loadSecretMeta(ctx context.Context, s logical.Storage, path string) (secretMeta, error) {
	var meta secretMeta
	_, err := get(ctx, s, storeSecretMeta+path, &meta)
	return meta, err
}

func (b *backend) secretRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	path := text(d, "path")
	if err := validateSecretPath(path); err != nil {
		return nil, err
	}
	meta, err := loadSecretMeta(ctx, req.Storage, path)
	if err != nil || len(meta.Versions) == 0 {
		return nil, err
	}
	versions, err := json.Marshal(meta.Versions)
	if err != nil {
		return nil, fmt.Errorf("encoding versions: %w", err)
	}
	return map[string]any{"version": meta.newest(), "versions": string(versions)}, nil
}

// secretWrite logs, writes the value, and then the list of versions, which
// makes it exist.
func (b *backend) secretWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	path := text(d, "path")
	if err := validateSecretPath(path); err != nil {
		return nil, err
	}
	value, err := secretValue(text(d, "value"), text(d, "encoding"))
	if err != nil {
		return nil, err
	}
	defer clear(value)
	s := req.Storage
	defer b.locks.lock(storeSecretMeta + path)()
	meta, err := loadSecretMeta(ctx, s, path)
	if err != nil {
		return nil, err
	}
	version := meta.Last + 1
	if err := b.change(ctx, req, "secret.written", map[string]any{"path": path, "version": version}); err != nil {
		return nil, err
	}
	if err := put(ctx, s, secretKey(path, version), secretRow{Path: path, Version: version, Value: value}); err != nil {
		return nil, err
	}
	defer b.nouns.versions.drop()
	meta.Last = version
	meta.Versions = append(meta.Versions, secretVersion{Version: version, CreatedAt: b.now().UTC()})
	var old []secretVersion
	if n := len(meta.Versions) - maxSecretVersions; n > 0 {
		old, meta.Versions = meta.Versions[:n], meta.Versions[n:]
	}
	if err := put(ctx, s, storeSecretMeta+path, meta); err != nil {
		return nil, err
	}
	b.nouns.versions.drop() // before the old ones go
	for _, v := range old {
		if err := s.Delete(ctx, secretKey(path, v.Version)); err != nil {
			return nil, fmt.Errorf("deleting old version: %w", err)
		}
	}
	return map[string]any{"version": version}, nil
}

// secretValue decodes the value field. Its errors do not quote it.
func secretValue(value, encoding string) ([]byte, error) {
	out := []byte(value)
	switch encoding {
	case "":
	case "base64":
		var err error
		if out, err = base64.StdEncoding.DecodeString(value); err != nil {
			return nil, invalid("value", "not base64")
		}
	default:
		return nil, invalid("encoding", "wants base64 or nothing")
	}
	if len(out) == 0 || len(out) > maxSecret {
		return nil, invalid("value", "wants 1 byte to 64 KiB")
	}
	return out, nil
}

// secretDelete makes the versions not exist, then deletes every value under
// the path, also what an interrupted write or delete left.
func (b *backend) secretDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	path := text(d, "path")
	if err := validateSecretPath(path); err != nil {
		return nil, err
	}
	s := req.Storage
	defer b.locks.lock(storeSecretMeta + path)()
	meta, err := loadSecretMeta(ctx, s, path)
	if err != nil || meta.Last == 0 {
		return nil, err
	}
	if err := b.change(ctx, req, "secret.deleted", map[string]any{"path": path}); err != nil {
		return nil, err
	}
	defer b.nouns.versions.drop()
	meta.Versions = nil
	if err := put(ctx, s, storeSecretMeta+path, meta); err != nil {
		return nil, err
	}
	return nil, deleteAll(ctx, s, storeSecrets+path+"/")
}

func (b *backend) secretList(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	prefix := strings.TrimSuffix(text(d, "path"), "/")
	if prefix != "" {
		if err := validateSecretPath(prefix); err != nil {
			return nil, b.edge(err)
		}
		prefix += "/"
	}
	names, err := req.Storage.List(ctx, storeSecretMeta+prefix)
	if err != nil {
		return nil, b.edge(fmt.Errorf("listing secrets: %w", err))
	}
	out := []string{}
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			out = append(out, name)
			continue
		}
		meta, err := loadSecretMeta(ctx, req.Storage, prefix+name)
		if err != nil {
			return nil, b.edge(err)
		}
		if len(meta.Versions) > 0 {
			out = append(out, name)
		}
	}
	return logical.ListResponse(out), nil
}
