// Package bench measures Sealed against something simpler on the same machine
// in the same run, and gives ratios.
//
// The idea: a duration says as much about the machine as about the program. So
// every row has a baseline that does the least that the job needs (a KV read
// in the same Vault, bubblewrap around the same command, memcpy), and the two
// are measured in turns, so that whatever else the machine does falls on both.
//
// Nothing here passes or fails: a slow machine is not a defect, and a test
// that depends on the clock is one. The goals are printed beside the figures.
//
// The command cmd/sealed-bench runs every row; the Go benchmarks of this
// package are those parts that need no server.
package bench

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// A Sample is a set of measurements of one kind, in milliseconds or in any
// other unit that its Row names. The zero value is empty.
type Sample struct{ values []float64 }

// Add adds one measurement.
func (s *Sample) Add(v float64) { s.values = append(s.values, v) }

// Took adds the time since start, in milliseconds.
func (s *Sample) Took(start time.Time) { s.Add(Milliseconds(time.Since(start))) }

// Len is the number of measurements.
func (s *Sample) Len() int { return len(s.values) }

// Quantile returns the smallest measurement that at least the fraction q of
// all do not exceed (nearest rank). It is NaN for an empty sample.
func (s *Sample) Quantile(q float64) float64 {
	if len(s.values) == 0 {
		return math.NaN()
	}
	sorted := slices.SortedFunc(slices.Values(s.values), cmp.Compare[float64])
	rank := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}

// Median is Quantile(0.5).
func (s *Sample) Median() float64 { return s.Quantile(0.5) }

// P99 is Quantile(0.99).
func (s *Sample) P99() float64 { return s.Quantile(0.99) }

// Milliseconds converts a duration.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
