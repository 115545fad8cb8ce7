package vaultplugin

import (
	"cmp"
	"context"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"sealed.dev/sealed/internal/sealed"
)

// maxCached bounds each cache that has no bound of its own; a full one starts
// again from empty.
const maxCached = 1024

// A cache remembers what was decoded from storage. The zero cache is empty.
//
// A reader that began before a write must not leave its old copy behind after
// it: drop starts a new generation, and what was read in an older one is
// returned to its caller but not kept.
type cache[T any] struct {
	most int // entries; 0: maxCached

	mu  sync.Mutex
	gen uint64
	m   map[string]T
}

// get returns the value of key, through read when it is not in memory. Errors
// are not remembered. No lock is held while read runs.
func (c *cache[T]) get(key string, read func() (T, error)) (T, error) {
	c.mu.Lock()
	v, ok := c.m[key]
	gen := c.gen
	c.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := read()
	if err != nil {
		var zero T
		return zero, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen == gen {
		if c.m == nil || len(c.m) >= cmp.Or(c.most, maxCached) {
			c.m = make(map[string]T)
		}
		c.m[key] = v
	}
	return v, nil
}

// forget is drop for one key.
func (c *cache[T]) forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	delete(c.m, key)
}

// drop forgets everything. Writers call it after their storage write, whether
// or not that write reported success.
func (c *cache[T]) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	c.m = nil
}

// nounCaches are the documents that people configure.
type nounCaches struct {
	config   cache[*engineConfig]
	keys     cache[*engineKeys]
	trust    cache[*spiffebundle.Bundle]
	agents   cache[agentRow]
	newest   cache[profileHead] // <level>/<name>
	profiles cache[sealed.Profile]
	// effective is by a list of versions, and never wrong: what is pinned does
	// not change.
	effective cache[*effective]
	sources   cache[openedSource]
	bundles   cache[Bundle] // by digest
	policy    cache[policyRow]
	versions  cache[secretMeta] // of the built-in store: which exist, no value
}

// dropNouns forgets what was read from storage. It does no I/O and waits for
// nobody.
func (b *backend) dropNouns(ctx context.Context) {
	n := &b.nouns
	n.config.drop()
	n.keys.drop()
	n.trust.drop()
	n.agents.drop()
	n.newest.drop()
	n.profiles.drop()
	n.effective.drop()
	n.sources.drop()
	n.bundles.drop()
	n.policy.drop()
	n.versions.drop()
	b.restore.row.drop()
	b.journal.invalidate(ctx)
	b.stops.invalidate()
	b.ended.reset()
}
