package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Each policy evaluation allocates much, and little of it lives: the live heap of
// an idle mount is a few MiB, which Go's collector would go over at every other
// evaluation. With ten thousand live runs it is more, and eight times that is
// memory that others need. So the collector's percentage follows the live heap.
const (
	headroom   = 40 << 20 // bytes beyond the live heap, between the bounds below
	maxPercent = 800
	minPercent = 40
)

// followHeap sets the collector's percentage now and after each collection. was
// is what it is set to; 0: something else.
func followHeap(was int) {
	now := percentFor(liveHeap())
	if now != was {
		debug.SetGCPercent(now)
	}
	mark := new([64]byte) // too large to share its place with others
	runtime.AddCleanup(mark, followHeap, now)
}

func percentFor(live uint64) int {
	return int(min(maxPercent, max(minPercent, headroom*100/max(live, 1))))
}

// liveHeap is what the last collection left.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return headroom
	}
	return sample[0].Value.Uint64()
}
