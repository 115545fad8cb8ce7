package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// TypeErased is the type of the entry that names an erased one. Only Erase
// appends it. Its body is {"seq":N}.
const TypeErased = "entry.erased"

// Types that VerifyDir reads. Their bodies are needed to verify records, so Erase
// refuses them.
const (
	TypeClaimed  = "run.claimed"  // body: run_key
	TypeFinished = "run.finished" // body: record_sha256, absent when the run left no record
)

// A Config holds what a log may be given. The zero value works.
type Config struct {
	Clock        func() time.Time // time.Now
	Rand         io.Reader        // of salts; crypto/rand.Reader
	MaxBatch     int              // entries that share a commit; 256, which is also the most
	RunBudget    int              // entries of one run; 10,000
	WriteTimeout time.Duration    // for one commit; 10 s
	Logger       *slog.Logger     // hears of failed housekeeping; silent

	// Coming says how many calls of Append are on their way: begun elsewhere, not
	// yet here. While there are some, a writer lets them join its batch, at most
	// Linger. It is called often, from any goroutine. Nil: nobody knows.
	Coming func() int
	Linger time.Duration // 5 ms
	// Later runs housekeeping apart from the call of Append that found it due, and
	// returns at once. Nil: that call does it before it returns.
	Later func(func())
	// Settle makes attachments durable elsewhere, before a fold takes them out of
	// the journal: at most those of 256 entries, in their order. On an error they
	// stay where they are, and it is called again, with the same ones among
	// others. So it has to be idempotent; it may run more than once at a time. The
	// log holds no lock meanwhile and goes on appending, until the journal has
	// 1,024 entries; then Append fails. It needs Later, because a caller of Append
	// may hold what Settle waits for. Nil: events with an attachment are refused.
	Settle func(context.Context, []Attachment) error
}

// An Event is one thing to log.
type Event struct {
	Type string // lower-case words joined by dots
	Run  string // ULID, or empty
	// Body marshals to a JSON object that holds names only, or is nil.
	Body any
	// Essential events are logged even when their run is over its budget.
	Essential bool
	// Attach, if not nil, becomes durable with the event. Append copies it.
	Attach *Attachment
}

// A Receipt says where an event is in the log.
type Receipt struct {
	Seq  uint64
	Leaf Hash
	Size uint64 // of the tree that Head signs; more than Seq
	Head []byte // signed checkpoint; shared by the batch, not to be changed
}

// A Log appends to and reads one log. It is safe for concurrent use. At most one
// Log, in all processes, may append to one Storage at a time; several may read.
type Log struct {
	cfg     Config
	storage Storage
	signer  note.Signer

	view    atomic.Pointer[view] // nil before the first load
	invalid atomic.Bool          // Reload was called: view may not be used

	mu     sync.Mutex // guards queue, and is never held across I/O
	queue  []*request
	joined chan struct{} // holds one token when the queue has grown
	last   int           // calls in the batch before; whoever has the turn uses it

	commits atomic.Uint64
	tidying atomic.Bool  // housekeeping is under way somewhere
	settled atomic.Int64 // attachments of entries below this number are with Config.Settle's owner

	room   sync.Mutex
	folded chan struct{} // closed at the next fold, if somebody waits; guarded by room

	// turn is the right to write: who has sent to it may use what is below.
	turn chan struct{}
	writer
}

// writer is the state of whoever has the turn.
type writer struct {
	dirty   bool             // storage has failed: load before anything else
	sole    time.Time        // when storage last proved that this process is the one that writes
	pending *commit          // signed, but its write returned an error
	starts  []int64          // of the journal objects in storage, ascending
	counts  map[string]int64 // entries of runs that are not finished
	erase   []uint64         // entries whose erasure is logged, not yet done
	acked   acked            // the newest head that was handed out

	off controls
}

// acked is a tree that storage must still hold.
type acked struct {
	size int64
	root Hash
}

// controls switches defenses off, for the tests that show what each is for.
type controls struct{ reload, occupied, budget, replay bool }

// Open returns the log in storage, or a new one if storage is empty. signer is
// the log's Ed25519 note key; its name is the log's origin. A log that was
// signed with another key of the same origin is signed with this one from now on.
// The error matches ErrCorrupt when storage holds something else than a log.
func Open(ctx context.Context, storage Storage, signer note.Signer, cfg Config) (*Log, error) {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.MaxBatch <= 0 || cfg.MaxBatch > tileWidth {
		cfg.MaxBatch = tileWidth
	}
	if cfg.RunBudget <= 0 {
		cfg.RunBudget = 10_000
	}
	if cfg.WriteTimeout <= 0 {
		cfg.WriteTimeout = 10 * time.Second
	}
	if cfg.Linger <= 0 {
		cfg.Linger = 5 * time.Millisecond
	}
	if cfg.Settle != nil && cfg.Later == nil {
		return nil, fmt.Errorf("opening log %s: Settle without Later", signer.Name())
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{cfg: cfg, storage: storage, signer: signer, turn: make(chan struct{}, 1), joined: make(chan struct{}, 1)}
	if _, err := l.current(ctx); err != nil {
		return nil, fmt.Errorf("opening log %s: %w", signer.Name(), err)
	}
	return l, nil
}

// Reload drops what the log remembers of storage; the next call reads it again.
// It does no I/O and waits for nothing, as Vault's Invalidate requires.
func (l *Log) Reload(context.Context) { l.invalid.Store(true) }

// Commits returns how many writes this Log has committed entries with.
func (l *Log) Commits() uint64 { return l.commits.Load() }

// current returns the state to read from, and loads it if there is none.
func (l *Log) current(ctx context.Context) (*view, error) {
	if v := l.view.Load(); v != nil && !l.invalid.Load() {
		return v, nil
	}
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	defer l.release()
	if err := l.ready(ctx); err != nil {
		return nil, err
	}
	return l.view.Load(), nil
}

// take waits for the turn to write.
func (l *Log) take(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the log: %w", ctx.Err())
	}
}

func (l *Log) release() { <-l.turn }

// ready loads the log from storage if it must. The caller has the turn.
func (l *Log) ready(ctx context.Context) error {
	if !l.stale() {
		return nil
	}
	if err := l.refresh(ctx); err != nil {
		return err
	}
	if err := l.settlePending(ctx); err != nil {
		return fmt.Errorf("loading log: %w", err)
	}
	l.dirty = false
	return nil
}

// stale reports whether storage has to be read before the view is used. The
// caller has the turn.
func (l *Log) stale() bool {
	return l.view.Load() == nil || l.invalid.Load() || (l.dirty && !l.off.reload)
}

// refresh reads the view from storage and writes nothing. A log that was dirty
// stays so: a commit of unknown outcome is still to be settled.
func (l *Log) refresh(ctx context.Context) error {
	invalid := l.invalid.Swap(false)
	l.sole = time.Time{}
	if err := l.load(ctx); err != nil {
		l.dirty = true
		if invalid {
			l.invalid.Store(true)
		}
		return fmt.Errorf("loading log: %w", err)
	}
	return nil
}

// failed marks the log dirty: after an error nobody knows what storage holds.
func (l *Log) failed(doing string, err error) error {
	l.dirty, l.sole = true, time.Time{}
	return fmt.Errorf("%s: %w", doing, err)
}

// writeContext outlives the caller that happens to do the work for others.
func (l *Log) writeContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), l.cfg.WriteTimeout)
}

// errUndone is a request's error until it has an outcome.
var errUndone = errors.New("not done")
