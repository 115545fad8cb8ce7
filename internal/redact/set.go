package redact

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// MaxValue is the longest value in bytes that a Set accepts.
const MaxValue = 1 << 20

// The most that one set takes: what can be named in an index, with room to spare.
const (
	maxValues = 1 << 20
	maxTotal  = 16 << 20 // bytes of all values
)

// Errors of this package. None of them carries a value.
var (
	// ErrEmpty means that the value has no bytes.
	ErrEmpty = errors.New("value is empty")
	// ErrWeak means that the value is shorter than 8 bytes, or shorter than 16 bytes with fewer than 3 bits for each byte, or one byte repeated.
	ErrWeak = errors.New("value is too weak to redact")
	// ErrTooLong means that the value is longer than [MaxValue].
	ErrTooLong = errors.New("value is too long to redact")
	// ErrFull means that the set has a million values already, or 16 MiB of them.
	ErrFull = errors.New("set of values is full")
	// ErrKey means that the key is not 1 to 64 ASCII letters, digits, '_', '.' or '-'.
	ErrKey = errors.New("key cannot be shown in a mask")
	// ErrMask means that a mask would show or complete the value, or that the value holds the text of a mask.
	ErrMask = errors.New("value collides with the text of a mask")
	// ErrWiped means that the set was wiped, or is nil. Nothing passes a Writer or Reader on such a set.
	ErrWiped = errors.New("set of values is wiped")
	// ErrClosed means a Write after Close.
	ErrClosed = errors.New("redacting writer is closed")
	// ErrInflated means that the zlib stream given to Scan inflates to more than 1 GiB.
	ErrInflated = errors.New("inflated content is too large to scan")
)

// Options change how one value is registered. The zero value is the strict one.
type Options struct {
	// AllowWeak registers a value that would be refused with ErrWeak. Derived forms shorter than 8 bytes are left out, the value itself never.
	AllowWeak bool
	// ExactOnly looks for the value in the exact view only: raw, base64, hex and the escapes that are a fixed text, but nothing that is split, spelled out or
	// changed as a whole. It is for values that would make false masks in the folded view, and for streams where speed is worth more.
	ExactOnly bool
}

// Set holds the values to redact. The zero value is empty and ready. It is safe for concurrent use, and may grow while writers use it: a writer takes
// up the new values at its next Write, and looks for them in the bytes it holds too.
type Set struct {
	gen   atomic.Uint64
	mu    sync.Mutex
	vals  []entry
	total int // bytes of vals
	built *needles
	pairs *pairTable
	deep  *thorough
	wiped bool
}

type entry struct {
	key   string
	value []byte
	exact bool // only
}

// needles is one compiled generation of a set. It never changes.
type needles struct {
	gen           uint64
	exact, folded *index
	pairs         *pairTable
	spread        int // bytes that the longest form takes in a stream
}

// NewSet returns an empty set.
func NewSet() *Set { return new(Set) }

// Add registers value under key, as one more value if the key has one already. It copies value. The same value under two keys shows the key that came first.
// Errors wrap ErrEmpty, ErrTooLong, ErrWeak, ErrKey, ErrMask, ErrFull or ErrWiped; the set is then
// unchanged.
func (s *Set) Add(key string, value []byte, o Options) error {
	if err := check(key, value, o); err != nil {
		return fmt.Errorf("registering a value of %q for redaction: %w", shown(key), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wiped {
		return fmt.Errorf("registering a value of %q for redaction: %w", key, ErrWiped)
	}
	for _, e := range s.vals {
		if e.key == key && bytes.Equal(e.value, value) {
			return nil
		}
		if collides(e.key, value) || collides(key, e.value) {
			return fmt.Errorf("registering a value of %q for redaction: %w", key, ErrMask)
		}
	}
	if len(s.vals) >= maxValues || s.total+len(value) > maxTotal {
		return fmt.Errorf("registering a value of %q for redaction: %w", key, ErrFull)
	}
	s.vals = append(s.vals, entry{key, bytes.Clone(value), o.ExactOnly})
	s.total += len(value)
	s.built = nil
	s.gen.Add(1)
	return nil
}

// Wipe forgets all values and overwrites the set's copies of them. Later Adds, and Writers and Readers that still use the set, fail with ErrWiped. It is best
// effort: the compiled indexes and the buffers of open writers hold copies too, which are left to the garbage collector.
func (s *Set) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.vals {
		clear(e.value)
	}
	s.vals, s.total, s.built, s.deep, s.wiped = nil, 0, nil, nil, true
	s.gen.Add(1)
}

// compiled returns the indexes of the current generation and builds them if they are not there yet.
func (s *Set) compiled() (*needles, error) {
	if s == nil {
		return nil, ErrWiped
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wiped {
		return nil, ErrWiped
	}
	if s.built == nil {
		s.built = compile(s.vals)
		if s.pairs == nil {
			s.pairs = newPairTable()
		}
		s.built.pairs = s.pairs
		s.built.gen = s.gen.Load()
	}
	return s.built, nil
}

func compile(vals []entry) *needles {
	var exact, folded []pattern
	spread := 0
	for _, e := range vals {
		for _, p := range formsOf(e.value) {
			p.key = e.key
			switch {
			case !p.folded:
				exact = append(exact, p)
			case !e.exact:
				folded = append(folded, p)
			default:
				continue
			}
			spread = max(spread, p.spread())
		}
		if bytes.ContainsAny(e.value, "[]") { // as one of them ends or begins every piece that a mask completes
			for _, m := range vals {
				exact = append(exact, trimmed(e, maskOf(m.key))...)
			}
		}
	}
	n := &needles{spread: spread}
	var both sync.WaitGroup
	both.Go(func() { n.exact = newIndex(exact) })
	n.folded = newIndex(folded)
	both.Wait()
	return n
}

func check(key string, value []byte, o Options) error {
	switch {
	case !keyOK(key):
		return ErrKey
	case len(value) == 0:
		return ErrEmpty
	case len(value) > MaxValue:
		return ErrTooLong
	case !o.AllowWeak && weak(value):
		return ErrWeak
	case bytes.Contains(value, []byte(maskOpen)) || collides(key, value):
		return ErrMask
	}
	return nil
}

func keyOK(key string) bool {
	bad := func(r rune) bool {
		return !(r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '.' || r == '-')
	}
	return len(key) >= 1 && len(key) <= 64 && !slices.ContainsFunc([]rune(key), bad)
}

// shown keeps a key that is not a key, and may be a value passed by mistake, out of the error.
func shown(key string) string {
	if keyOK(key) {
		return key
	}
	return "?"
}
