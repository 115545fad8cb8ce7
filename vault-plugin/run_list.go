package vaultplugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

const (
	defaultPage = 100
	maxPage     = 1000

	// maxBriefs bounds what is remembered of ended runs; 50,000 take 20 MiB.
	maxBriefs = 50000
	// warmPerTick is how many rows of ended runs the worker reads ahead a second.
	warmPerTick = 500
)

// runView is what is shown of a run in a list.
type runView struct {
	State     string             `json:"state"`
	Agent     sealed.Name        `json:"agent"`
	Mode      string             `json:"mode"`
	Profile   sealed.ProfileName `json:"profile,omitempty"`
	Workflow  sealed.Name        `json:"workflow,omitempty"`
	Tags      []string           `json:"tags,omitempty"`
	Requester string             `json:"requester"`
	CreatedAt string             `json:"created_at"`
	ReplayOf  sealed.RunID       `json:"replay_of,omitempty"`

	who sealed.Requester // without groups and claims
}

func viewOf(r runRow) runView {
	v := runView{
		State: r.State, Agent: r.m.Agent.Name, Mode: r.m.Mode, Profile: r.profile(), Workflow: r.m.Workflow,
		Requester: r.m.Requester.Name, CreatedAt: r.m.CreatedAt.Format("2006-01-02T15:04:05Z07:00"), ReplayOf: r.m.ReplayOf,
		who: sealed.Requester{EntityID: r.m.Requester.EntityID, Name: r.m.Requester.Name, Person: r.m.Requester.Person},
	}
	for _, t := range r.m.Tags {
		v.Tags = append(v.Tags, t.Name)
	}
	return v
}

// endedRuns remembers the views of runs that are over. Such a run never changes
// again, so an entry is right until it is dropped. The zero value is ready.
type endedRuns struct {
	mu    sync.Mutex
	views map[sealed.RunID]runView
}

func (e *endedRuns) get(id sealed.RunID) (runView, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, ok := e.views[id]
	return v, ok
}

// put remembers a view. A full memory forgets what it comes across.
func (e *endedRuns) put(id sealed.RunID, v runView) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.views == nil {
		e.views = make(map[sealed.RunID]runView)
	}
	for old := range e.views {
		if len(e.views) < maxBriefs {
			break
		}
		delete(e.views, old)
	}
	e.views[id] = v
}

func (e *endedRuns) drop(id sealed.RunID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.views, id)
}

// reset forgets everything.
func (e *endedRuns) reset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.views = nil
}

// A runFilter is what a list is narrowed by. Empty fields don't narrow.
type runFilter struct {
	state, agent, profile, workflow, tag string
	requester                            string // entity id, name or person
	before, from                         string // bounds of ids: below before, not below from
	limit                                int
}

// listFields are the fields of a list of runs.
func listFields(into map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	for name, text := range map[string]string{
		"state":     "List: only runs in this state.",
		"agent":     "List: only runs of this agent.",
		"profile":   "List: only runs under this profile.",
		"workflow":  "List: only runs of this workflow.",
		"requester": "List: only runs that this person asked for: name, entity id, or the configured person claim.",
		"tag":       "List: only runs with this tag.",
		"since":     "List: only runs enqueued at or after this time (RFC 3339).",
		"until":     "List: only runs enqueued before this time (RFC 3339).",
		"after":     "List: only runs older than this id, to page on.",
	} {
		into[name] = &framework.FieldSchema{Type: framework.TypeString, Description: text, Query: true}
	}
	into["limit"] = &framework.FieldSchema{Type: framework.TypeInt, Description: "List: at most so many, 100 if not set, never more than 1000.", Query: true}
	return into
}

func parseRunFilter(d *framework.FieldData) (f runFilter, err error) {
	f = runFilter{
		state: text(d, "state"), agent: text(d, "agent"), profile: text(d, "profile"), workflow: text(d, "workflow"),
		tag: text(d, "tag"), requester: text(d, "requester"), before: text(d, "after"), limit: d.Get("limit").(int),
	}
	states := []string{"", sealed.RunEnqueued, sealed.RunClaimed, sealed.RunFinished, sealed.RunClosed, sealed.RunAborted, sealed.RunExpired}
	if !slices.Contains(states, f.state) {
		return f, invalid("state", "wants enqueued, claimed, finished, closed, aborted or expired")
	}
	if f.before != "" {
		if _, err := sealed.ParseRunID(f.before); err != nil {
			return f, invalid("after", "wants the id of a run")
		}
	}
	if f.limit < 0 || f.limit > maxPage {
		return f, invalid("limit", "wants 1 to 1000")
	}
	if f.limit == 0 {
		f.limit = defaultPage
	}
	if f.from, err = firstID(d, "since"); err != nil {
		return f, err
	}
	until, err := firstID(d, "until")
	if err == nil && until != "" && (f.before == "" || until < f.before) {
		f.before = until
	}
	return f, err
}

