package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// keepEvery is how often sources are asked to keep their logins.
const keepEvery = 20 * time.Second

var sha256RE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// validateHelpers checks what runs beside the plug-in. Who may write a source
// can't: a program to run and a directory to read are the host's business.
func (c *engineConfig) validateHelpers() error {
	for typ, sum := range c.SourceHelpers {
		if !sealed.SourceHelped(typ) {
			return invalid("source_helpers", "wants types of source that have a helper")
		}
		if !sha256RE.MatchString(sum) {
			return invalid("source_helpers", "wants the SHA-256 of the program, 64 hex digits")
		}
	}
	if c.SOPSRoot != "" && (!filepath.IsAbs(c.SOPSRoot) || filepath.Clean(c.SOPSRoot) != c.SOPSRoot || c.SOPSRoot == "/") {
		return invalid("sops_root", "wants an absolute directory other than /")
	}
	return nil
}

// openSource opens a source here or in its helper, and owns credential.
func (b *backend) openSource(ctx context.Context, s logical.Storage, cfg sealed.SourceConfig, credential *secret.Value) (Source, error) {
	if !sealed.SourceHelped(cfg.Type) {
		return b.deps.OpenSource(cfg, credential)
	}
	engine, err := b.config(ctx, s)
	if err != nil {
		credential.Destroy()
		return nil, err
	}
	sum := engine.SourceHelpers[cfg.Type]
	if sum == "" || b.deps.OpenHelped == nil {
		credential.Destroy()
		return nil, fmt.Errorf("its helper is not configured: %w", sealed.ErrUnavailable)
	}
	helper := sealed.SourceHelper{SHA256: sum}
	if cfg.Type == sealed.SourceSOPS {
		helper.Root = engine.SOPSRoot
	}
	return b.deps.OpenHelped(cfg, helper, credential)
}

// renewAtSource prolongs the credential of a grant where its source has to,
// and returns how long it lasts; a credential that needs no renewing lasts as
// long as its grant.
func (b *backend) renewAtSource(ctx context.Context, s logical.Storage, g grantRow) (time.Duration, error) {
	if !g.Renewable {
		return g.TTL.Std(), nil
	}
	_, src, err := b.source(ctx, s, g.Source)
	if err != nil {
		return 0, err
	}
	r, ok := src.(Renewer)
	if !ok {
		return 0, errRefused
	}
	ctx, cancel := context.WithTimeout(ctx, sourceLimit)
	defer cancel()
	left, err := r.Renew(ctx, g.Handle)
	if err != nil {
		return 0, fmt.Errorf("renewing: the source can't prolong the credential: %w", sealed.ErrUnavailable)
	}
	return left.Truncate(time.Second), nil
}

// keepSources renews the logins of the sources, apart from requests.
func (w *worker) keepSources(ctx context.Context) {
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := w.b.keepLogins(ctx, w.b.storage); err != nil {
				w.b.Logger().Warn("a source's login was not renewed", "error", err)
			}
		}
	}
}

// keepLogins asks every source that has a login to keep it.
func (b *backend) keepLogins(ctx context.Context, s logical.Storage) error {
	if _, err := b.config(ctx, s); err != nil {
		return nil // not configured: nothing to keep
	}
	names, err := s.List(ctx, storeSources)
	if err != nil {
		return fmt.Errorf("listing sources: %w", err)
	}
	for _, name := range names {
		_, src, serr := b.source(ctx, s, sealed.Name(name))
		if k, ok := src.(Keeper); ok && serr == nil {
			limited, cancel := context.WithTimeout(ctx, sourceLimit)
			if kerr := k.Keep(limited); kerr != nil {
				err = errors.Join(err, fmt.Errorf("source %s: %w", name, kerr))
			}
			cancel()
		}
	}
	return err
}
