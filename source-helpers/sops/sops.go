// Package sops is the source of static values in files that SOPS encrypted.
//
// # Format
//
// Files are YAML, JSON, dotenv, INI or binary, by the ending of their name, as
// SOPS itself tells them. A reference is a path below the source's directory;
// its field is a key at the top ("token"), a JSON pointer (RFC 6901) into the
// tree ("/db/0/password"), or empty for a binary file. The credential is age
// identities, one a line, and armored PGP private keys without a passphrase, in
// any mix.
//
// # Guarantee
//
// SOPS's own code reads, decrypts and checks the MAC of the whole file; a file
// without a right MAC gives nothing, and so does a value that the file holds
// unencrypted. Only age and PGP are used, in memory: keys of a cloud that a file
// names are never asked for, nor is an agent, a key ring or another program, so a
// hostile file reaches nothing. A file is at most 1 MiB and regular; no part of
// its path is a link or leads out of the directory that the engine's
// configuration allows.
//
// # What it does not guarantee
//
// A MAC proves that somebody with the data key wrote the file, not who: whoever
// can write files there and knows a public key can replace one. SOPS keeps no
// versions: the version of a value is the digest of its whole file, and a
// reference that pins another one is refused. A value that was read can't be
// un-issued.
package sops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/getsops/sops/v3"
	"github.com/getsops/sops/v3/aes"
	"github.com/getsops/sops/v3/cmd/sops/common"
	"github.com/getsops/sops/v3/cmd/sops/formats"
	"github.com/getsops/sops/v3/config"
	"github.com/getsops/sops/v3/keyservice"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

// maxFile bounds a file, in bytes.
const maxFile = 1 << 20

// A Source reads the files below one directory. It is safe for concurrent use.
type Source struct {
	source.Static
	root  string // the only directory that is read
	mount string // below it
	keys  keys
}

// Open makes a source and takes ownership of credential. It reads nothing. The
// error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, root string, credential *secret.Value) (*Source, error) {
	if !path.IsAbs(root) || path.Clean(root) != root || root == "/" {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, &sealed.FieldError{Field: "sops_root", Reason: "wants an absolute directory other than /"})
	}
	s := &Source{root: root, mount: cfg.Mount}
	if err := credential.Reveal(func(b []byte) (err error) {
		s.keys, err = parseKeys(b)
		return err
	}); err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	credential.Destroy() // what was parsed is kept
	return s, nil
}

// Mint decrypts a file and picks one value. The error matches
// sealed.ErrInvalid for a reference that can't be one, else
// sealed.ErrUnavailable, and sealed.ErrNotFound too when the file is not there.
func (s *Source) Mint(_ context.Context, ref sealed.KeyRef, _ string) (source.Minted, error) {
	steps, err := parseField(ref.Field)
	if err != nil {
		return source.Minted{}, err
	}
	raw, version, err := s.pinned(ref)
	if err != nil {
		return source.Minted{}, err
	}
	value, err := s.keys.decrypt(raw, formats.FormatForPath(ref.Path), steps)
	if err != nil {
		return source.Minted{}, fmt.Errorf("reading file: %w", err)
	}
	return source.Minted{Value: secret.New([]byte(value)), Version: version}, nil
}

// Newest is the digest of the file, "sha256:" and hex. It needs no key. The
// error is as of Mint.
func (s *Source) Newest(_ context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	if _, err := parseField(ref.Field); err != nil {
		return "", err
	}
	_, version, err := s.pinned(ref)
	return version, err
}

// pinned reads a file and refuses one of another version than ref pins.
func (s *Source) pinned(ref sealed.KeyRef) (raw []byte, version sealed.SourceVersion, err error) {
	if raw, err = s.read(ref.Path); err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(raw)
	version = sealed.SourceVersion("sha256:" + hex.EncodeToString(sum[:]))
	if err := source.SameVersion(ref, version); err != nil {
		return nil, "", fmt.Errorf("reading file: %w", err)
	}
	return raw, version, nil
}

// Check reports whether the directory is there. It reads no file.
func (s *Source) Check(context.Context) error {
	root, err := os.OpenRoot(s.root)
	if err != nil {
		return fmt.Errorf("checking directory: not there: %w", sealed.ErrUnavailable)
	}
	defer root.Close()
	if err := noLinks(root, s.mount); err != nil {
		return err
	}
	if info, err := root.Stat(path.Join(".", s.mount)); err != nil || !info.IsDir() {
		return fmt.Errorf("checking directory: not there: %w", sealed.ErrUnavailable)
	}
	return nil
}

