package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	getsops "github.com/getsops/sops/v3"
	"github.com/getsops/sops/v3/aes"
	sopsage "github.com/getsops/sops/v3/age"
	"github.com/getsops/sops/v3/cmd/sops/common"
	"github.com/getsops/sops/v3/cmd/sops/formats"
	"github.com/getsops/sops/v3/config"
	"github.com/getsops/sops/v3/keyservice"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/helper"
)

// TestProgram builds the real helper and reads a real SOPS file through it, as
// the engine does.
func TestProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	program := filepath.Join(t.TempDir(), "sealed-source-sops")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "ci.yaml"), file(t, id.Recipient().String()), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(credential, root string) *helper.Helped {
		h, err := helper.Open(sealed.SourceConfig{Name: "files", Type: sealed.SourceSOPS}, sealed.SourceHelper{SHA256: hex.EncodeToString(sum[:]), Root: root}, program, secret.New([]byte(credential)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		return h
	}
	h := open(id.String(), root)
	if err := h.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := h.Mint(t.Context(), sealed.KeyRef{Path: "ci.yaml", Field: "token"}, "")
	if err != nil {
		t.Fatal(err)
	}
	_ = m.Value.Reveal(func(b []byte) error {
		if string(b) != "value-of-the-token" {
			t.Errorf("%q", b)
		}
		return nil
	})
	for path, want := range map[string]error{"none.yaml": sealed.ErrNotFound, "../ci.yaml": sealed.ErrInvalid} {
		if _, err := h.Mint(t.Context(), sealed.KeyRef{Path: path, Field: "token"}, ""); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := open("no key", root).Check(t.Context()); !errors.Is(err, sealed.ErrInvalid) || strings.Contains(err.Error(), "no key") {
		t.Error(err)
	}
	if err := open(id.String(), "").Check(t.Context()); !errors.Is(err, sealed.ErrInvalid) {
		t.Errorf("without a directory of the engine's configuration: %v", err)
	}
	if out, err := exec.Command(program).CombinedOutput(); err == nil || strings.Contains(string(out), "goroutine") {
		t.Errorf("by hand: %v %s", err, out)
	}
}

func file(t *testing.T, recipient string) []byte {
	t.Helper()
	store := common.StoreForFormat(formats.Yaml, config.NewStoresConfig())
	branches, err := store.LoadPlainFile([]byte("token: value-of-the-token\n"))
	if err != nil {
		t.Fatal(err)
	}
	mk, err := sopsage.MasterKeyFromRecipient(recipient)
	if err != nil {
		t.Fatal(err)
	}
	tree := getsops.Tree{Branches: branches, Metadata: getsops.Metadata{KeyGroups: []getsops.KeyGroup{{mk}}, Version: "3.13.3"}}
	key, errs := tree.GenerateDataKeyWithKeyServices([]keyservice.KeyServiceClient{keyservice.NewLocalClient()})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if err := common.EncryptTree(common.EncryptTreeOpts{Tree: &tree, Cipher: aes.NewCipher(), DataKey: key}); err != nil {
		t.Fatal(err)
	}
	out, err := store.EmitEncryptedFile(tree)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
