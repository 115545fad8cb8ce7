//go:build !purego

package redact

// cpuid returns what CPUID says in EAX, EBX and ECX of a leaf.
func cpuid(leaf uint32) (a, b, c uint32)

// compactBlocks folds src[:n] to dst, 16 bytes at a time, until a special byte or until fewer than 16 are left. It returns how many bytes it read and how many
// characters they left. Every block writes 16 bytes of dst, whatever it keeps.
//
//go:noescape
func compactBlocks(dst, src *byte, n int, t *compactTables) (read, kept int)

// siftBlocks looks at the places i, i+s, … of p, which has n bytes, four at a time, until fewer than four have eight bytes each. It writes those where a gram
// may be to found, returns how many they are and where it stopped, and stops early where found, which has 64 entries, has no room for four. n is at least
// i+3s+8.
//
//go:noescape
func siftBlocks(p *byte, i, n, s int, bits *uint64, most, mask uint64, found *uint32) (count, next int)

// canCompact reports whether this processor has what compactBlocks needs: SSSE3 and POPCNT, which are in nearly every one since 2008. Both work on
// registers that every operating system saves.
func canCompact() bool {
	const ssse3, popcnt = 1 << 9, 1 << 23
	_, _, c := cpuid(1)
	return c&(ssse3|popcnt) == ssse3|popcnt
}

// canSift reports whether this processor has what siftBlocks needs: BMI2, which is in nearly every one since 2015. It works on general registers.
func canSift() bool {
	const bmi2 = 1 << 8
	if most, _, _ := cpuid(0); most < 7 {
		return false
	}
	_, b, _ := cpuid(7)
	return b&bmi2 != 0
}