// parseField turns a field into the steps from the top of the tree.
func parseField(field string) ([]string, error) {
	switch {
	case field == "":
		return []string{"data"}, nil // where SOPS keeps the whole of a binary file
	case !strings.HasPrefix(field, "/"):
		return []string{field}, nil
	}
	steps := strings.Split(field[1:], "/")
	for i, step := range steps {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(step), "~") {
			return nil, &sealed.FieldError{Field: "ref.field", Reason: "wants a key or a JSON pointer"}
		}
		steps[i] = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
	}
	return steps, nil
}

// read returns a file below the directory. os.Root keeps it there whatever
// changes meanwhile; links are refused besides, so that a path means one file.
func (s *Source) read(ref string) ([]byte, error) {
	if err := source.CheckPath(ref); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(s.root)
	if err != nil {
		return nil, fmt.Errorf("opening directory: not there: %w", sealed.ErrUnavailable)
	}
	defer root.Close()
	name := path.Join(s.mount, ref)
	if err := noLinks(root, name); err != nil {
		return nil, err
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("opening file: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("opening file: refused: %w", sealed.ErrUnavailable)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("opening file: not a regular file of at most %d bytes: %w", maxFile, sealed.ErrUnavailable)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil || len(raw) > maxFile {
		return nil, fmt.Errorf("reading file: not a regular file of at most %d bytes: %w", maxFile, sealed.ErrUnavailable)
	}
	return raw, nil
}

// noLinks refuses a path of which a part is a link.
func noLinks(root *os.Root, name string) error {
	at := ""
	for part := range strings.SplitSeq(name, "/") {
		at = path.Join(at, part)
		if at == "" {
			continue
		}
		info, err := root.Lstat(at)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("opening file: %w: %w", sealed.ErrNotFound, sealed.ErrUnavailable)
		}
		if err != nil || info.Mode()&os.ModeSymlink != 0 {
			return fmt.Errorf("opening file: its path has a link: %w", sealed.ErrUnavailable)
		}
	}
	return nil
}

// decrypt is what sops/v3/decrypt does, with a key service that knows age and
// PGP only, and picks one value. A file that makes SOPS panic is malformed.
func (k keys) decrypt(raw []byte, format formats.Format, steps []string) (value string, err error) {
	defer func() {
		if recover() != nil {
			value, err = "", fmt.Errorf("malformed: %w", sealed.ErrUnavailable)
		}
	}()
	tree, err := common.StoreForFormat(format, config.NewStoresConfig()).LoadEncryptedFile(raw)
	if err != nil || len(tree.Branches) != 1 || tree.Metadata.MessageAuthenticationCode == "" {
		return "", fmt.Errorf("no SOPS file of one document: %w", sealed.ErrUnavailable)
	}
	if stored, ok := pick(tree.Branches[0], steps).(string); !ok || !strings.HasPrefix(stored, "ENC[") {
		return "", fmt.Errorf("the field is not there, or not encrypted: %w", sealed.ErrUnavailable)
	}
	key, err := tree.Metadata.GetDataKeyWithKeyServices([]keyservice.KeyServiceClient{k}, sops.DefaultDecryptionOrder)
	if err != nil {
		return "", fmt.Errorf("none of the keys opens it: %w", sealed.ErrUnavailable)
	}
	defer clear(key)
	cipher := aes.NewCipher()
	mac, err := tree.Decrypt(key, cipher)
	if err != nil {
		return "", fmt.Errorf("changed since it was encrypted: %w", sealed.ErrUnavailable)
	}
	stored, err := cipher.Decrypt(tree.Metadata.MessageAuthenticationCode, key, tree.Metadata.LastModified.Format(time.RFC3339))
	if text, ok := stored.(string); err != nil || !ok || text == "" || text != mac {
		return "", fmt.Errorf("changed since it was encrypted: %w", sealed.ErrUnavailable)
	}
	value, ok := pick(tree.Branches[0], steps).(string)
	if !ok || value == "" {
		return "", fmt.Errorf("the field is not a string, or empty: %w", sealed.ErrUnavailable)
	}
	return value, nil
}

// pick follows the steps into a tree. nil: they lead nowhere.
func pick(at any, steps []string) any {
	for _, step := range steps {
		switch node := at.(type) {
		case sops.TreeBranch:
			at = nil
			for _, item := range node {
				if key, ok := item.Key.(string); ok && key == step {
					at = item.Value
				}
			}
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(node) || strconv.Itoa(i) != step {
				return nil
			}
			at = node[i]
		default:
			return nil
		}
	}
	return at
}
