package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sealed.dev/sealed/internal/sealed"
)

// A TrustFile says where to write the file that tells the hosts whom sealed-init
// trusts, and what it says besides what the Target and the engine know.
type TrustFile struct {
	Path          string // absolute; on this host, to be copied to the others
	VaultAddr     string // https://host:port, as sandboxes reach Vault
	VaultCA       string // PEM
	SPIFFESocket  string // Workload API of the hosts' SPIRE agents
	AttestSocket  string // registry socket of the hosts' attestors
	UpstreamRoots string // PEM; the only roots for upstream TLS
	Relay         map[string]string
}

func (f TrustFile) validate() error {
	if !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path {
		return &sealed.FieldError{Field: "trust_file", Reason: "wants a clean absolute path"}
	}
	if f.VaultCA == "" || f.UpstreamRoots == "" {
		return &sealed.FieldError{Field: "trust_file", Reason: "wants the CA of Vault and the roots for upstreams"}
	}
	return nil
}

// trustDocument is the wanted text; nil while the mount has no keys.
func (t target) trustDocument(ctx context.Context) ([]byte, error) {
	cfg, err := read(ctx, t.c, t.Mount+"/config", nil)
	if err != nil || cfg == nil {
		return nil, err
	}
	f := t.TrustFile
	doc, err := json.MarshalIndent(sealed.TrustFile{
		V: 1, Tenant: t.Tenant, TrustDomain: t.TrustDomain,
		VaultAddr: f.VaultAddr, VaultCA: f.VaultCA, VaultMount: t.Mount,
		AuthMount: t.AuthMount, AuthRole: t.role(), Audience: t.Audience,
		AnswerKey: text(cfg, "answer_key"), LogKey: text(cfg, "log_key"),
		SPIFFESocket: f.SPIFFESocket, UpstreamRoots: f.UpstreamRoots, Relay: f.Relay, AttestSocket: f.AttestSocket,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding trust file: %w", err)
	}
	if _, err := sealed.ParseTrustFile(doc); err != nil {
		return nil, fmt.Errorf("making trust file: %w", err)
	}
	return append(doc, '\n'), nil
}

// trustFile writes the file for its owner, root where the caller is root, with mode
// 0644. It is left alone if it says the same: replacing it ends the attestation of
// sandboxes that start right now. One of another mount is a conflict.
func (t target) trustFile() step {
	path := t.TrustFile.Path
	s := step{name: "trust-file", what: "trust file " + path + " for the hosts"}
	s.look = func(ctx context.Context) (found, error) {
		want, err := t.trustDocument(ctx)
		if err != nil {
			return found{}, err
		}
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return absent(owner())
		}
		if err != nil {
			return found{}, err
		}
		if !st.Mode().IsRegular() {
			return conflict("%s is not a regular file", path)
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return found{}, err
		}
		if old, err := sealed.ParseTrustFile(have); err == nil && (old.Tenant != t.Tenant || old.VaultMount != t.Mount) {
			return conflict("%s is for tenant %s at %s/; name another file", path, old.Tenant, old.VaultMount)
		}
		switch {
		case want == nil:
			return different("the mount has no keys yet")
		case !bytes.Equal(have, want):
			return different("it says something else; sandboxes that start right now will be refused")
		case st.Mode().Perm() != trustMode:
			return different(fmt.Sprintf("it has mode %04o", st.Mode().Perm()))
		}
		return same(owner())
	}
	s.apply = func(ctx context.Context) error {
		want, err := t.trustDocument(ctx)
		if err != nil {
			return err
		}
		if want == nil {
			return errors.New("the mount has no keys yet")
		}
		return replaceFile(path, want)
	}
	return s
}

// trustMode: everyone reads it, its owner alone writes it.
const trustMode fs.FileMode = 0o644

func owner() string {
	if os.Geteuid() != 0 {
		return "yours, not root's: runs are graded same_uid at best"
	}
	return "root's, mode 0644"
}

// replaceFile writes a whole file in one step. A directory that is missing is made.
func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".trust-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(trustMode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
