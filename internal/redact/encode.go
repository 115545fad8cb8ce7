package redact

import (
	"bytes"
	"encoding/ascii85"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"html"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf16"
)

const (
	stdAlphabet = false
	urlAlphabet = true
	lowerHex    = "0123456789abcdef"
	upperHex    = "0123456789ABCDEF"
	octal       = "01234567"
	decimal     = "0123456789"
)

// base64At returns the characters of the base64 text (RFC 4648) that depend on v alone when shift bytes, modulo three, stand before it.
func base64At(v []byte, shift int, forURL bool) []byte {
	enc := base64.RawStdEncoding
	if forURL {
		enc = base64.RawURLEncoding
	}
	padded := append(make([]byte, shift, shift+len(v)), v...)
	text := enc.AppendEncode(nil, padded)
	first := (shift*8 + 5) / 6
	return text[first : len(padded)*8/6]
}

// base32Of returns the characters of the base32 text that depend on v alone.
func base32Of(v []byte) []byte {
	text := base32.StdEncoding.WithPadding(base32.NoPadding).AppendEncode(nil, v)
	return text[:len(v)*8/5]
}

// spell writes every byte of v as a number in the base of digits, with at least width digits, between before and after.
func spell(v []byte, before, digits string, width int, after string) []byte {
	out := make([]byte, 0, len(v)*(len(before)+3+len(after)))
	base := len(digits)
	for _, c := range v {
		out = append(out, before...)
		unit, n := 1, 1 // of the first digit, and how many there are
		for unit*base <= int(c) || n < width {
			unit, n = unit*base, n+1
		}
		for ; unit > 0; unit /= base {
			out = append(out, digits[int(c)/unit%base])
		}
		out = append(out, after...)
	}
	return out
}

func reversed(v []byte) []byte {
	out := make([]byte, len(v))
	for i, c := range v {
		out[len(v)-1-i] = c
	}
	return out
}

func rot13(v []byte) []byte {
	out := bytes.Clone(v)
	for i, c := range out {
		switch l := c | 0x20; {
		case l >= 'a' && l <= 'm':
			out[i] = c + 13
		case l >= 'n' && l <= 'z':
			out[i] = c - 13
		}
	}
	return out
}

func utf16Of(v []byte, bigEndian bool) []byte {
	var order binary.AppendByteOrder = binary.LittleEndian
	if bigEndian {
		order = binary.BigEndian
	}
	var out []byte
	for _, u := range utf16.Encode(bytes.Runes(v)) {
		out = order.AppendUint16(out, u)
	}
	return out
}

// Blocks of Unicode that repeat ASCII: tag characters, which no terminal shows, and full-width forms.
const (
	tagBlock  = 0xE0000
	wideBlock = 0xFEE0
)

// shifted returns v in characters of block, or nothing if v is not printable ASCII. A space has no wide form.
func shifted(v []byte, block rune) []byte {
	var out []byte
	for _, c := range v {
		switch {
		case c < 0x20 || c > 0x7e:
			return nil
		case c == ' ' && block == wideBlock:
			out = append(out, ' ')
		default:
			out = append(out, string(block+rune(c))...)
		}
	}
	return out
}

// urlEscapes returns v as Go, Python's quote, and JavaScript's encodeURIComponent and encodeURI escape it.
func urlEscapes(v []byte) [][]byte {
	var out [][]byte
	all := url.QueryEscape(string(v))
	for _, s := range []string{all, url.PathEscape(string(v)), strings.ReplaceAll(all, "+", "%20"), percentBut(v, "-_.~/"), percentBut(v, "-_.!~*'()"), percentBut(v, "-_.!~*'();/?:@&=+$,#")} {
		out = append(out, []byte(s), lowerEscapes(s))
	}
	return out
}

// percentBut escapes every byte but letters, digits and those of safe.
func percentBut(v []byte, safe string) string {
	var out []byte
	for _, c := range v {
		if asciiAlnum(c) != 0 || strings.IndexByte(safe, c) >= 0 {
			out = append(out, c)
			continue
		}
		out = append(out, '%', upperHex[c>>4], upperHex[c&15])
	}
	return string(out)
}

// lowerEscapes returns s with the digits of its percent escapes in lower case.
func lowerEscapes(s string) []byte {
	out := []byte(s)
	for i := 0; i+2 < len(out); i++ {
		if out[i] == '%' {
			copy(out[i+1:i+3], bytes.ToLower(out[i+1:i+3]))
		}
	}
	return out
}

