package redact

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// Classes of bytes in the folded view. A byte that is kept has its lower-case self as class; none below isKept is kept.
const (
	drop   = 0
	escape = 1 // may begin an escape, a control sequence or a letter that looks like ASCII: see token
	erase  = 2 // backspace
	isKept = 0x20
)

const (
	maxCSI     = 64  // longest control sequence in bytes
	maxOSC     = 256 // longest control string, such as a window title
	maxDoubled = 8   // rounds of escaping an escape that are followed
)

// kindOf returns the class of a byte.
func kindOf(c byte) byte {
	if k := asciiAlnum(c); k != 0 {
		return k
	}
	switch c {
	case 0x1b, '\\', '%', '&', 0xC2, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xE2, 0xEF, 0xF0: // the last ones begin what plainLetter knows
		return escape
	case '\b':
		return erase
	}
	return drop
}

// pairTable says for two bytes, the first one low, which characters they leave: in the low 16 bits, and how many bits that is above. special is set if one of the
// bytes is more than kept or dropped.
type pairTable struct {
	pairs [1 << 16]uint32
	wide  *compactTables // nil where the processor cannot use them
}

const special = 1 << 31

func newPairTable() *pairTable {
	t := &pairTable{wide: newCompactTables()}
	var classes [256]byte
	for c := range classes {
		classes[c] = kindOf(byte(c))
	}
	for lo, a := range classes {
		for hi, b := range classes {
			e := uint32(0)
			switch {
			case a == escape || a == erase || b == escape || b == erase:
				e = special
			case a != 0 && b != 0:
				e = uint32(a) | uint32(b)<<8 | 16<<16
			case a != 0 || b != 0:
				e = uint32(a|b) | 8<<16
			}
			t.pairs[hi<<8|lo] = e
		}
	}
	return t
}

// fold appends what p[i:end] leaves to text, of which k characters are in use and eight more than end-i free. It stops before a special byte and returns
// where, and the new k.
func (t *pairTable) fold(text []byte, k int, p []byte, i, end int) (int, int) {
	if t.wide != nil && end-i >= 16 {
		p, text := p[i:end], text[k:k+end-i] // what compactBlocks may touch
		read, kept := compactBlocks(&text[0], &p[0], len(p), t.wide)
		if i, k = i+read, k+kept; end-i >= 16 { // at a special byte
			return i, k
		}
	}
	return t.foldPairs(text, k, p, i, end)
}

// foldPairs is fold for any processor.
func (t *pairTable) foldPairs(text []byte, k int, p []byte, i, end int) (int, int) {
	for i <= end-8 {
		w := binary.LittleEndian.Uint64(p[i:])
		a, b, c, d := uint64(t.pairs[uint16(w)]), uint64(t.pairs[uint16(w>>16)]), uint64(t.pairs[uint16(w>>32)]), uint64(t.pairs[w>>48])
		if (a|b|c|d)&special != 0 {
			for _, e := range [3]uint64{a, b, c} {
				if e&special != 0 {
					break
				}
				binary.LittleEndian.PutUint16(text[k:], uint16(e))
				k += int(e >> 19)
				i += 2
			}
			break
		}
		// The characters of the four pairs, pushed together; the upper half of an entry is how far.
		n := a >> 16
		v := a&0xffff | b&0xffff<<(n&63)
		n += b >> 16
		v |= c & 0xffff << (n & 63)
		n += c >> 16
		v |= d & 0xffff << (n & 63)
		n += d >> 16
		binary.LittleEndian.PutUint64(text[k:], v)
		k += int(n >> 3)
		i += 8
	}
	for ; i < end; i++ {
		e := t.pairs[p[i]] // with NUL as its second byte, which is dropped
		if e&special != 0 {
			break
		}
		text[k] = byte(e)
		k += int(e >> 19)
	}
	return i, k
}

// special reports whether a byte is more than kept or dropped.
func (t *pairTable) special(c byte) bool { return t.pairs[c]&special != 0 }