// firstID is the smallest id that a run enqueued at the time of a field could
// have: ids begin with the millisecond (ULID).
func firstID(d *framework.FieldData, field string) (string, error) {
	s := text(d, field)
	if s == "" {
		return "", nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || at.Unix() < 0 {
		return "", invalid(field, "wants a time such as 2026-01-02T15:04:05Z")
	}
	id, err := sealed.NewULID(at, bytes.NewReader(make([]byte, 10)))
	if err != nil {
		return "", invalid(field, "is out of range")
	}
	return id, nil
}

func (f runFilter) matches(v runView) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	if !is(f.state, v.State) || !is(f.agent, string(v.Agent)) || !is(f.profile, string(v.Profile)) || !is(f.workflow, string(v.Workflow)) {
		return false
	}
	if f.tag != "" && !slices.Contains(v.Tags, f.tag) {
		return false
	}
	return f.requester == "" || slices.Contains([]string{v.who.EntityID, v.who.Name, v.who.Person}, f.requester)
}

func (b *backend) listRuns(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	f, err := parseRunFilter(d)
	if err != nil {
		return nil, err
	}
	ids, err := b.runIDs(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if f.before != "" {
		below, _ := slices.BinarySearchFunc(ids, f.before, func(id, before string) int { return strings.Compare(before, id) })
		for below < len(ids) && ids[below] >= f.before {
			below++
		}
		ids = ids[below:]
	}
	keys, info := []string{}, map[string]any{}
	for _, id := range ids {
		if len(keys) == f.limit || id < f.from {
			break
		}
		v, err := b.viewRun(ctx, req.Storage, sealed.RunID(id))
		if errors.Is(err, sealed.ErrNotFound) {
			continue // deleted since it was listed
		}
		if err != nil {
			return nil, err
		}
		if !f.matches(v) {
			continue
		}
		view, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encoding run: %w", err)
		}
		keys = append(keys, id)
		info[id] = string(view)
	}
	return map[string]any{"keys": keys, "key_info": info}, nil
}

// viewRun returns what is shown of a run: from the index, from memory, or from
// the row of an ended run.
func (b *backend) viewRun(ctx context.Context, s logical.Storage, id sealed.RunID) (runView, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return runView{}, err
	}
	if r, ok := x.run(id); ok {
		return viewOf(r), nil
	}
	if v, ok := b.ended.get(id); ok {
		return v, nil
	}
	r, err := readRun(ctx, s, id)
	if err != nil {
		return runView{}, err
	}
	v := viewOf(r)
	if r.over() {
		b.ended.put(id, v)
	}
	return v, nil
}

// runIDs returns the ids of all runs, newest first. The live ones come first:
// one that is archived meanwhile is then listed twice, not missed.
func (b *backend) runIDs(ctx context.Context, s logical.Storage) ([]string, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, r := range x.list() {
		all = append(all, string(r.ID))
	}
	done, err := s.List(ctx, storeRunsDone)
	if err != nil {
		return nil, unavailable(err)
	}
	all = append(all, done...)
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(b, a) })
	return slices.Compact(all), nil
}

// warmRuns reads ended runs into memory, newest first, a few at a time, so that
// after a restart no list has to read thousands of rows. It reports whether
// there is more.
func (b *backend) warmRuns(ctx context.Context, s logical.Storage) (more bool, err error) {
	ids, err := s.List(ctx, storeRunsDone)
	if err != nil {
		return true, unavailable(err)
	}
	slices.SortFunc(ids, func(a, b string) int { return strings.Compare(b, a) })
	read := 0
	for _, id := range ids[:min(len(ids), maxBriefs/2)] {
		if _, ok := b.ended.get(sealed.RunID(id)); ok {
			continue
		}
		if read == warmPerTick {
			return true, nil
		}
		read++
		if _, err := b.viewRun(ctx, s, sealed.RunID(id)); err != nil && !errors.Is(err, sealed.ErrNotFound) {
			return true, err
		}
	}
	return false, nil
}
