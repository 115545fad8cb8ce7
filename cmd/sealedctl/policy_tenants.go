package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// A tenantPolicy is what is in force at one mount.
type tenantPolicy struct {
	Mount    string        `json:"mount"`
	Sequence uint64        `json:"sequence"`
	Digest   sealed.Digest `json:"digest,omitempty"`
	Laggard  bool          `json:"laggard"` // it has not the policy that the others have
	Reason   string        `json:"reason,omitempty"`
}

// tenants returns the engines that the token can reach: the mount that is named,
// and all of its kind. Vault shows a token no others.
func (a *app) tenants(ctx context.Context) ([]string, *vaultclient.Client, error) {
	c, err := a.client(ctx)
	if err != nil {
		return nil, nil, err
	}
	kind, _, err := c.Engine(a.mount).PluginVersion(ctx)
	if err != nil {
		return nil, nil, err
	}
	mounts, err := c.Mounts(ctx, func(k string) bool { return k == kind || strings.HasPrefix(k, install.PluginName) })
	return mounts, c, err
}

// policyOf reads what is in force at a mount; nothing is a zero sequence.
func policyOf(ctx context.Context, c *vaultclient.Client, mount string) tenantPolicy {
	t := tenantPolicy{Mount: mount}
	s, err := c.Engine(mount).PolicyStatus(ctx)
	if err != nil && !errors.Is(err, sealed.ErrNotFound) {
		t.Reason = err.Error()
	}
	t.Sequence, t.Digest = s.Sequence, s.Digest
	return t
}

// uploadAll puts one bundle in force at every tenant: each with the same sequence,
// above that of all. One that refuses keeps what it has, and the others go on.
func (a *app) uploadAll(ctx context.Context, f *uploadFlags, args []string) error {
	mounts, c, err := a.tenants(ctx)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		f.above = max(f.above, policyOf(ctx, c, m).Sequence)
	}
	raw, _, err := f.make(ctx, a, args)
	if err != nil {
		return err
	}
	if err := a.showEffect(ctx, raw, f.compareTo, false); err != nil {
		return err
	}
	if err := a.sure(fmt.Sprintf("Put this policy in force at %d tenants (%s)?", len(mounts), strings.Join(mounts, ", ")), f.yes); err != nil {
		return err
	}
	if err := a.keepOpened(ctx, raw); err != nil {
		return err
	}
	all := make([]tenantPolicy, len(mounts))
	for i, m := range mounts {
		done, err := c.Engine(m).UploadPolicy(ctx, raw)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			all[i] = policyOf(ctx, c, m)
			all[i].Laggard, all[i].Reason = true, err.Error()
			continue
		}
		all[i] = tenantPolicy{Mount: m, Sequence: done.Sequence, Digest: done.Digest}
	}
	return a.printTenants(all)
}

// statusAll shows what is in force at every tenant; those below the highest
// sequence are behind.
func (a *app) statusAll(ctx context.Context) error {
	mounts, c, err := a.tenants(ctx)
	if err != nil {
		return err
	}
	var all []tenantPolicy
	var newest uint64
	for _, m := range mounts {
		t := policyOf(ctx, c, m)
		all, newest = append(all, t), max(newest, t.Sequence)
	}
	for i := range all {
		all[i].Laggard = all[i].Reason != "" || all[i].Sequence < newest
	}
	return a.printTenants(all)
}

// printTenants is an error if one is behind.
func (a *app) printTenants(all []tenantPolicy) error {
	behind := 0
	for _, t := range all {
		if t.Laggard {
			behind++
		}
	}
	if err := a.print(all, func(w io.Writer) {
		row(w, "MOUNT", "SEQUENCE", "DIGEST", "STATE")
		for _, t := range all {
			state := "up to date"
			if t.Laggard {
				state = strings.TrimSuffix("behind: "+t.Reason, ": ")
			}
			row(w, t.Mount, t.Sequence, fmt.Sprintf("%.12s", t.Digest), state)
		}
	}); err != nil {
		return err
	}
	if behind > 0 {
		return fmt.Errorf("%d of %d tenants are behind: %w", behind, len(all), sealed.ErrConflict)
	}
	return nil
}
