package redact

import (
	"testing"
	"unicode/utf8"
)

func TestPlainLetter(t *testing.T) {
	if n := utf8.RuneCountInString(odd); n != len(plain) {
		t.Fatalf("%d odd letters, %d plain ones", n, len(plain))
	}
	for r, want := range map[rune]byte{'Ａ': 'A', '９': '9', '𝐀': 'A', '𝔷': 'z', '𝟎': '0', '𝟿': '9', 'Ⓩ': 'Z', 'ⓐ': 'a', '①': '1', '🄰': 'A', '🆉': 'Z', '²': '2', '₉': '9', 'ℓ': 'l', 'ℤ': 'Z',
		'а': 'a', 'О': 'O', 'ԝ': 'w', 'Χ': 'X', 'ο': 'o', 'é': 0, '中': 0, '█': 0, '\uFFFD': 0, 'ж': 0} {
		if got := plainLetter(r); got != want {
			t.Errorf("%c is %q, want %q", r, got, want)
		}
	}
	// Whatever plainLetter knows begins with a byte that the folded view looks at.
	for r := rune(0x80); r <= 0x10FFFF; r++ {
		if plainLetter(r) != 0 && kindOf(string(r)[0]) != escape {
			t.Fatalf("%c (%U) is passed over", r, r)
		}
	}
}
