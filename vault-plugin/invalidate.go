package vaultplugin

import (
	"context"
	"strings"
)

// invalidate drops what the engine keeps in memory of key, which another node
// has written. It does no I/O.
//
// What changes with every run drops what is known of runs; what grows with every
// call is the log, whose journal is read again for the intents that it may have
// brought. Everything else is rare and drops all: a key that nobody has thought
// of here can not leave something old behind.
func (b *backend) invalidate(ctx context.Context, key string) {
	noun, _, _ := strings.Cut(key, "/")
	switch noun + "/" {
	case storeLog:
		b.journal.invalidate(ctx) // before the index, which reads it
		b.note((*grantIndex).fallBehind)
	case storeRecords, storeInputs: // read from storage each time
	case storeRuns, storeGrants, storeApprovals, storeIdempotency:
		b.dropRuns()
	default:
		b.layout.drop()
		b.dropNouns(ctx)
		b.dropRuns()
	}
}

// dropRuns forgets the runs, and wakes whoever waits for a change of one.
func (b *backend) dropRuns() {
	b.ended.reset()
	b.mu.Lock()
	b.live = nil
	b.mu.Unlock()
	b.watches.all()
}
