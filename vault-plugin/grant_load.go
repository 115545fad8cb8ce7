package vaultplugin

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// journalled returns the grants that the log's journal holds, in their order.
// known is false if there is no log yet.
type journalled func(context.Context, logical.Storage) (rows []grantRow, known bool, err error)

// load reads storage, once, and the log's journal as often as it is behind.
func (x *grantIndex) load(ctx context.Context, s logical.Storage, journal journalled) error {
	if loaded, age := x.has(); loaded && age == 0 {
		return nil
	}
	x.loading.Lock()
	defer x.loading.Unlock()
	loaded, age := x.has()
	if loaded && age == 0 {
		return nil
	}
	rows, known, err := journal(ctx, s)
	if err != nil {
		return unavailable(err)
	}
	if !known {
		age = 0 // look again
	}
	if !loaded {
		if err := x.loadRows(ctx, s); err != nil {
			return unavailable(err)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, g := range rows {
		x.putAttached(g)
	}
	x.loaded, x.noted = true, nil
	x.behind -= age // what the journal has got since is still to be read
	return nil
}

func (x *grantIndex) loadRows(ctx context.Context, s logical.Storage) error {
	if err := x.loadRuns(ctx, s); err != nil {
		return err
	}
	return x.loadApprovals(ctx, s)
}

func (x *grantIndex) has() (loaded bool, behind int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.loaded, x.behind
}

// fallBehind says that the log's journal has to be read before the next use.
func (x *grantIndex) fallBehind() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.behind++
}

// putAttached adds a grant of a live run that has no row.
func (x *grantIndex) putAttached(g grantRow) {
	l, ok := x.runs[g.Run]
	if !ok || l.row.ID == "" || x.noted[string(g.Run)+"/"+string(g.ID)] {
		return
	}
	if _, stored := l.grants[g.ID]; stored && !x.rowless[g.ID] {
		return
	}
	if x.loaded && x.rowless[g.ID] {
		return // known, and perhaps further on in memory
	}
	x.putGrant(g)
	x.rowless[g.ID] = true
}

func (x *grantIndex) loadRuns(ctx context.Context, s logical.Storage) error {
	ids, err := s.List(ctx, storeRunsLive)
	if err != nil {
		return err
	}
	return atOnce(ids, func(id string) error {
		var r runRow
		ok, err := get(ctx, s, storeRunsLive+id, &r)
		if err != nil || !ok { // archived since the listing
			return err
		}
		if err := r.decodeManifest(); err != nil {
			return err
		}
		x.ifNotNoted(id, func() { x.putRun(r) })
		return x.loadGrants(ctx, s, r.ID)
	})
}

func (x *grantIndex) loadGrants(ctx context.Context, s logical.Storage, run sealed.RunID) error {
	prefix := storeGrants + string(run) + "/"
	ids, err := s.List(ctx, prefix)
	if err != nil {
		return err
	}
	for _, id := range ids {
		var g grantRow
		ok, err := get(ctx, s, prefix+id, &g)
		if err != nil {
			return err
		}
		if ok {
			x.ifNotNoted(string(run)+"/"+id, func() { x.putGrant(g) })
		}
	}
	return nil
}

func (x *grantIndex) loadApprovals(ctx context.Context, s logical.Storage) error {
	ids, err := s.List(ctx, storeApprovalsLive)
	if err != nil {
		return err
	}
	return atOnce(ids, func(id string) error {
		a, err := readApproval(ctx, s, storeApprovalsLive, sealed.ApprovalID(id))
		if err == nil && a.ID != "" {
			x.ifNotNoted(id, func() { x.putApproval(a) })
		}
		return err
	})
}

// loaders is how many rows are read at a time. A read waits for Vault most of
// its time, and a restart must not cost 10,000 waits.
const loaders = 16

// atOnce calls f for every id, for a few at a time, and stops at an error.
func atOnce(ids []string, f func(id string) error) error {
	var all sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, loaders)
	for w := range loaders {
		all.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(ids) {
					return
				}
				if errs[w] = f(ids[i]); errs[w] != nil {
					next.Store(int64(len(ids))) // nobody begins another
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
