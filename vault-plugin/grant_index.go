package vaultplugin

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// grantIndex holds, in memory, every run that is not archived with its grants
// and approvals, so that a tick, a watch and a revocation cost no scan.
//
// It is a cache of storage, kept exact by two rules. Writers store first and
// note the change afterwards; the index is published before it is loaded, and
// what was noted meanwhile wins over what the loader reads. After a storage
// error the index is dropped, because the outcome of the write is not known.
//
// A grant whose intent is new has no row yet: it is in the log's journal, which
// is read before the rows, because a row is written before its attachment goes.
// Where there is a row, it is the newer one. What is in the journal of a run
// that is not live any more was archived with it.
type grantIndex struct {
	loading sync.Mutex // held by the one loader

	mu        sync.Mutex
	loaded    bool
	behind    int                     // changes of the log's journal that were not read
	noted     map[string]bool         // ids noted before loaded
	rowless   map[sealed.GrantID]bool // grants that only the log's journal holds
	runs      map[sealed.RunID]*liveRun
	approvals map[sealed.ApprovalID]approvalRow
	asking    map[sealed.RunID]map[sealed.ApprovalID]bool // which of them are about a run
	keys      map[sealed.Digest][]sealed.ManifestKey      // of manifests, by their digest; see lean
}

// liveRun is a run with its grants. changed is closed at its next change of state.
type liveRun struct {
	row     runRow
	grants  map[sealed.GrantID]grantRow
	asked   map[askedFor]sealed.GrantID
	changed chan struct{}
}

// askedFor is what a repeated call has in common with the first one.
type askedFor struct {
	key         sealed.KeyName
	idempotency string
}

func newGrantIndex() *grantIndex {
	return &grantIndex{
		behind:    1,
		noted:     make(map[string]bool),
		rowless:   make(map[sealed.GrantID]bool),
		runs:      make(map[sealed.RunID]*liveRun),
		approvals: make(map[sealed.ApprovalID]approvalRow),
		asking:    make(map[sealed.RunID]map[sealed.ApprovalID]bool),
		keys:      make(map[sealed.Digest][]sealed.ManifestKey),
	}
}

// index returns the loaded index.
func (b *backend) index(ctx context.Context, s logical.Storage) (*grantIndex, error) {
	b.mu.Lock()
	if b.live == nil {
		b.live = newGrantIndex()
	}
	x := b.live
	b.mu.Unlock()
	return x, x.load(ctx, s, b.attached)
}

// note applies a change that is stored already. It reports whether there is an
// index; without one the change is found when storage is read.
func (b *backend) note(change func(*grantIndex)) bool {
	b.mu.Lock()
	x := b.live
	b.mu.Unlock()
	if x == nil {
		return false
	}
	change(x)
	return true
}

func (b *backend) dropIndex() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.live = nil
}

func (x *grantIndex) ifNotNoted(id string, set func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.noted[id] {
		set()
	}
}

// noting runs set and remembers id for a loader that may be at work.
func (x *grantIndex) noting(id string, set func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.loaded {
		x.noted[id] = true
	}
	set()
}

func (x *grantIndex) putRun(r runRow) {
	l := x.liveRun(r.ID)
	if l.row.State != "" && l.row.State != r.State {
		close(l.changed)
		l.changed = make(chan struct{})
	}
	l.row = x.lean(r)
}

// lean returns the row as the index keeps it. Most of a row is its manifest, and
// most of that are the keys, which are the same for many runs of a profile: the
// keys are shared, and the text is left out, unless m would give another one
// (written by another version of the engine).
func (x *grantIndex) lean(r runRow) runRow {
	if r.Manifest == "" || r.m == nil {
		return r
	}
	if raw, _, err := sealed.MarshalManifest(*r.m); err != nil || string(raw) != r.Manifest {
		return r
	}
	r.Manifest = ""
	text, err := json.Marshal(r.m.Keys)
	if err != nil {
		return r
	}
	digest := sealed.DigestOf(sealed.DomainManifest, text)
	keys, known := x.keys[digest]
	if !known {
		if len(x.keys) >= maxCached {
			clear(x.keys)
		}
		keys = r.m.Keys
		x.keys[digest] = keys
	}
	m := *r.m
	m.Keys = keys
	r.m = &m
	return r
}

func (x *grantIndex) putGrant(g grantRow) {
	l := x.liveRun(g.Run)
	l.grants[g.ID] = g
	l.asked[askedFor{g.Key, g.Idempotency}] = g.ID
}

func (x *grantIndex) putApproval(a approvalRow) {
	x.approvals[a.ID] = a
	of := x.asking[a.object.Run]
	if of == nil {
		of = make(map[sealed.ApprovalID]bool)
		x.asking[a.object.Run] = of
	}
	of[a.ID] = true
}

// liveRun returns the entry of a run, made when it is new. A grant may be
// noted before its run was read.
func (x *grantIndex) liveRun(id sealed.RunID) *liveRun {
	l, ok := x.runs[id]
	if !ok {
		l = &liveRun{grants: make(map[sealed.GrantID]grantRow), asked: make(map[askedFor]sealed.GrantID), changed: make(chan struct{})}
		x.runs[id] = l
	}
	return l
}

