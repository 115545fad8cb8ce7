package redact

import (
	"bytes"
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
	var out []byte
	for _, c := range v {
		out = append(out, before...)
		n := strconv.FormatUint(uint64(c), len(digits))
		out = append(out, strings.Repeat("0", max(0, width-len(n)))...)
		if digits == upperHex {
			n = strings.ToUpper(n)
		}
		out = append(append(out, n...), after...)
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

func urlEscapes(v []byte) [][]byte {
	var out [][]byte
	for _, s := range []string{url.QueryEscape(string(v)), url.PathEscape(string(v)), strings.ReplaceAll(url.QueryEscape(string(v)), "+", "%20")} {
		out = append(out, []byte(s), lowerEscapes(s))
	}
	return out
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
	return append(out, []byte(named), []byte(text))
}
