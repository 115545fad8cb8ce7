package vaultplugin

import (
	"sync"
	"time"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/sealed"
)

// runMemory is what the engine knows about runs and may forget: no
// decision is wider because it is empty. Losing it gives silent runs
// another grace period and floods another minute. The zero value is ready.
type runMemory struct {
	mu       sync.Mutex
	seen     map[sealed.RunID]time.Time
	inflight map[sealed.GrantID]bool
	windows  map[string]window
	spent    map[sealed.RunID]bool // has used up its entries in the log
	looks    map[string]*lookup    // by entity id
	agents   map[string]agentSeen  // by entity id
	owed     []audit.Event         // about what was stopped without waiting for the log

	off controls
}

// controls switches defenses off, for the tests that show what each is for.
// Nothing but a test sets it.
type controls struct {
	recheck  bool // of revocations after the mint
	current  bool // versions of profiles, at issue
	binding  bool // of token and identity to the run
	measure  bool // of the sandbox
	self     bool // approval by the requester
	consume  bool // of the approval by its grant
	rollback bool // refusal once storage went back
	overlay  bool // narrowing by the overlay
	review   bool // who may close one
}

// A window counts calls within a minute.
type window struct {
	start time.Time
	n     int
}

// see notes that a run was heard of.
func (m *runMemory) see(id sealed.RunID, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil {
		m.seen = make(map[sealed.RunID]time.Time)
	}
	m.seen[id] = now
}

// silentFor is the time since a run was heard of. A run that is new to this
// process starts at zero: after a restart it has its full grace again.
func (m *runMemory) silentFor(id sealed.RunID, now time.Time) time.Duration {
	m.mu.Lock()
	last, ok := m.seen[id]
	m.mu.Unlock()
	if !ok {
		m.see(id, now)
		return 0
	}
	return now.Sub(last)
}

// forget drops what is kept for a run.
func (m *runMemory) forget(id sealed.RunID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.seen, id)
	delete(m.spent, id)
}

// spend notes that a run has used up its entries.
func (m *runMemory) spend(id sealed.RunID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spent == nil {
		m.spent = make(map[sealed.RunID]bool)
	}
	m.spent[id] = true
}

func (m *runMemory) isSpent(id sealed.RunID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spent[id]
}

// look returns the lookup of an entity that is under way or good, or a new one
// for the caller to make.
func (m *runMemory) look(entity string, now time.Time) (l *lookup, found bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.looks[entity]; l != nil && l.good(now) {
		return l, true
	}
	if m.looks == nil || len(m.looks) >= maxCached {
		m.looks = make(map[string]*lookup)
	}
	l = &lookup{at: now, done: make(chan struct{})}
	m.looks[entity] = l
	return l, false
}

// An agentSeen is the SPIFFE ID that an entity had under a configuration.
type agentSeen struct {
	kept[string]
	cfg *engineConfig
}

// agent returns what knowAgent was told less than lookupGood ago, under the same
// configuration.
func (m *runMemory) agent(entity string, cfg *engineConfig, now time.Time) (spiffeID string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen, ok := m.agents[entity]
	age := now.Sub(seen.at)
	return seen.value, ok && seen.cfg == cfg && age >= 0 && age < lookupGood
}

func (m *runMemory) knowAgent(entity string, cfg *engineConfig, at time.Time, spiffeID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.agents == nil || len(m.agents) >= maxCached {
		m.agents = make(map[string]agentSeen)
	}
	m.agents[entity] = agentSeen{kept[string]{at, spiffeID}, cfg}
}

// enter marks a grant as being minted by a call of this process, and reports
// false if it was already.
func (m *runMemory) enter(id sealed.GrantID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inflight[id] {
		return false
	}
	if m.inflight == nil {
		m.inflight = make(map[sealed.GrantID]bool)
	}
	m.inflight[id] = true
	return true
}

func (m *runMemory) leave(id sealed.GrantID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.inflight, id)
}

func (m *runMemory) minting(id sealed.GrantID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inflight[id]
}

// count counts a call under a name and returns how many there were in the
// current minute, this one included.
func (m *runMemory) count(name string, now time.Time) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.windows == nil || len(m.windows) > 10000 {
		m.windows = make(map[string]window)
	}
	w := m.windows[name]
	if now.Sub(w.start) >= time.Minute || now.Before(w.start) {
		w = window{start: now}
	}
	w.n++
	m.windows[name] = w
	return w.n
}

func (m *runMemory) owe(e audit.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owed = append(m.owed, e)
}

func (m *runMemory) takeOwed() []audit.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.owed
	m.owed = nil
	return out
}
