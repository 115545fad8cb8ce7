package vaultplugin

import (
	"runtime"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// BenchmarkManyRuns is what 10,000 live runs with a confirmed grant each cost:
// the heap that the index of them takes, loading it after a restart, and the
// preview of a revocation that concerns all of them.
func BenchmarkManyRuns(b *testing.B) {
	const runs = 10_000
	w := newWorld(b)
	for range runs {
		id, err := sealed.NewULID(w.clock.now(), nil)
		if err != nil {
			b.Fatal(err)
		}
		g := w.claimed(id)
		a, _, err := g.creds("LOW", id)
		if err != nil {
			b.Fatal(err)
		}
		if err := g.confirm(a); err != nil {
			b.Fatal(err)
		}
	}
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	load := func() {
		if _, err := w.b.index(b.Context(), w.s); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("load", func(b *testing.B) {
		w.b.dropIndex()
		without := heap()
		load()
		taken := heap() - without
		for b.Loop() {
			w.b.dropIndex()
			load()
		}
		b.ReportMetric(taken, "MiB")
	})
	b.Run("preview", func(b *testing.B) {
		for b.Loop() {
			w.clock.add(time.Second) // previews are rate limited
			d := w.must("op", "revocations/preview", map[string]any{"kind": "key", "target": "LOW", "reason": "leaked"})
			if d["grants"] != runs {
				b.Fatalf("%v grants, want %d", d["grants"], runs)
			}
		}
	})
}
