package sandboxinit

import (
	"sync"

	"sealed.dev/sealed/internal/redact"
)

// A tally adds up what was masked in many streams of one name: every request
// and answer of the proxy is one. It is safe for concurrent use; the zero value
// is ready.
type tally struct {
	mu sync.Mutex
	n  map[redact.Count]int // Count.N is zero in the key
}

func (t *tally) add(counts []redact.Count) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range counts {
		if t.n == nil {
			t.n = map[redact.Count]int{}
		}
		n := c.N
		c.N = 0
		t.n[c] += n
	}
}

func (t *tally) all() (out []redact.Count) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c, n := range t.n {
		c.N = n
		out = append(out, c)
	}
	return out
}