func jsonEscapes(v []byte) [][]byte {
	var out [][]byte
	for _, forHTML := range []bool{false, true} {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(forHTML)
		if enc.Encode(string(v)) == nil {
			text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
			out = append(out, text[1:len(text)-1])
		}
	}
	slashed := bytes.ReplaceAll(out[0], []byte("/"), []byte(`\/`))
	return append(out, slashed)
}

func goEscapes(v []byte) [][]byte {
	var out [][]byte
	for _, q := range []string{strconv.Quote(string(v)), strconv.QuoteToASCII(string(v))} {
		out = append(out, []byte(q[1:len(q)-1]))
	}
	return out
}

// shellEscapes returns the inside of 'v', of $'v' and of "v", and the backslash form of printf %q.
func shellEscapes(v []byte) [][]byte {
	single := bytes.ReplaceAll(v, []byte("'"), []byte(`'\''`))
	joined := bytes.ReplaceAll(v, []byte("'"), []byte(`'"'"'`))
	ansi := []byte(strings.NewReplacer(`\`, `\\`, "'", `\'`, "\n", `\n`, "\t", `\t`, "\r", `\r`, "\x1b", `\E`).Replace(string(v)))
	double := []byte(strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(string(v)))
	var bare []byte
	for _, c := range v {
		if c < 0x80 && !bytes.ContainsRune([]byte("%+-./:=@_"), rune(c)) && asciiAlnum(c) == 0 {
			bare = append(bare, '\\')
		}
		bare = append(bare, c)
	}
	return [][]byte{single, joined, ansi, double, bare}
}

func xmlEscapes(v []byte) [][]byte {
	var b bytes.Buffer
	out := [][]byte{[]byte(html.EscapeString(string(v)))}
	if xml.EscapeText(&b, v) == nil {
		out = append(out, b.Bytes())
	}
	named := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(string(v))
	text := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(string(v))
	python := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;").Replace(string(v))
	php := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#039;").Replace(string(v))
	return append(out, []byte(named), []byte(text), []byte(python), []byte(php))
}

// pythonEscape returns v as the repr of Python's bytes and strings writes it between single quotes.
func pythonEscape(v []byte) []byte {
	var out []byte
	for _, c := range v {
		switch {
		case c == '\'' || c == '\\':
			out = append(out, '\\', c)
		case c == '\n':
			out = append(out, `\n`...)
		case c == '\r':
			out = append(out, `\r`...)
		case c == '\t':
			out = append(out, `\t`...)
		case c < 0x20 || c >= 0x7f:
			out = append(out, `\x`...)
			out = append(out, lowerHex[c>>4], lowerHex[c&15])
		default:
			out = append(out, c)
		}
	}
	return out
}

// quotedPrintable returns v in the encoding of RFC 2045, section 6.7, without soft line breaks, which the folded view passes over.
func quotedPrintable(v []byte) []byte {
	var out []byte
	for _, c := range v {
		if c == '=' || c < 0x20 || c > 0x7e {
			out = append(out, '=', upperHex[c>>4], upperHex[c&15])
			continue
		}
		out = append(out, c)
	}
	return out
}

func atbash(v []byte) []byte {
	out := bytes.Clone(v)
	for i, c := range out {
		switch {
		case c >= 'a' && c <= 'z':
			out[i] = 'a' + 'z' - c
		case c >= 'A' && c <= 'Z':
			out[i] = 'A' + 'Z' - c
		}
	}
	return out
}

func rot47(v []byte) []byte {
	out := bytes.Clone(v)
	for i, c := range out {
		if c > 0x20 && c < 0x7f {
			out[i] = 0x21 + (c-0x21+47)%94
		}
	}
	return out
}

// ascii85Of returns the part of the ascii85 text of v alone that does not depend on its end.
func ascii85Of(v []byte) []byte {
	v = v[:len(v)/4*4]
	out := make([]byte, ascii85.MaxEncodedLen(len(v)))
	return out[:ascii85.Encode(out, v)]
}

const base58Alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

// base58Of returns v as one number in the alphabet of Bitcoin.
func base58Of(v []byte) []byte {
	var digits []byte // the lowest first
	for _, c := range v {
		carry := int(c)
		for i, d := range digits {
			carry += int(d) << 8
			digits[i] = byte(carry % 58)
			carry /= 58
		}
		for ; carry > 0; carry /= 58 {
			digits = append(digits, byte(carry%58))
		}
	}
	for i := 0; i < len(v) && v[i] == 0; i++ {
		digits = append(digits, 0)
	}
	out := reversed(digits)
	for i, d := range out {
		out[i] = base58Alphabet[d]
	}
	return out
}
