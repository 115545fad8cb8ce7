package sealed

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestCleanReason(t *testing.T) {
	for in, want := range map[string]string{
		"":                                              "",
		"plain":                                         "plain",
		"  a \t\r\n b  ":                                "a b",
		"a\x00b\x07c\x7fd":                              "a b c d",
		"\x1b[31mred\x1b[0m":                            "[31mred [0m",
		"a\u009b31mb":                                   "a 31mb", // CSI as one character
		"ok\u202egnirts\u202c":                          "ok gnirts",
		"a\u2066b\u2069c\u061cd\u200ee\u200f":           "a b c d e",
		"a\u200bb\u200cc\u200dd\u2060e\ufeff":           "a b c d e",
		"a\u00adb\u180ec\u2065d":                        "a b c d",
		"a\u2028b\u2029c\u0085d\u00a0e":                 "a b c d e",
		"tag\U000e0041\U000e007fs\U000e01f0x":           "tag s x",
		"a\xffb":                                        "a?b",
		"é 漢字 👍":                                        "é 漢字 👍",
		"\u202e":                                        "",
		strings.Repeat("a", MaxReason):                  strings.Repeat("a", MaxReason),
		strings.Repeat("a", MaxReason+1):                strings.Repeat("a", MaxReason),
		strings.Repeat("a", MaxReason-1) + "é":          strings.Repeat("a", MaxReason-1),
		strings.Repeat("a", MaxReason-1) + " b":         strings.Repeat("a", MaxReason-1),
		strings.Repeat("a", MaxReason-2) + "漢":          strings.Repeat("a", MaxReason-2),
		strings.Repeat("a", MaxReason-3) + "👍":          strings.Repeat("a", MaxReason-3),
		strings.Repeat("a", MaxReason-3) + "\ufffdtail": strings.Repeat("a", MaxReason-3) + "\ufffd",
	} {
		if got := CleanReason(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func cleanProperties(t *testing.T, s string) {
	t.Helper()
	got := CleanReason(s)
	if len(got) > MaxReason || !utf8.ValidString(got) {
		t.Fatalf("%q: %d bytes, valid %v", s, len(got), utf8.ValidString(got))
	}
	for _, r := range got {
		if r != ' ' && (unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || unicode.Is(unicode.Cf, r)) {
			t.Fatalf("%q keeps %U", s, r)
		}
	}
	if again := CleanReason(got); again != got {
		t.Fatalf("%q: %q, again %q", s, got, again)
	}
	if strings.TrimSpace(got) != got || strings.Contains(got, "  ") {
		t.Fatalf("%q: white space is not folded: %q", s, got)
	}
}

func TestCleanReasonEveryRune(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		cleanProperties(t, "a"+string(r)+"b")
	}
	for n := MaxReason - 8; n < MaxReason+8; n++ {
		for _, tail := range []string{"é", "漢", "👍", " a", "\u202e", "\xf0\x9f", "\ufffd"} {
			cleanProperties(t, strings.Repeat("a", n)+strings.Repeat(tail, 8))
		}
	}
}

func FuzzCleanReason(f *testing.F) {
	for _, s := range []string{"", "a\x1b[31mb", "a\u202eb", strings.Repeat("é", 400), strings.Repeat("a ", 300), "\xff\xfe"} {
		f.Add(s)
	}
	f.Fuzz(cleanProperties)
}
