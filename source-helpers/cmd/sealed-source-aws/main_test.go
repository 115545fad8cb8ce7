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

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/helper"
)

// TestProgram builds the real helper and talks to it as the engine does. What
// it does with an upstream is tested in package aws.
func TestProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	program := filepath.Join(t.TempDir(), "sealed-source-aws")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	cfg := sealed.SourceConfig{Name: "sm", Type: sealed.SourceAWS, Address: "https://127.0.0.1:1", Region: "eu-central-1"}
	for credential, want := range map[string]error{
		`{"access_key_id":"canary-id","secret_access_key":"canary-key"}`: sealed.ErrUnavailable, // nobody listens there
		"canary": sealed.ErrInvalid,
	} {
		h, err := helper.Open(cfg, sealed.SourceHelper{SHA256: hex.EncodeToString(sum[:])}, program, secret.New([]byte(credential)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		if err := h.Check(t.Context()); !errors.Is(err, want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("check: %v, want %v", err, want)
		}
		if m, err := h.Mint(t.Context(), sealed.KeyRef{Path: "x"}, ""); !errors.Is(err, want) || m.Value != nil {
			t.Errorf("mint: %v, want %v", err, want)
		}
	}
}
