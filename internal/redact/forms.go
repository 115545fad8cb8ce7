package redact

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"unicode/utf8"
)

// The forms that Count.Form names.
const (
	formRaw             = "raw"
	formBase64          = "base64"
	formBase64URL       = "base64url"
	formHex             = "hex"
	formBase32          = "base32"
	formURL             = "url"
	formJSON            = "json"
	formGo              = "go"
	formShell           = "shell"
	formC               = "c"
	formXML             = "xml"
	formUTF16           = "utf16"
	formTags            = "unicode-tags"
	formWide            = "full-width"
	formReversed        = "reversed"
	formReversedBase64  = "reversed-base64"
	formRot13           = "rot13"
	formLine            = "line"
	formPartial         = "partial"
	formAtbash          = "atbash"
	formRot47           = "rot47"
	formDecimal         = "decimal"
	formOctal           = "octal"
	formBinary          = "binary"
	formASCII85         = "ascii85"
	formBase58          = "base58"
	formSHA256          = "sha256"
	formPython          = "python"
	formQuotedPrintable = "quoted-printable"
	formPart            = "part"
	formXOR             = "xor"
	formShifted         = "shifted"
	formNested          = "nested"
	FormDetected        = "detected"
)

const (
	foldedPrefix = "folded-"
	longValue    = 8 << 10 // longer values are looked for in raw, base64, hex and lines only
	minLine      = 16
	pieceLen     = 1 << 10 // longer values are cut into pieces of this length
	pieceOverlap = 16
)

// pattern is one needle.
type pattern struct {
	key    string
	form   string
	folded bool
	text   []byte
}

// formsOf returns the needles of value for both views, without keys. Order matters: of two equal needles the first gives the name.
//
// A long value is cut into pieces that overlap, each of which is looked for in all forms. What is printed of it in full is one mask, as the matches overlap
// too; what is printed in part is masked as far as it has whole pieces; and no more than a piece is ever held back.
func formsOf(value []byte) []pattern {
	f := formList{whole: value}
	for _, p := range pieces(value) {
		f.piece(p, len(value) <= longValue)
	}
	f.lines()
	f.parts()
	return f.out
}

// pieces cuts v.
func pieces(v []byte) [][]byte {
	var out [][]byte
	for len(v) > pieceLen+pieceLen/2 {
		out = append(out, v[:pieceLen])
		v = v[pieceLen-pieceOverlap:]
	}
	return append(out, v)
}

// piece adds the forms of v.
func (f *formList) piece(v []byte, all bool) {
	f.value = v
	f.exact(formRaw, v)
	// foundFolded: all of the value is found where its letters and digits are.
	foundFolded := f.fold(formRaw, v) && alnumEnds(v)
	for shift := range 3 {
		f.both(formBase64, base64At(v, shift, stdAlphabet))
		f.exact(formBase64URL, base64At(v, shift, urlAlphabet))
	}
	f.both(formHex, spell(v, "", lowerHex, 2, ""))
	f.exact(formHex, spell(v, "", upperHex, 2, ""))
	if !all {
		return
	}
	f.ciphers()
	f.escapes()
	f.exact(formTags, shifted(v, tagBlock))
	if !foundFolded {
		f.spelled()
	}
}

func alnumEnds(v []byte) bool {
	return len(v) > 0 && asciiAlnum(v[0]) != 0 && asciiAlnum(v[len(v)-1]) != 0
}

