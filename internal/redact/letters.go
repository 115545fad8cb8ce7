package redact

import "strings"

// plainLetter returns the ASCII letter or digit that r is by compatibility (Unicode NFKC, UAX #15, as far as one character becomes one of ASCII) or that it
// cannot be told from (UTS #39, the common ones), and 0 for any other.
func plainLetter(r rune) byte {
	switch {
	case r >= 0xFF01 && r <= 0xFF5E: // full width
		return byte(r - 0xFEE0)
	case r >= 0x1D400 && r <= 0x1D6A3: // mathematical letters, thirteen alphabets
		if i := (r - 0x1D400) % 52; i < 26 {
			return byte('A' + i)
		} else {
			return byte('a' + i - 26)
		}
	case r >= 0x1D7CE && r <= 0x1D7FF: // mathematical digits
		return byte('0' + (r-0x1D7CE)%10)
	case r >= 0x24B6 && r <= 0x24CF: // circled
		return byte('A' + r - 0x24B6)
	case r >= 0x24D0 && r <= 0x24E9:
		return byte('a' + r - 0x24D0)
	case r >= 0x2460 && r <= 0x2468:
		return byte('1' + r - 0x2460)
	case r >= 0x1F130 && r <= 0x1F149: // squared
		return byte('A' + r - 0x1F130)
	case r >= 0x1F150 && r <= 0x1F169: // negative circled
		return byte('A' + r - 0x1F150)
	case r >= 0x1F170 && r <= 0x1F189: // negative squared
		return byte('A' + r - 0x1F170)
	case r >= 0x1FBF0 && r <= 0x1FBF9: // segmented digits
		return byte('0' + r - 0x1FBF0)
	case r >= 0x2074 && r <= 0x2079: // superscripts and subscripts
		return byte('0' + r - 0x2070)
	case r >= 0x2080 && r <= 0x2089:
		return byte('0' + r - 0x2080)
	}
	if i := strings.IndexRune(odd, r); i >= 0 && r != 0xFFFD {
		return plain[len([]rune(odd[:i]))]
	}
	return 0
}

// Letters without a block of their own, and what they stand for: superscripts, letterlike symbols, Greek and Cyrillic.
const (
	odd = "\u00AA\u00BA\u00B9\u00B2\u00B3\u2070\u2071\u207F\u24EA" +
		"\u2102\u210A\u210B\u210C\u210D\u210E\u2110\u2111\u2112\u2113\u2115\u2119\u211A\u211B\u211C\u211D\u2124\u2128\u212A\u212C\u212D\u212F\u2130\u2131\u2133\u2134\u2139" +
		"\u2145\u2146\u2147\u2148\u2149" +
		"ΑΒΕΖΗΙΚΜΝΟΡΤΥΧοϳ" +
		"АВЕЅІЈКМНОРСТХаеорсухѕіјԁԛԝһ"
	plain = "ao123" + "0in0" +
		"CgHHHhIILlNPQRRRZZKBCeEFMoi" +
		"Ddeij" +
		"ABEZHIKMNOPTYXoj" +
		"ABESIJKMHOPCTXaeopcyxsijdqwh"
)
