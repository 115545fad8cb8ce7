package sealed

import (
	"fmt"
	"time"
)

const (
	// MaxHostRuns bounds the runs of one HostWatchRequest, which is a query: with
	// all of them its URL stays below the 8 KiB that balancers and proxies take.
	MaxHostRuns = 128
	// MaxHostAnswer bounds a signed HostWatchAnswer as one line of JSON, in bytes.
	// One about MaxHostRuns runs, all ordered to stop with the longest reason, fits.
	MaxHostAnswer = 256 << 10

	maxHostState = 64
)

// A HostWatchRequest is one watch for all runs of a host. It waits up to Wait
// (bounded by the engine at one second) for the epoch to pass Epoch and for
// anything else to differ from State. Without a State it waits for an order
// instead, and comes back at once where there is one.
type HostWatchRequest struct {
	Runs  []RunID  `json:"runs"` // 1 to MaxHostRuns, each once
	Epoch uint64   `json:"epoch"`
	State string   `json:"state,omitempty"` // of the last answer about the same runs
	Wait  Duration `json:"wait"`
}

// ParseHostWatchRequest decodes and validates a request.
func ParseHostWatchRequest(data []byte) (HostWatchRequest, error) {
	var r HostWatchRequest
	if err := Decode(data, 16<<10, &r); err != nil {
		return r, fmt.Errorf("parsing watch: %w", err)
	}
	if err := CheckHostRuns(r.Runs); err != nil {
		return r, err
	}
	if len(r.State) > maxHostState {
		return r, fieldErr("state", "is not that of an answer")
	}
	if r.Wait < 0 {
		return r, fieldErr("wait", "is negative")
	}
	return r, nil
}

// CheckHostRuns checks the runs of a HostWatchRequest.
func CheckHostRuns(runs []RunID) error {
	if len(runs) == 0 || len(runs) > MaxHostRuns {
		return fieldErr("runs", "wants 1 to 128 runs")
	}
	seen := make(map[RunID]bool, len(runs))
	for _, id := range runs {
		if _, err := ParseRunID(string(id)); err != nil || seen[id] {
			return fieldErr("runs", "wants ids of runs, each once")
		}
		seen[id] = true
	}
	return nil
}

// A HostWatchAnswer is signed by the answer key in DomainAnswer. Each run asked
// for is in Continue or in Orders. Time is the engine's, from before the state
// was read: whoever has the answer second hand can tell how old it is.
type HostWatchAnswer struct {
	Time     time.Time   `json:"time"`
	Epoch    uint64      `json:"epoch"`
	State    string      `json:"state"` // stands for Continue and Orders
	Continue []HostRun   `json:"continue"`
	Orders   []HostOrder `json:"orders"`
}

// A HostRun is a run that goes on. Mark is that of the WatchAnswer that the run
// would be given now: a run whose last answer had another one has news to fetch.
type HostRun struct {
	Run  RunID  `json:"run"`
	Mark string `json:"mark"`
}

// A HostOrder is an order to one run. Its sandbox is to be ended; a run that
// the engine does not know, or does not show, is ordered to stop like one that
// is over.
type HostOrder struct {
	Run    RunID  `json:"run"`
	Order  string `json:"order"`
	Reason string `json:"reason"`
}

// Names says what the answer has about a run: that it goes on, with its mark,
// or that there is an order. Named is false where it has nothing.
func (a HostWatchAnswer) Names(run RunID) (mark string, goesOn, named bool) {
	for _, o := range a.Orders { // first: an order outweighs
		if o.Run == run {
			return "", false, true
		}
	}
	for _, c := range a.Continue {
		if c.Run == run {
			return c.Mark, true, true
		}
	}
	return "", false, false
}
