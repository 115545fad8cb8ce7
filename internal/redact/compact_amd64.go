//go:build !purego

package redact

// cpuFeatures returns what CPUID says in ECX of leaf 1.
func cpuFeatures() uint32

// compactBlocks folds src[:n] to dst, 16 bytes at a time, until a special byte or until fewer than 16 are left. It returns how many bytes it read and how many
// characters they left. Every block writes 16 bytes of dst, whatever it keeps.
//
//go:noescape
func compactBlocks(dst, src *byte, n int, t *compactTables) (read, kept int)

// sampleBlocks looks at the places 0, s, 2s, … of p, which has n bytes, four at a time, and returns the first of four among which a gram may be, or the first
// of four that do not have eight bytes each. n is at least 3s+8.
//
//go:noescape
func sampleBlocks(p *byte, n, s int, bits *uint64, most, mask uint64) int

// canCompact reports whether this processor has what compactBlocks needs: SSSE3 and POPCNT, which are in nearly every one since 2008. Both work on
// registers that every operating system saves.
func canCompact() bool {
	const ssse3, popcnt = 1 << 9, 1 << 23
	return cpuFeatures()&(ssse3|popcnt) == ssse3|popcnt
}