func (x *grantIndex) setRun(r runRow) { x.noting(string(r.ID), func() { x.putRun(r) }) }

func (x *grantIndex) dropRun(id sealed.RunID) {
	x.noting(string(id), func() {
		if l, ok := x.runs[id]; ok {
			for g := range l.grants {
				delete(x.rowless, g)
			}
		}
		delete(x.runs, id)
	})
}

// setGrant notes a grant whose row is stored.
func (x *grantIndex) setGrant(g grantRow) {
	x.noting(string(g.Run)+"/"+string(g.ID), func() { x.putGrant(g); delete(x.rowless, g.ID) })
}

// setRowless notes a grant of which only the intent is durable, as the attachment
// of its entry; the grant may be further on in memory. A row that is there after
// all is found before one is written.
func (x *grantIndex) setRowless(g grantRow) {
	x.noting(string(g.Run)+"/"+string(g.ID), func() { x.putGrant(g); x.rowless[g.ID] = true })
}

// stored notes that a grant has a row, and changes nothing of it.
func (x *grantIndex) stored(g grantRow) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.rowless, g.ID)
}

func (x *grantIndex) dropGrant(g grantRow) {
	x.noting(string(g.Run)+"/"+string(g.ID), func() {
		l := x.liveRun(g.Run)
		delete(l.grants, g.ID)
		delete(x.rowless, g.ID)
		if asked := (askedFor{g.Key, g.Idempotency}); l.asked[asked] == g.ID {
			delete(l.asked, asked)
		}
	})
}

func (x *grantIndex) setApproval(a approvalRow) {
	x.noting(string(a.ID), func() { x.putApproval(a) })
}

func (x *grantIndex) dropApproval(id sealed.ApprovalID) {
	x.noting(string(id), func() {
		run := x.approvals[id].object.Run
		delete(x.approvals, id)
		if delete(x.asking[run], id); len(x.asking[run]) == 0 {
			delete(x.asking, run)
		}
	})
}

func (x *grantIndex) run(id sealed.RunID) (runRow, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.runs[id]
	if !ok || l.row.ID == "" {
		return runRow{}, false
	}
	return l.row, true
}

// changed is closed when the run next changes its state; nil for a run that
// is not there.
func (x *grantIndex) changed(id sealed.RunID) <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if l, ok := x.runs[id]; ok {
		return l.changed
	}
	return nil
}

// list returns the runs in the order of their ids, which is that of time.
func (x *grantIndex) list() []runRow {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]runRow, 0, len(x.runs))
	for _, id := range slices.Sorted(maps.Keys(x.runs)) {
		if r := x.runs[id].row; r.ID != "" {
			out = append(out, r)
		}
	}
	return out
}

func (x *grantIndex) grant(run sealed.RunID, id sealed.GrantID) (grantRow, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.runs[run]
	if !ok {
		return grantRow{}, false
	}
	g, ok := l.grants[id]
	return g, ok
}

// bare reports whether a grant is here and has no row in storage.
func (x *grantIndex) bare(g grantRow) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.runs[g.Run]
	if !ok || l.row.ID == "" {
		return false
	}
	_, ok = l.grants[g.ID]
	return ok && x.rowless[g.ID]
}

// askedGrant returns the grant that an earlier call with the same idempotency
// key has made, as dead if the run is not alive.
func (x *grantIndex) askedGrant(run sealed.RunID, key sealed.KeyName, idempotency string) (grantRow, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.runs[run]
	if !ok {
		return grantRow{}, false
	}
	id, ok := l.asked[askedFor{key, idempotency}]
	return l.grants[id].ended(l.row), ok
}

// grants returns the grants of a run in the order of their ids, as dead if
// the run is not alive.
func (x *grantIndex) grants(run sealed.RunID) []grantRow {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.runs[run]
	if !ok {
		return nil
	}
	out := make([]grantRow, 0, len(l.grants))
	for _, id := range slices.Sorted(maps.Keys(l.grants)) {
		out = append(out, l.grants[id].ended(l.row))
	}
	return out
}

// approvalsOf returns the live approvals of a run, newest first; key "" means all.
func (x *grantIndex) approvalsOf(run sealed.RunID, key sealed.KeyName) []approvalRow {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []approvalRow
	for id := range x.asking[run] {
		if a := x.approvals[id]; key == "" || a.object.Key == key {
			out = append(out, a)
		}
	}
	newestFirst(out)
	return out
}

// listApprovals returns the live approvals that match, newest first. match is
// called without the index's lock and may use the index.
func (x *grantIndex) listApprovals(match func(approvalRow) bool) []approvalRow {
	x.mu.Lock()
	out := slices.Collect(maps.Values(x.approvals))
	x.mu.Unlock()
	out = slices.DeleteFunc(out, func(a approvalRow) bool { return !match(a) })
	newestFirst(out)
	return out
}

func newestFirst(as []approvalRow) {
	slices.SortFunc(as, func(a, b approvalRow) int { return strings.Compare(string(b.ID), string(a.ID)) })
}

func (x *grantIndex) approval(id sealed.ApprovalID) (approvalRow, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	a, ok := x.approvals[id]
	return a, ok
}