// keptOf returns how many of the eight bytes of w are kept.
func keptOf(w uint64) int64 {
	const each = 0x0101010101010101
	low, lower := w&(0x7f*each), (w|0x20*each)&(0x7f*each)
	// Adding 0x80-c sets the high bit of a byte that is c or more.
	number := (low + (0x80-'0')*each) &^ (low + (0x80-'9'-1)*each)
	letter := (lower + (0x80-'a')*each) &^ (lower + (0x80-'z'-1)*each)
	return int64(bits.OnesCount64((number | letter) &^ w & (0x80 * each)))
}

// asciiAlnum returns the lower-case form of an ASCII letter or digit, and 0 for any other byte.
func asciiAlnum(c byte) byte {
	switch {
	case c >= '0' && c <= '9', c >= 'a' && c <= 'z':
		return c
	case c >= 'A' && c <= 'Z':
		return c | 0x20
	}
	return 0
}

// foldPlain folds v without decoding anything.
func foldPlain(v []byte) []byte {
	var out []byte
	for _, c := range v {
		if k := asciiAlnum(c); k != 0 {
			out = append(out, k)
		}
	}
	return out
}

// foldDecoded folds v as the folded view does with a stream of just v, except for backspaces, which are dropped.
func foldDecoded(v []byte) []byte {
	var out []byte
	for len(v) > 0 {
		n, k := token(v, true)
		if k != 0 {
			out = append(out, k)
		}
		v = v[n:]
	}
	return out
}

// token reads one unit of the folded view from the front of p: how many bytes it takes and the character they stand for, 0 for none. It returns n = 0 if that
// depends on bytes after p; with atEnd there are none. Every byte here is the workload's, so each rule has a limit on how far it looks, and what is not a
// complete escape is read as plain text from its second byte on.
func token(p []byte, atEnd bool) (n int, kept byte) {
	switch p[0] {
	case 0x1b:
		if n = controlLen(p); n > 0 {
			return n, 0
		}
	case '\\':
		n, kept = backslash(p)
	case '%':
		n, kept = percent(p)
	case '&':
		n, kept = entity(p)
	default:
		if p[0] < 0x80 {
			return 1, asciiAlnum(p[0])
		}
		n, kept = letter(p)
	}
	if n == 0 && atEnd {
		return 1, asciiAlnum(p[0])
	}
	return n, kept
}

// controlLen returns the length of a terminal control sequence (ECMA-48): CSI, a control string, or a designation of a character set.
func controlLen(p []byte) int {
	if len(p) < 2 {
		return 0
	}
	switch p[1] {
	case '[':
		if len(p) >= 10 { // most are short, as a color is
			if n := shortCSI(binary.LittleEndian.Uint64(p[2:])); n > 0 {
				return n
			}
		}
		for i, c := range p[2:min(len(p), maxCSI)] {
			if c-0x20 < 0x20 {
				continue
			}
			if c >= 0x40 && c <= 0x7e {
				return i + 3
			}
			return 1
		}
		if len(p) < maxCSI {
			return 0
		}
	case ']', 'P', '_', '^', 'X':
		return stringLen(p)
	case '(', ')':
		if len(p) < 3 {
			return 0
		}
		return 3
	}
	return 1
}

// shortCSI returns the length of a control sequence whose first eight bytes after CSI are w, or 0 if it does not end in them as it should: what is before its
// final byte is from 0x20 to 0x3f.
func shortCSI(w uint64) int {
	const each = 0x0101010101010101
	i := bits.TrailingZeros64((w^0x20*each)&(0xe0*each)) &^ 7
	if c := byte(w >> (i & 63)); c < 0x40 || c > 0x7e {
		return 0
	}
	return 3 + i>>3
}

// stringLen returns the length of a control string that BEL or ESC \ ends. A line break ends the attempt, so that an unfinished one cannot hide a text.
func stringLen(p []byte) int {
	for i := 2; i < maxOSC; i++ {
		if i == len(p) {
			return 0
		}
		switch p[i] {
		case 0x07:
			return i + 1
		case '\n', '\r':
			return 1
		case 0x1b:
			if i+1 == len(p) {
				return 0
			}
			if p[i+1] == '\\' {
				return i + 2
			}
			return 1
		}
	}
	return 1
}

