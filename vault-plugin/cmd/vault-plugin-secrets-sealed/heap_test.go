package main

import "testing"

func TestPercentFor(t *testing.T) {
	for live, want := range map[uint64]int{0: 800, 4 << 20: 800, 10 << 20: 400, 40 << 20: 100, 80 << 20: 50, 1 << 30: 40} {
		if got := percentFor(live); got != want {
			t.Errorf("%d bytes live: %d percent, want %d", live, got, want)
		}
	}
}