type formList struct {
	whole []byte
	value []byte // the piece at hand
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

// either adds text to the folded view, and to the exact one only if the folded one does not find all of it.
func (f *formList) either(form string, text []byte) {
	if !f.fold(form, text) || !alnumEnds(text) {
		f.exact(form, text)
	}
}

// ciphers adds what changes the value as a whole.
func (f *formList) ciphers() {
	v, rev := f.value, reversed(f.value)
	for shift := range 3 {
		f.either(formReversedBase64, base64At(rev, shift, stdAlphabet))
		if t := base64At(rev, shift, urlAlphabet); !alnumEnds(t) {
			f.exact(formReversedBase64, t)
		}
	}
	f.either(formBase32, base32Of(v))
	f.either(formReversed, rev)
	f.either(formRot13, rot13(v))
	f.exact(formRot47, rot47(v))
	f.fold(formHex, spell(v, "0x", lowerHex, 2, ""))
	f.fold(formDecimal, spell(v, "", decimal, 0, ""))
}

// rareForms returns needles that only Deep looks for, as they are rare and would slow the streams down: encodings of the value as a whole, and its hash, which
// lets others check a guess.
func rareForms(value []byte) []pattern {
	f := formList{whole: value, value: value}
	if len(value) > longValue {
		return nil
	}
	f.both(formAtbash, atbash(value))
	f.fold(formOctal, spell(value, "", octal, 3, ""))
	if !weak(value) { // two digits are few, but these are many of them
		f.out = append(f.out, pattern{form: foldedPrefix + formBinary, folded: true, text: spell(value, "", "01", 8, "")})
	}
	f.exact(formASCII85, ascii85Of(value))
	if len(value) <= 256 { // its cost is quadratic
		f.both(formBase58, base58Of(value))
	}
	sum := sha256.Sum256(value)
	f.both(formSHA256, hex.AppendEncode(nil, sum[:]))
	f.exact(formSHA256, base64.RawStdEncoding.AppendEncode(nil, sum[:]))
	return f.out
}

// escapes adds the usual, minimal escapes. For a value of letters and digits they all equal the value and nothing is added.
func (f *formList) escapes() {
	if !bytes.ContainsFunc(f.value, func(r rune) bool { return r >= 0x80 || asciiAlnum(byte(r)) == 0 && r != '_' }) {
		return
	}
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
	f.exact(formPython, pythonEscape(f.value))
	f.exact(formQuotedPrintable, quotedPrintable(f.value))
}

// spelled adds the escapes of every byte, for a value that the folded view cannot find, or not up to its ends.
func (f *formList) spelled() {
	for _, hex := range []string{lowerHex, upperHex} {
		f.exact(formURL, spell(f.value, "%", hex, 2, ""))
		f.exact(formC, spell(f.value, `\x`, hex, 2, ""))
		f.exact(formJSON, spell(f.value, `\u00`, hex, 2, ""))
		f.exact(formXML, spell(f.value, "&#x", hex, 2, ";"))
	}
	if utf8.Valid(f.value) {
		f.exact(formUTF16, utf16Of(f.value, false))
		f.exact(formUTF16, utf16Of(f.value, true))
	}
	f.exact(formWide, shifted(f.value, wideBlock))
	f.exact(formC, spell(f.value, `\`, octal, 3, ""))
	f.exact(formXML, spell(f.value, "&#", decimal, 0, ";"))
}

// lines adds the lines of a value that has several. The armor lines of PEM (RFC 7468) are public and left out.
func (f *formList) lines() {
	if !bytes.ContainsAny(f.whole, "\r\n") {
		return
	}
	for line := range bytes.FieldsFuncSeq(f.whole, func(r rune) bool { return r == '\r' || r == '\n' }) {
		line = bytes.TrimSpace(line)
		if len(line) >= minLine && !bytes.HasPrefix(line, []byte("-----")) && !weak(line) {
			f.both(formLine, line)
		}
	}
}

// parts adds what is a secret by itself: payload and signature of a JWT (RFC 7519), and the password of a URL.
func (f *formList) parts() {
	v := f.whole
	if p := bytes.Split(v, []byte(".")); len(p) == 3 && bytes.HasPrefix(v, []byte("eyJ")) {
		for _, t := range p[1:] {
			if len(t) >= minLine && !weak(t) {
				f.both(formPart, t)
			}
		}
	}
	if len(v) > longValue {
		return
	}
	if u, err := url.Parse(string(v)); err == nil && u.User != nil {
		if pw, ok := u.User.Password(); ok && len(pw) >= minNeedle && !weak([]byte(pw)) {
			f.value = []byte(pw)
			f.both(formPart, f.value)
			f.exact(formPart, []byte(url.QueryEscape(pw)))
			f.exact(formPart, []byte(url.PathEscape(pw)))
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
