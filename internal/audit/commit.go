package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// A commit is one journal object on its way to storage.
type commit struct {
	start   int64
	before  Hash // root of the tree it continues
	entries []entry
	peaks   frontier
	head    []byte
	value   []byte // encoded journal object
}

// commitSome writes one journal object with as many of todo as fit, and returns
// how many. It ends at a multiple of 256, so that a fold takes whole objects.
func (l *Log) commitSome(ctx context.Context, todo []slot) (int, error) {
	if err := l.makeRoom(ctx); err != nil {
		return 0, err
	}
	c, err := l.plan(todo)
	if err != nil {
		return 0, err
	}
	if err := l.put(ctx, c); err != nil {
		return 0, err
	}
	l.publish(c)
	v := l.view.Load()
	for i, e := range c.entries {
		req := todo[i].req
		req.receipts = append(req.receipts, Receipt{Seq: e.leaf.Seq, Leaf: e.hash, Size: uint64(v.size), Head: v.head})
	}
	return len(c.entries), nil
}

// plan gives the first of todo their places, salts and times, and signs.
func (l *Log) plan(todo []slot) (*commit, error) {
	v := l.view.Load()
	c := &commit{start: v.size, before: v.peaks.root(), peaks: v.peaks}
	j := journal{V: storageVersion, Start: v.size}
	last, total := v.last, 4<<10 // frontier, head and names
	for _, s := range todo {
		at := c.start + int64(len(c.entries))
		if len(c.entries) > 0 && at%tileWidth == 0 {
			break
		}
		e, err := l.newEntry(uint64(at), last, s.draft())
		if err != nil {
			return nil, err
		}
		je := journalEntry{Leaf: e.raw, Side: e.side, Attach: e.attach}
		if total += je.size(); total > maxJournal && len(c.entries) > 0 {
			break
		}
		j.Entries = append(j.Entries, je)
		c.entries = append(c.entries, e)
		c.peaks = c.peaks.add(at, e.hash)
		last = e.leaf.Time
	}
	var err error
	size := c.start + int64(len(c.entries))
	if c.head, err = signCheckpoint(l.signer, size, c.peaks.root()); err != nil {
		return nil, err
	}
	j.Frontier, j.Head = c.peaks, c.head
	c.value, err = encodeState(journalKey(c.start), j)
	return c, err
}

// newEntry makes the entry for d. Time never goes backwards in the log; when the
// clock did, the body says so.
func (l *Log) newEntry(seq uint64, last time.Time, d draft) (entry, error) {
	now := l.cfg.Clock().UTC().Round(0)
	side := &Side{Salt: make([]byte, SaltSize), Body: d.body}
	if now.Before(last) {
		now, side.Body = last, withSkew(d.body)
	}
	if y := now.Year(); y < 1 || y > 9999 {
		return entry{}, fmt.Errorf("appending %s: the clock shows the year %d", d.typ, y)
	}
	if _, err := io.ReadFull(l.cfg.Rand, side.Salt); err != nil {
		return entry{}, fmt.Errorf("drawing salt: %w", err)
	}
	leaf := Leaf{Seq: seq, Time: now, Type: d.typ, Run: d.run, Body: side.Digest()}
	raw := leaf.Marshal()
	return entry{leaf: leaf, raw: raw, hash: tlog.RecordHash(raw), side: side, attach: d.attach}, nil
}

// soleFor is how long an acknowledged commit stands for the look at the next
// key. See "Why it cannot fork" in DESIGN.md.
const soleFor = time.Second

// put writes c's journal object: the commit. Its key has not been written by this
// process with any other value, and is empty unless another writer was here.
// After an error c stays pending, and load settles what became of it.
func (l *Log) put(ctx context.Context, c *commit) error {
	key := journalKey(c.start)
	if !l.soleWriter() {
		there, err := l.storage.Get(ctx, key)
		if err != nil {
			return l.failed("checking for another writer", err)
		}
		if there != nil && !bytes.Equal(there, c.value) && !l.off.occupied {
			return l.failed("checking for another writer", ErrConflict)
		}
	}
	l.pending = c
	if err := l.storage.Put(ctx, key, c.value); err != nil {
		return l.failed("committing to the log", err)
	}
	l.pending, l.sole = nil, l.wallTime()
	return nil
}

// soleWriter reports whether this process has committed within soleFor, and
// neither read storage again nor seen it fail since.
func (l *Log) soleWriter() bool {
	age := l.wallTime().Sub(l.sole)
	return !l.sole.IsZero() && age >= 0 && age < soleFor
}

// wallTime is the time without its monotonic reading, which stands still while
// a machine sleeps.
func (l *Log) wallTime() time.Time { return l.cfg.Clock().Round(0) }

// publish makes a durable commit visible.
func (l *Log) publish(c *commit) {
	old := l.view.Load()
	v := *old
	v.size += int64(len(c.entries))
	v.tail = append(old.tail, c.entries...) // only here; older views keep their length
	v.peaks, v.head = c.peaks, c.head
	v.last = c.entries[len(c.entries)-1].leaf.Time
	l.starts = append(l.starts, c.start)
	for _, e := range c.entries {
		l.account(e)
	}
	l.acked = acked{v.size, v.peaks.root()}
	l.view.Store(&v)
	l.commits.Add(1)
}

// account keeps the counts and the list of erasures to do.
func (l *Log) account(e entry) {
	switch {
	case e.leaf.Type == TypeFinished:
		delete(l.counts, e.leaf.Run)
	case e.leaf.Run != "":
		l.counts[e.leaf.Run]++
	case e.leaf.Type == TypeErased && e.side != nil:
		if seq, err := erasedSeq(e.side.Body); err == nil && seq < e.leaf.Seq {
			l.erase = append(l.erase, seq)
		}
	}
}
