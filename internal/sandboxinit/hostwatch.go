package sandboxinit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// refusedPause is the time between two calls that the engine refuses: Vault's
// policies may be those of an older version, and then every run watches by itself.
const refusedPause = 10 * time.Second

// A hostWatch asks the engine for the runs beside this one, as long as the
// supervisor names some. It carries the answers out and believes them no more
// than others do.
type hostWatch struct {
	session *session
	answer  func(sealed.Signed) // gets every answer of the engine

	mu      sync.Mutex
	runs    []sealed.RunID
	changed chan struct{} // closed when runs change; nil: nobody waits
}

// watchFor names the runs: none is no longer. A list that the engine would refuse
// is none.
func (h *hostWatch) watchFor(runs []sealed.RunID) {
	if sealed.CheckHostRuns(runs) != nil {
		runs = nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs = runs
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

func (h *hostWatch) asked() ([]sealed.RunID, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.runs, h.changed
}

// run makes one call at a time until ctx ends. The first one about a list does
// not wait: runs that were not in the one before hear at once.
func (h *hostWatch) run(ctx context.Context) {
	var req sealed.HostWatchRequest
	for ctx.Err() == nil {
		runs, changed := h.asked()
		if len(runs) == 0 {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		if req.Wait = sealed.Duration(watchWait); !slices.Equal(runs, req.Runs) {
			req = sealed.HostWatchRequest{Runs: runs}
		}
		callCtx, done := context.WithTimeout(ctx, watchWait+2*time.Second)
		signed, a, err := h.session.watchHost(callCtx, req)
		done()
		switch {
		case err == nil:
			req.Epoch, req.State = a.Epoch, a.State
			h.answer(signed)
			pause(ctx, watchPause)
		case errors.Is(err, sealed.ErrDenied), errors.Is(err, sealed.ErrInvalid):
			pause(ctx, refusedPause)
		default:
			pause(ctx, 200*time.Millisecond)
		}
	}
}

// watchHost makes one call for many runs. It is not signed by the run key: it is
// nobody's sign of life.
func (s *session) watchHost(ctx context.Context, req sealed.HostWatchRequest) (signed sealed.Signed, a sealed.HostWatchAnswer, err error) {
	b, err := json.Marshal(req)
	if err != nil {
		return signed, a, fmt.Errorf("encoding watch: %w", err)
	}
	r, err := s.engine.ask(ctx, "watch", "watch", string(b))
	if err != nil {
		return signed, a, err
	}
	text, _ := r.Data["answer"].(string)
	if err := sealed.Decode([]byte(text), sealed.MaxDocument, &signed); err != nil {
		return signed, a, err
	}
	return signed, a, signed.Open(sealed.DomainAnswer, s.answerKey, &a)
}
