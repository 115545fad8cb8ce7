package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
)

const (
	// MaxAttachment is the largest value of an attachment, in bytes. With the
	// largest body beside it, it fits one journal object.
	MaxAttachment = 320 << 10

	maxAttachmentKey = 256
)

// An Attachment is a row of the caller's own that becomes durable with the event
// that carries it: in the same journal object, so by the same write. There is
// no instant at which storage has one without the other.
//
// It is not part of the log. Leaf, side, tree, proofs, entries and exports know
// nothing of it, no signature covers it, and erasing an entry leaves it alone.
// Its Key is for the caller, who tells rows apart by it, and is not a key of the
// log's Storage.
type Attachment struct {
	Key   string `json:"key"`   // 1 to 256 letters, digits and ". _ - /"
	Value []byte `json:"value"` // 1 to MaxAttachment bytes
}

// check reports whether a is one that Append takes.
func (a Attachment) check() error {
	if a.Key == "" || len(a.Key) > maxAttachmentKey {
		return fmt.Errorf("attachment's key has %d bytes, want 1 to %d", len(a.Key), maxAttachmentKey)
	}
	if strings.ContainsFunc(a.Key, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/", r))
	}) {
		return errors.New("attachment's key has other than letters, digits and . _ - /")
	}
	if len(a.Value) == 0 || len(a.Value) > MaxAttachment {
		return fmt.Errorf("attachment has %d bytes, want 1 to %d", len(a.Value), MaxAttachment)
	}
	return nil
}

// clone returns a copy that its caller can't change any more; nil for nil.
func (a *Attachment) clone() *Attachment {
	if a == nil {
		return nil
	}
	return &Attachment{Key: a.Key, Value: bytes.Clone(a.Value)}
}

// Attached returns the attachments that are in the journal and that no fold has
// taken out of it, in the order of their entries: of two with one key the later
// counts. Config.Settle may have had some of them. Those of a commit whose
// outcome is not known are among them, as long as it may still become durable.
// The values are shared and not to be changed.
//
// After an error of storage it reads storage again. It needs no write to
// succeed, so it works while nothing can be appended.
func (l *Log) Attached(ctx context.Context) ([]Attachment, error) {
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	defer l.release()
	if l.stale() {
		if err := l.refresh(ctx); err != nil {
			return nil, err
		}
	}
	v := l.view.Load()
	rows := attachments(v.tail)
	if c := l.pending; c != nil && c.start == v.size {
		rows = append(rows, attachments(c.entries)...)
	}
	return rows, nil
}

func attachments(entries []entry) []Attachment {
	var rows []Attachment
	for _, e := range entries {
		if e.attach != nil {
			rows = append(rows, *e.attach)
		}
	}
	return rows
}

// owed returns the attachments that keep the oldest bundle of the journal, which
// is complete, from being folded.
func (l *Log) owed(v *view) []Attachment {
	if v.size-v.folded < tileWidth || l.settled.Load() >= v.folded+tileWidth {
		return nil
	}
	return attachments(v.tail[:tileWidth])
}

// settleOwed gives Config.Settle what owed returns. The caller does not have the
// turn: what Settle waits for may itself be waiting for the log. Whatever is in a
// view is durable, and no number below its size ever gets another entry; so it
// does not matter what is appended, folded or loaded meanwhile.
func (l *Log) settleOwed(ctx context.Context) error {
	v := l.view.Load()
	if v == nil {
		return nil
	}
	rows := l.owed(v)
	if len(rows) == 0 {
		return nil
	}
	if l.cfg.Settle == nil {
		return errors.New("the journal has attachments, and nobody settles them")
	}
	if err := l.cfg.Settle(ctx, rows); err != nil {
		return fmt.Errorf("settling attachments: %w", err)
	}
	upto := v.folded + tileWidth
	for {
		old := l.settled.Load()
		if old >= upto || l.settled.CompareAndSwap(old, upto) {
			return nil
		}
	}
}
