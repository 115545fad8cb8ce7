//go:build !amd64 || purego

package redact

// compactBlocks is never called, as canCompact is false.
func compactBlocks(_, _ *byte, _ int, _ *compactTables) (read, kept int) { return 0, 0 }

// sampleBlocks is never called either.
func sampleBlocks(_ *byte, _, _ int, _ *uint64, _, _ uint64) int { return 0 }

func canCompact() bool { return false }
