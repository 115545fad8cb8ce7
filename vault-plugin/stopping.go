package vaultplugin

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// enforceInParallel bounds the runs that a hard revocation aborts at a time;
// their entries share the log's batches.
const enforceInParallel = 16

// recordSoon appends an event that nothing waits for; if that fails the
// worker tries again until the process ends.
func (b *backend) recordSoon(ctx context.Context, s logical.Storage, e audit.Event) {
	if _, err := b.record(ctx, s, e); err != nil {
		b.mem.owe(e)
	}
}

// recordOwed appends what recordSoon could not.
func (b *backend) recordOwed(ctx context.Context, s logical.Storage) {
	for _, e := range b.mem.takeOwed() {
		b.recordSoon(ctx, s, e)
	}
}

// covers returns the grants of a run that a revocation covers and the run
// still holds, and whether the run itself has to stop.
func (b *backend) covers(x *grantIndex, cfg *engineConfig, rev sealed.Revocation, r runRow) (hit bool, grants []sealed.GrantID) {
	hit = rev.Covers(r.subject(cfg.TrustDomain))
	for _, g := range x.grants(r.ID) {
		if g.held() && rev.Covers(g.subject(r, cfg.TrustDomain)) {
			grants = append(grants, g.ID)
		}
	}
	return hit || len(grants) > 0, grants
}

// enforce carries out a hard revocation that is durable already: every run
// that it covers, or that holds a credential it covers, is ordered to abort.
// That one write kills all grants of the run; the worker then revokes them at
// their sources. It is idempotent. An error means that it has to be called
// again.
func (b *backend) enforce(ctx context.Context, s logical.Storage, rev sealed.Revocation) (runs []sealed.RunID, grants []sealed.GrantID, err error) {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	var (
		mu    sync.Mutex
		all   sync.WaitGroup
		slots = make(chan struct{}, enforceInParallel)
	)
	for _, r := range x.list() {
		if !r.waiting() {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			hit, gs, aerr := b.abortIfCovered(ctx, s, cfg, rev, r.ID)
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, aerr)
			if hit {
				runs, grants = append(runs, r.ID), append(grants, gs...)
			}
		})
	}
	all.Wait()
	b.worker.wake()
	return runs, grants, err
}

// abortIfCovered looks again under the run's lock. Stopping does not wait for
// the log: the entry is appended after the write, and again if that fails.
func (b *backend) abortIfCovered(ctx context.Context, s logical.Storage, cfg *engineConfig, rev sealed.Revocation, id sealed.RunID) (bool, []sealed.GrantID, error) {
	unlock := b.lockRun(id)
	r, err := b.run(ctx, s, id)
	if err != nil || !r.waiting() {
		unlock()
		return false, nil, unlessDenied(err)
	}
	x, err := b.index(ctx, s)
	if err != nil {
		unlock()
		return false, nil, err
	}
	hit, grants := b.covers(x, cfg, rev, r)
	if !hit {
		unlock()
		return false, nil, nil
	}
	reason := "revocation " + rev.ID
	aborted, err := r.to(sealed.RunAborted, b.now().UTC(), rev.ID, reason)
	if err == nil {
		err = b.saveRun(ctx, s, aborted)
	}
	unlock()
	if err != nil {
		return false, nil, err
	}
	b.recordSoon(ctx, s, endEvent(r, sealed.RunAborted, rev.ID, reason))
	return true, grants, nil
}

// affected tells what enforce would do, without doing it: the runs that would
// stop, the prefixes of their leases, and how many credentials are covered.
func (b *backend) affected(ctx context.Context, s logical.Storage, rev sealed.Revocation) (runs []sealed.RunID, leasePrefixes []string, grants int, err error) {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return nil, nil, 0, err
	}
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, nil, 0, err
	}
	for _, r := range x.list() {
		hit, gs := b.covers(x, cfg, rev, r)
		if !r.waiting() || !hit {
			continue
		}
		runs = append(runs, r.ID)
		leasePrefixes = append(leasePrefixes, "runs/"+string(r.ID)+"/creds/")
		grants += len(gs)
	}
	return runs, leasePrefixes, grants, nil
}

// livePins reports whether a run that is not over pins a bundle, alone or as an overlay.
func (b *backend) livePins(ctx context.Context, s logical.Storage, d sealed.Digest) (bool, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return false, err
	}
	for _, r := range x.list() {
		if !r.over() && (r.m.Bundle.Digest == d || r.m.Overlay.Digest == d) {
			return true, nil
		}
	}
	return false, nil
}
