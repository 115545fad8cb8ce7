package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
	"sealed.dev/sealed/internal/source/bitwarden"
	"sealed.dev/sealed/internal/source/helper"
	"sealed.dev/sealed/internal/source/onepassword"
	"sealed.dev/sealed/internal/source/vaultdynamic"
	"sealed.dev/sealed/internal/source/vaultkv"
	vaultplugin "sealed.dev/sealed/vault-plugin"
)

// minter is what the packages below internal/source implement: the engine's
// Source in their own words, so that they need not import the engine.
type minter interface {
	Prepare(ctx context.Context, ref sealed.KeyRef) (string, error)
	Mint(ctx context.Context, ref sealed.KeyRef, handle string) (source.Minted, error)
	Revoke(ctx context.Context, handle string) error
	Renew(ctx context.Context, handle string) (time.Duration, error)
	Check(ctx context.Context) error
	Keep(ctx context.Context) error
	Revocable() bool
}

// adapter turns a minter into the engine's Source.
type adapter struct{ minter }

func (a adapter) Mint(ctx context.Context, ref sealed.KeyRef, handle string) (vaultplugin.Minted, error) {
	m, err := a.minter.Mint(ctx, ref, handle)
	return vaultplugin.Minted{Value: m.Value, Handle: m.Handle, TTL: m.TTL, Max: m.Max, Version: m.Version}, err
}

// versioned is adapter for a minter that tells versions.
type versioned struct {
	adapter
	vaultplugin.Versioned
}

// openSource makes a source of the configured type and owns credential: where
// it fails the credential is wiped.
func openSource(cfg sealed.SourceConfig, credential *secret.Value) (vaultplugin.Source, error) {
	var m minter
	var err error
	switch cfg.Type {
	case sealed.SourceVaultKV:
		m, err = vaultkv.Open(cfg, credential, nil)
	case sealed.SourceVaultDynamic:
		m, err = vaultdynamic.Open(cfg, credential, nil)
	case sealed.SourceOnePassword:
		m, err = onepassword.Open(cfg, credential)
	case sealed.SourceBitwarden:
		m, err = bitwarden.Open(cfg, credential, nil)
	default:
		err = &sealed.FieldError{Field: "type", Reason: "this plug-in has no such source"}
	}
	if err != nil {
		credential.Destroy()
		return nil, err
	}
	return adapt(m), nil
}

func adapt(m minter) vaultplugin.Source {
	if v, ok := m.(vaultplugin.Versioned); ok {
		return versioned{adapter{m}, v}
	}
	return adapter{m}
}

// programs are the helpers, by type of source. They lie beside this program,
// where only who may register plug-ins can put them. (vault server -dev tries to
// register whatever is there, and fails: it wants -dev-plugin-init=false then.)
var programs = map[string]string{
	sealed.SourceAWS:  "sealed-source-aws",
	sealed.SourceSOPS: "sealed-source-sops",
}

// openHelped makes a source that lives in a helper process, and owns
// credential: where it fails the credential is wiped.
func openHelped(cfg sealed.SourceConfig, pin sealed.SourceHelper, credential *secret.Value) (vaultplugin.Source, error) {
	exe, err := os.Executable()
	if err != nil || programs[cfg.Type] == "" {
		credential.Destroy()
		return nil, fmt.Errorf("finding the helper of the source: %w", sealed.ErrUnavailable)
	}
	h, err := helper.Open(cfg, pin, filepath.Join(filepath.Dir(exe), programs[cfg.Type]), credential)
	if err != nil {
		credential.Destroy()
		return nil, err
	}
	return adapt(h), nil
}
