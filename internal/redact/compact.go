package redact

// compactTables is what compactBlocks classifies bytes and pushes characters together with. The assembly knows the offsets of the fields.
//
// Two loops are in assembly, because a compiler does not make them from Go: this one, and that of sieve.sift. Each has a twin in Go, foldPairs and
// siftFour, which other processors run and with which fuzz targets compare it. What is special, and what a hit is, is decided in Go for both. Neither loop
// calls anything, keeps anything or has a branch that depends on more than "stop here". They read and write only within the slices of which their callers pass
// the beginning and the length, and those lengths are checked where they are called.
//
// The plan, for 16 bytes at once:
//  1. A set of bytes is two tables of 16 entries, one for each half of a byte. Each bit of an entry stands for one set of lower halves. A byte is in the set if
//     the entries of its halves have a bit in common. So a set may have any members as long as there are eight different rows of them at most.
//     There are two sets: what is kept, and what is special.
//  2. Kept bytes have bit 5 set, which makes letters lower case and leaves digits as they are.
//  3. For each half of the block, its eight bits "kept" are the index of the shuffle that pushes these bytes together.
type compactTables struct {
	keepLow, keepHigh [16]byte
	stopLow, stopHigh [16]byte
	nibbles, bit5     [16]byte
	shuffles          [256][8]byte
}

// newCompactTables returns the tables, or nil if this processor cannot use them.
func newCompactTables() *compactTables {
	if !canCompact() {
		return nil
	}
	t := new(compactTables)
	var keeps, stops bool
	t.keepLow, t.keepHigh, keeps = halves(func(c byte) bool { return kindOf(c) >= isKept })
	t.stopLow, t.stopHigh, stops = halves(func(c byte) bool { k := kindOf(c); return k == escape || k == erase })
	if !keeps || !stops {
		return nil
	}
	for i := range 16 {
		t.nibbles[i], t.bit5[i] = 0x0f, 0x20
	}
	for m := range t.shuffles {
		n := 0
		for i := range 8 {
			if m>>i&1 != 0 {
				t.shuffles[m][n] = byte(i)
				n++
			}
		}
		for ; n < 8; n++ {
			t.shuffles[m][n] = 0x80 // a zero byte
		}
	}
	return t
}

// halves returns the two tables of the set of bytes that in describes: step 1 of the plan. It reports whether eight rows are enough.
func halves(in func(byte) bool) (low, high [16]byte, ok bool) {
	var rows []uint16 // of lower halves
	for hi := range 16 {
		row := uint16(0)
		for lo := range 16 {
			if in(byte(hi<<4 | lo)) {
				row |= 1 << lo
			}
		}
		if row == 0 {
			continue
		}
		bit := 0
		for bit < len(rows) && rows[bit] != row {
			bit++
		}
		if bit == len(rows) {
			if bit == 8 {
				return low, high, false
			}
			rows = append(rows, row)
		}
		high[hi] |= 1 << bit
		for lo := range 16 {
			if row>>lo&1 != 0 {
				low[lo] |= 1 << bit
			}
		}
	}
	return low, high, true
}
