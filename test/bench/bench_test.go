package bench

import (
	"bytes"
	"context"
	"math"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

func BenchmarkDecision(b *testing.B) {
	for _, effect := range []sealed.Effect{sealed.EffectAllow, sealed.EffectRequireApproval, sealed.EffectDeny} {
		b.Run(string(effect), func(b *testing.B) {
			d, err := NewDecider(b.Context(), effect)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if got := d.Decide(b.Context()); got.Effect != effect {
					b.Fatal(got)
				}
			}
		})
	}
}

// BenchmarkRedaction reports the speed relative to memcpy as well.
func BenchmarkRedaction(b *testing.B) {
	r, err := NewRedaction(100, false)
	if err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"redact": r.Redact, "memcpy": func() error { r.Copy(); return nil }, "replace": func() error { r.Replace(); return nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(WriteSize)
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAppend makes one entry durable per iteration; sync is the same
// without a log.
func BenchmarkAppend(b *testing.B) {
	ctx := context.Background()
	l, err := OpenAuditLog(ctx, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	event := Event()
	b.Run("writers=1", func(b *testing.B) {
		for b.Loop() {
			if _, err := l.Append(ctx, event); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sync", func(b *testing.B) {
		for b.Loop() {
			if err := l.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("writers=64", func(b *testing.B) {
		b.SetParallelism(64)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := l.Append(ctx, event); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func TestQuantile(t *testing.T) {
	var s Sample
	if !math.IsNaN(s.Median()) {
		t.Error("the median of nothing is a number")
	}
	for i := 100; i > 0; i-- {
		s.Add(float64(i))
	}
	for q, want := range map[float64]float64{0: 1, 0.01: 1, 0.5: 50, 0.99: 99, 0.991: 100, 1: 100} {
		if got := s.Quantile(q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	var a, b Sample
	a.Add(6)
	b.Add(3)
	rows := []Row{Compare("x", "ms", &a, "y", &b).Want("ratio ≤ 1", false), Alone("z", "MiB", &b)}
	var table, lines bytes.Buffer
	if err := WriteTable(&table, rows); err != nil {
		t.Fatal(err)
	}
	if err := WriteJSON(&lines, rows); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "no") || strings.Contains(table.String(), "NaN") {
		t.Errorf("table:\n%s", table.String())
	}
	want := `{"baseline":"y","baseline_p50":3,"goal":"ratio ≤ 1","met":false,"n":1,"p50":6,"p99":6,"ratio":2,"unit":"ms","what":"x"}
{"n":1,"p50":3,"p99":3,"unit":"MiB","what":"z"}
`
	if got := lines.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
