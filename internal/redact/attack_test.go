package redact

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
)

type attack struct {
	name, value, wire string
}

// attacks are what an agent prints to get a value past the redactor. The names cite the list of threats.
func attacks() []attack {
	var all []attack
	add := func(name, value, wire string) { all = append(all, attack{name, value, wire}) }
	std, raw := base64.StdEncoding.EncodeToString, base64.RawURLEncoding.EncodeToString
	for label, v := range map[string]string{"alnum": alnumValue, "symbols": symbolValue, "binary": binaryValue, "pem": pemValue} {
		each := func(name, wire string) { add(name+" "+label, v, wire) }
		each("A01 echo", v)
		each("A02 environ", "A=1\x00KEY="+v+"\x00B=2")
		for _, pre := range []string{"", "x", "xy", "user:"} {
			for _, post := range []string{"", "\n", "z", "zz"} {
				each(fmt.Sprintf("A03 base64 %q %q", pre, post), std([]byte(pre+v+post)))
				each(fmt.Sprintf("A04 base64url %q %q", pre, post), raw([]byte(pre+v+post)))
				each(fmt.Sprintf("A04 base64 wrapped 64 %q %q", pre, post), spaced(std([]byte(pre+v+post)), "\n", 64))
				each(fmt.Sprintf("A04 base64 wrapped 76 %q %q", pre, post), spaced(std([]byte(pre+v+post)), "\r\n", 76))
			}
		}
		each("A04 base64 wrapped 20", spaced(std([]byte(v)), "\n", 20))
		h := hex.EncodeToString([]byte(v))
		each("A05 hex lower", h)
		each("A05 hex upper", strings.ToUpper(h))
		each("A05 hex mixed", mixedCase(h))
		each("A05 hex colons", spaced(h, ":", 2))
		each("A05 hex spaces", spaced(strings.ToUpper(h), " ", 2))
		each("A05 hex 0x", "0x"+spaced(h, ", 0x", 2))
		each("A05 hex words", spaced(h, " ", 4))
		each("A05 hex lines", spaced(spaced(h, " ", 2), "\n", 48))
		each("A06 url query", url.QueryEscape(v))
		each("A06 url path", url.PathEscape(v))
		each("A06 url all", percentAll(v, "%%%02x"))
		each("A06 URL ALL", percentAll(v, "%%%02X"))
		each("A08 reversed", string(reversed([]byte(v))))
		each("A08 reversed base64", std(reversed([]byte(v))))
		each("A13 full width", mapRunes(v, func(r rune) rune {
			if r > 0x20 && r < 0x7f {
				return r + 0xFEE0
			}
			return r
		}))
		j, _ := json.Marshal(v)
		each("A14 json", string(j))
		each("A14 go", strconv.Quote(v))
		each("A14 go ascii", strconv.QuoteToASCII(v))
		each("A14 shell", "'"+strings.ReplaceAll(v, "'", `'\''`)+"'")
		each("A14 hex escapes", percentAll(v, `\x%02x`))
		each("A14 octal", percentAll(v, `\%03o`))
		each("A14 unicode", percentAll(v, `\u00%02x`))
		each("A14 UNICODE", percentAll(v, `\u00%02X`))
		each("A14 xml", html.EscapeString(v))
		each("A14 xml dec", percentAll(v, "&#%d;"))
		each("A14 xml hex", percentAll(v, "&#x%02x;"))
		each("A17 base32", base32.StdEncoding.EncodeToString([]byte(v)))
		each("rot13", string(rot13([]byte(v))))
		if label != "binary" {
			each("utf16le", utf16Text(v, 0))
			each("utf16be", utf16Text(v, 8))
		}
	}
	for _, v := range []string{alnumValue, pemValue} {
		v, whole := strings.Trim(v, "-\n"), v // a folded match leaves the dashes at the ends, which are public
		each := func(name, wire string) { add(name+" "+v[:5], whole, wire) }
		for _, sep := range []string{"\n", "\r\n", " ", "\t", ",", ", ", ".", "-", " | ", ":", "_", "/", "\r", "\x00", "\u200b", "\ufeff", "\u2060", "\U000E0041",
			"\u0301", "\u202e", "\x1b[0m", "\x1b[38;5;196m", "\x1b]0;title\x07", "\x1b]8;;\x1b\\", "\x1b(B", `", "`, `\n`, `\u200b`, "%0a", "%20", "&#10;", "\u2502"} {
			each(fmt.Sprintf("A10 A13 separator %q", sep), spaced(v, sep, 1))
		}
		each("A06 double", strings.ReplaceAll(percentAll(v, "%%%02x"), "%", "%25"))
		each("A06 triple", strings.ReplaceAll(percentAll(v, "%%%02x"), "%", "%2525"))
		each("A11 two lines", v[:len(v)/2]+"\n"+v[len(v)/2:])
		each("A14 json in json", strings.ReplaceAll(percentAll(v, `\u00%02x`), `\`, `\\`))
		each("A14 mixture", mixture(v))
		each("upper case", strings.ToUpper(v))
		each("quotes", spaced(v, `""`, 3))
		each("overwrite", strings.Repeat("#", 20)+"\r"+v)
	}
	add("A10 backspace at 5", alnumValue, alnumValue[:5]+"XY\b\b"+alnumValue[5:])
	add("A10 backspace", alnumValue, alnumValue[:4]+spaced(alnumValue[4:], "X\b", 1))
	add("A13 tags", alnumValue, string(shifted([]byte(alnumValue), tagBlock)))
	add("A21 crlf", pemValue, strings.ReplaceAll(pemValue, "\n", "\r\n"))
	add("A21 literal", pemValue, strings.ReplaceAll(pemValue, "\n", `\n`))
	add("A21 spaces", pemValue, strings.ReplaceAll(pemValue, "\n", " "))
	lines := strings.Split(pemValue, "\n")
	add("A21 no header", pemValue, strings.Join(lines[1:4], "\n"))
	add("A21 one line", pemValue, "junk "+lines[2]+" junk")
	add("A21 yaml", pemValue, "    "+strings.Join(lines[1:4], "\n    "))
	add("A26 trace", alnumValue, "+ curl -H 'Authorization: Bearer "+alnumValue+"' https://u:"+alnumValue+"@host/")
	return all
}

func mixedCase(h string) string {
	b := []byte(h)
	for i := range b {
		if i%3 == 0 {
			b[i] = strings.ToUpper(h[i : i+1])[0]
		}
	}
	return string(b)
}

func percentAll(v, format string) string {
	var b strings.Builder
	for _, c := range []byte(v) {
		fmt.Fprintf(&b, format, c)
	}
	return b.String()
}

func mapRunes(v string, f func(rune) rune) string {
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] < 0x80 {
			b.WriteRune(f(rune(v[i])))
		} else {
			b.WriteByte(v[i])
		}
	}
	return b.String()
}

func utf16Text(v string, shift uint) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(v)) {
		b.WriteByte(byte(u >> shift))
		b.WriteByte(byte(u >> (8 - shift)))
	}
	return b.String()
}

// mixture writes each character in another way.
func mixture(v string) string {
	forms := []string{"%c", `\x%02x`, "%%%02X", `\u%04x`, "&#%d;", `\%03o`, "%c ", "&amp;#x%x;", "%%25%02x", "\x1b[1m%c"}
	var b strings.Builder
	for i, c := range []byte(v) {
		fmt.Fprintf(&b, forms[i%len(forms)], c)
	}
	return b.String()
}

// leak says why out is a leak of the attack, or nothing.
func (a attack) leak(out string) string {
	if !strings.Contains(out, "[sealed:THE_KEY]") {
		return "no mask"
	}
	wire := a.wire
	for _, armor := range strings.SplitAfter(pemValue, "\n") { // the armor of PEM is public
		if strings.HasPrefix(armor, "-----") {
			wire = strings.ReplaceAll(wire, strings.TrimSpace(armor), "")
		}
	}
	for _, public := range []string{"junk", "+ curl -H 'Authorization: Bearer ", "' https://u:", "@host/", "####################"} {
		wire = strings.ReplaceAll(wire, public, "")
	}
	if p := shows(out, wire, 12); p != "" {
		return fmt.Sprintf("shows %q", p)
	}
	return ""
}

func TestAttacks(t *testing.T) {
	armed := map[string]*Set{}
	for _, v := range []string{alnumValue, symbolValue, binaryValue, pemValue} {
		armed[v] = setOf(t, "THE_KEY", v, "OTHER_KEY", "kQ7vT2xB9mW4zR6nY8pL")
	}
	for _, a := range attacks() {
		in := "some text before\n" + a.wire + "\nand after\n"
		for _, c := range cuts {
			out, counts := pass(t, armed[a.value], in, c.next)
			if why := a.leak(out); why != "" {
				t.Errorf("%s, %s: %s\n in %q\nout %q", a.name, c.name, why, in, out)
			}
			if len(counts) == 0 {
				t.Errorf("%s, %s: nothing counted", a.name, c.name)
			}
			if !strings.HasPrefix(out, "some text before\n") || !strings.HasSuffix(out, "and after\n") {
				t.Errorf("%s, %s: neighbors changed: %q", a.name, c.name, out)
			}
		}
	}
	t.Run("control off", func(t *testing.T) {
		for _, a := range attacks() {
			out, _ := pass(t, NewSet(), a.wire, cuts[0].next)
			if a.leak(out) == "" || out != a.wire {
				t.Errorf("%s: an empty set hides the value, so the test proves nothing", a.name)
			}
		}
	})
}
