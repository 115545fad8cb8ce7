package redact

import (
	"bytes"
	"unicode/utf8"
)

// The forms that Count.Form names.
const (
	formRaw            = "raw"
	formBase64         = "base64"
	formBase64URL      = "base64url"
	formHex            = "hex"
	formBase32         = "base32"
	formURL            = "url"
	formJSON           = "json"
	formGo             = "go"
	formShell          = "shell"
	formC              = "c"
	formXML            = "xml"
	formUTF16          = "utf16"
	formTags           = "unicode-tags"
	formWide           = "full-width"
	formReversed       = "reversed"
	formReversedBase64 = "reversed-base64"
	formRot13          = "rot13"
	formLine           = "line"
	formPartial        = "partial"
)

const (
	foldedPrefix = "folded-"
	longValue    = 8 << 10 // longer values are looked for in raw, base64 and lines only
	minLine      = 16
)

// pattern is one needle.
type pattern struct {
	key    string
	form   string
	folded bool
	text   []byte
}

// formsOf returns the needles of value for both views, without keys. Order matters: of two equal needles the first gives the name.
func formsOf(value []byte) []pattern {
	var f formList
	f.value = value
	f.exact(formRaw, value)
	canFold := f.fold(formRaw, value)
	for shift := range 3 {
		f.fold(formBase64, base64At(value, shift, stdAlphabet))
	}
	f.lines()
	if len(value) > longValue {
		return f.out
	}
	f.encodings()
	f.escapes()
	if !canFold || asciiAlnum(value[0]) == 0 || asciiAlnum(value[len(value)-1]) == 0 {
		f.spelled()
	}
	return f.out
}

type formList struct {
	value []byte
	out   []pattern
}

// exact adds a needle of the exact view. A derived one that is too short is left out.
func (f *formList) exact(form string, text []byte) {
	if form != formRaw && (len(text) < minNeedle || bytes.Equal(text, f.value)) {
		return
	}
	f.out = append(f.out, pattern{form: form, text: text})
}

// fold adds the folded needles of text: with its escapes decoded, as they would be next to each other in the stream, and not decoded, as they are when
// something stands between the characters or when they were escaped again. It reports whether text folds to enough.
func (f *formList) fold(form string, text []byte) bool {
	plain, decoded := foldPlain(text), foldDecoded(text)
	ok := foldable(plain, len(text))
	for _, t := range [][]byte{plain, decoded} {
		if foldable(t, len(text)) {
			f.out = append(f.out, pattern{form: foldedPrefix + form, folded: true, text: t})
		}
		if bytes.Equal(plain, decoded) {
			break
		}
	}
	return ok
}

// both adds text to both views.
func (f *formList) both(form string, text []byte) {
	f.exact(form, text)
	f.fold(form, text)
}

func (f *formList) encodings() {
	v, rev := f.value, reversed(f.value)
	for shift := range 3 {
		f.exact(formBase64, base64At(v, shift, stdAlphabet))
		f.exact(formBase64URL, base64At(v, shift, urlAlphabet))
		f.both(formReversedBase64, base64At(rev, shift, stdAlphabet))
		f.exact(formReversedBase64, base64At(rev, shift, urlAlphabet))
	}
	f.both(formHex, spell(v, "", lowerHex, 2, ""))
	f.exact(formHex, spell(v, "", upperHex, 2, ""))
	f.both(formBase32, base32Of(v))
	f.both(formReversed, rev)
	f.both(formRot13, rot13(v))
	if utf8.Valid(v) {
		f.exact(formUTF16, utf16Of(v, false))
		f.exact(formUTF16, utf16Of(v, true))
	}
	f.exact(formTags, shifted(v, tagBlock))
}

// escapes adds the usual, minimal escapes. For a value of letters and digits they all equal the value and nothing is added.
func (f *formList) escapes() {
	for _, t := range urlEscapes(f.value) {
		f.exact(formURL, t)
	}
	for _, t := range jsonEscapes(f.value) {
		f.exact(formJSON, t)
	}
	for _, t := range goEscapes(f.value) {
		f.exact(formGo, t)
	}
	for _, t := range shellEscapes(f.value) {
		f.exact(formShell, t)
	}
	for _, t := range xmlEscapes(f.value) {
		f.exact(formXML, t)
	}
}

// spelled adds the escapes of every byte, for a value that the folded view cannot find, or not up to its ends.
func (f *formList) spelled() {
	for _, hex := range []string{lowerHex, upperHex} {
		f.exact(formURL, spell(f.value, "%", hex, 2, ""))
		f.exact(formC, spell(f.value, `\x`, hex, 2, ""))
		f.exact(formJSON, spell(f.value, `\u00`, hex, 2, ""))
		f.exact(formXML, spell(f.value, "&#x", hex, 2, ";"))
	}
	f.exact(formWide, shifted(f.value, wideBlock))
	f.exact(formC, spell(f.value, `\`, octal, 3, ""))
	f.exact(formXML, spell(f.value, "&#", decimal, 0, ";"))
}

// lines adds the lines of a value that has several. The armor lines of PEM (RFC 7468) are public and left out.
func (f *formList) lines() {
	if !bytes.ContainsAny(f.value, "\r\n") {
		return
	}
	for line := range bytes.FieldsFuncSeq(f.value, func(r rune) bool { return r == '\r' || r == '\n' }) {
		line = bytes.TrimSpace(line)
		if len(line) >= minLine && !bytes.HasPrefix(line, []byte("-----")) && !weak(line) {
			f.both(formLine, line)
		}
	}
}

// foldable reports whether a folded needle is long and mixed enough not to be met in ordinary text, and stands for at least half of the original.
func foldable(t []byte, original int) bool {
	var seen [256]bool
	letters, digits, distinct := 0, 0, 0
	for _, c := range t {
		if c <= '9' {
			digits++
		} else {
			letters++
		}
		if !seen[c] {
			seen[c], distinct = true, distinct+1
		}
	}
	least := minNeedle
	if digits == 0 {
		least = 12
	} else if letters == 0 {
		least = 14
	}
	return len(t) >= least && distinct >= 4 && 2*len(t) >= original
}