// backslash reads the escapes of C, Go, JSON, JavaScript and shells. Before another backslash it takes one byte, so that escaped escapes fold the same.
func backslash(p []byte) (int, byte) {
	if len(p) < 2 {
		return 0, 0
	}
	switch c := p[1]; c {
	case 'x':
		return digits(p, 2, 2, 2, 16)
	case 'u':
		if len(p) > 2 && p[2] == '{' {
			n, k := digits(p, 3, 1, 6, 16)
			return closed(p, n, k, '}')
		}
		return digits(p, 2, 4, 4, 16)
	case 'U':
		return digits(p, 2, 8, 8, 16)
	case '0', '1', '2', '3', '4', '5', '6', '7':
		return digits(p, 1, 1, 3, 8)
	case 'n', 'r', 't', 'b', 'f', 'v', 'a', 'e', 'E':
		return 2, 0
	}
	return 1, 0
}

// percent reads a URL escape (RFC 3986), also one whose percent sign is escaped: %25 before two hexadecimal digits stands for the percent sign.
func percent(p []byte) (int, byte) {
	i := 1
	for range maxDoubled {
		if !bytes.HasPrefix(p[i:], []byte("25")) {
			break
		}
		i += 2
	}
	n, k := digits(p, i, 2, 2, 16)
	if n == 1 {
		return i, 0
	}
	return n, k
}

// entity reads a character reference of XML or HTML, also one whose ampersand is escaped.
func entity(p []byte) (int, byte) {
	i := 1
	for range maxDoubled {
		if !bytes.HasPrefix(p[i:], []byte("amp;")) {
			break
		}
		i += 4
	}
	rest := p[i:]
	if len(rest) > 1 && rest[0] == '#' {
		n, k := 0, byte(0)
		if rest[1] == 'x' || rest[1] == 'X' {
			n, k = digits(p, i+2, 1, 8, 16)
		} else {
			n, k = digits(p, i+1, 1, 8, 10)
		}
		if n, k = closed(p, n, k, ';'); n != 1 {
			return n, k
		}
		return i, 0
	}
	for _, name := range []string{"#", "amp;", "lt;", "gt;", "quot;", "apos;", "nbsp;"} {
		if bytes.HasPrefix(rest, []byte(name)) && name != "#" && name != "amp;" {
			return i + len(name), 0
		}
		if len(rest) < len(name) && name[:len(rest)] == string(rest) || name == "#" && string(rest) == name {
			return 0, 0
		}
	}
	return i, 0
}

// letter reads a character that is not ASCII.
func letter(p []byte) (int, byte) {
	if !utf8.FullRune(p) {
		return 0, 0
	}
	r, n := utf8.DecodeRune(p)
	return n, asciiAlnum(plainLetter(r))
}

// digits reads least to most digits from p[i:] and returns the length of all up to their end and the character, 0 if it needs more, 1 if there are too few.
func digits(p []byte, i, least, most int, base uint32) (int, byte) {
	v, n := uint32(0), 0
	for ; n < most; n++ {
		if i+n >= len(p) {
			return 0, 0
		}
		d := digit(p[i+n])
		if d >= base {
			break
		}
		v = v*base + d
	}
	if n < least {
		return 1, 0
	}
	if v > 0x7f {
		return i + n, 0
	}
	return i + n, asciiAlnum(byte(v))
}

// closed adds the byte end to a unit of n bytes.
func closed(p []byte, n int, kept, end byte) (int, byte) {
	switch {
	case n <= 1:
		return n, 0
	case n == len(p):
		return 0, 0
	case p[n] != end:
		return 1, 0
	}
	return n + 1, kept
}

func digit(c byte) uint32 {
	switch l := c | 0x20; {
	case c >= '0' && c <= '9':
		return uint32(c - '0')
	case l >= 'a' && l <= 'f':
		return uint32(l-'a') + 10
	}
	return 99
}
