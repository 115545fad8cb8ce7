package vaultplugin

import (
	"context"

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
	for _, id := range ids {
		var r runRow
		ok, err := get(ctx, s, storeRunsLive+id, &r)
		if err != nil {
			return err
		}
		if !ok { // archived since the listing
			continue
		}
		if err := r.decodeManifest(); err != nil {
			return err
		}
		x.ifNotNoted(id, func() { x.putRun(r) })
		if err := x.loadGrants(ctx, s, r.ID); err != nil {
			return err
		}
	}
	return nil
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
	for _, id := range ids {
		a, err := readApproval(ctx, s, storeApprovalsLive, sealed.ApprovalID(id))
		if err != nil {
			return err
		}
		if a.ID != "" {
			x.ifNotNoted(id, func() { x.putApproval(a) })
		}
	}
	return nil
}
