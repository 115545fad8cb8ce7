//go:build !amd64 || purego

package redact

// compactBlocks is never called, as canCompact is false.
func compactBlocks(_, _ *byte, _ int, _ *compactTables) (read, kept int) { return 0, 0 }

// siftBlocks is never called either, as canSift is false.
func siftBlocks(_ *byte, _, _, _ int, _ *uint64, _, _ uint64, _ *uint32) (count, next int) {
	return 0, 0
}

func canCompact() bool { return false }
func canSift() bool    { return false }
