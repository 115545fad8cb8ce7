package sealed

import (
	"fmt"
	"time"
)

// MaxHostRuns bounds the runs of one HostWatchRequest.
const MaxHostRuns = 256

// A HostWatchRequest is one watch for all runs of a host, by whoever owns their
// sandboxes. It waits up to Wait (bounded by the engine at one second) for an
// order, or for the epoch to pass Epoch.
type HostWatchRequest struct {
	Runs  []RunID  `json:"runs"` // 1 to MaxHostRuns, each once
	Epoch uint64   `json:"epoch"`
	Wait  Duration `json:"wait"`
}

// ParseHostWatchRequest decodes and validates a request.
func ParseHostWatchRequest(data []byte) (HostWatchRequest, error) {
	var r HostWatchRequest
	if err := Decode(data, 16<<10, &r); err != nil {
		return r, fmt.Errorf("parsing watch: %w", err)
	}
	if len(r.Runs) == 0 || len(r.Runs) > MaxHostRuns {
		return r, fieldErr("runs", "wants 1 to 256 runs")
	}
	seen := make(map[RunID]bool, len(r.Runs))
	for _, id := range r.Runs {
		if _, err := ParseRunID(string(id)); err != nil || seen[id] {
			return r, fieldErr("runs", "wants ids of runs, each once")
		}
		seen[id] = true
	}
	if r.Wait < 0 {
		return r, fieldErr("wait", "is negative")
	}
	return r, nil
}

// A HostWatchAnswer is signed by the answer key in DomainAnswer. Each run asked
// for is in Continue or in Orders. Time is the engine's: whoever has the
// answer second hand can tell how old it is.
type HostWatchAnswer struct {
	Time     time.Time   `json:"time"`
	Epoch    uint64      `json:"epoch"`
	Continue []RunID     `json:"continue"`
	Orders   []HostOrder `json:"orders"`
}

// A HostOrder is an order to one run. Its sandbox is to be ended; a run that
// the engine does not know, or does not show, is ordered to stop like one that
// is over.
type HostOrder struct {
	Run    RunID  `json:"run"`
	Order  string `json:"order"`
	Reason string `json:"reason"`
}
