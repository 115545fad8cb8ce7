package redact

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"io"
)

// blob is a part of a text that may be an encoding of another.
type blob struct {
	start, end int
	kind       blobKind
	joined     bool
}

type blobKind int

const (
	blobBase64 blobKind = iota
	blobBase32
	blobHex
	blobPercent
	blobPacked
)

const minBlob = 16

// blobsOf returns the candidates in p: runs of the characters of an encoding, also joined across line breaks and separators, and the headers of packed data.
func blobsOf(p []byte) []blob {
	var out []blob
	for _, kind := range []blobKind{blobBase64, blobBase32, blobHex, blobPercent} {
		out = append(out, kind.blobs(p)...)
	}
	for i := 0; i+2 < len(p); i++ {
		gz := p[i] == 0x1f && p[i+1] == 0x8b && p[i+2] == 8
		zl := p[i] == 0x78 && (p[i+1] == 0x01 || p[i+1] == 0x5e || p[i+1] == 0x9c || p[i+1] == 0xda)
		if gz || zl {
			out = append(out, blob{start: i, end: len(p), kind: blobPacked})
		}
	}
	return out
}

// blobs returns the candidates of one kind. Runs with at most four separators between are joined as long as
// they could be lines or groups of one encoding: all but the last are of the same length, which is even or long. What is joined comes after its runs.
func (k blobKind) blobs(p []byte) []blob {
	var out []blob
	joined, n, last, end := -1, 0, 0, 0 // where what is joined begins, its characters, the length of its runs, and where the last one ends
	flush := func(run int) {
		if joined >= 0 && n >= minBlob && n > run && k != blobPercent {
			out = append(out, blob{joined, end, k, true})
		}
		joined = -1
	}
	for i := 0; i < len(p); {
		if !k.has(p[i]) {
			i++
			continue
		}
		start := i
		for i < len(p) && k.has(p[i]) {
			i++
		}
		run := i - start
		if run >= minBlob && (k != blobPercent || bytes.IndexByte(p[start:i], '%') >= 0) {
			out = append(out, blob{start: start, end: i, kind: k})
		}
		if run > last { // the last line of an encoding is the shortest
			flush(last)
		}
		if joined < 0 {
			joined, n, last = start, 0, run
		}
		n += run
		next := i
		end = i
		for next < len(p) && next-i < 4 && k.separates(p[next]) {
			next++
		}
		if goesOn := next > i && next < len(p) && k.has(p[next]); goesOn && run == last && (run >= minBlob || run%2 == 0) {
			i = next
			continue
		}
		flush(run)
	}
	return out
}

func (k blobKind) separates(c byte) bool {
	return c == '\n' || c == '\r' || c == ' ' || c == '\t' || k == blobHex && (c == ':' || c == ',' || c == '-')
}

func (k blobKind) has(c byte) bool {
	switch k {
	case blobBase64:
		return asciiAlnum(c) != 0 || c == '+' || c == '/' || c == '-' || c == '_' || c == '='
	case blobBase32:
		return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '2' && c <= '7' || c == '='
	case blobHex:
		return digit(c) < 16
	}
	return c > 0x20 && c < 0x7f
}

// decode returns what b may stand for, and takes its length from left. Of packed data it also corrects the end of b, as far as that is known.
func (b *blob) decode(p []byte, left *int) [][]byte {
	var out [][]byte
	keep := func(text []byte) {
		if len(text) > 0 && *left > 0 {
			*left -= len(text)
			out = append(out, text)
		}
	}
	if b.kind == blobPacked {
		keep(b.unpack(p, *left))
		return out
	}
	text := bytes.Map(func(r rune) rune {
		if r < 0x80 && b.kind.has(byte(r)) {
			return r
		}
		return -1
	}, p[b.start:b.end])
	switch b.kind {
	case blobBase64:
		text = bytes.TrimRight(bytes.Map(standard, text), "=")
		for shift := range min(4, len(text)) {
			part := text[shift:]
			if i := bytes.IndexByte(part, '='); i >= 0 { // what was joined after padding
				part = part[:i]
			}
			if len(part)%4 == 1 {
				part = part[:len(part)-1]
			}
			dst := make([]byte, base64.RawStdEncoding.DecodedLen(len(part)))
			n, _ := base64.RawStdEncoding.Decode(dst, part)
			keep(dst[:n])
		}
	case blobBase32:
		text = bytes.ToUpper(bytes.TrimRight(text, "="))
		dst := make([]byte, len(text))
		n, _ := base32.StdEncoding.WithPadding(base32.NoPadding).Decode(dst, text)
		keep(dst[:n])
	case blobHex:
		for shift := range 2 {
			part := text[shift:]
			dst := make([]byte, len(part)/2)
			n, _ := hex.Decode(dst, part[:len(part)/2*2])
			keep(dst[:n])
		}
	case blobPercent:
		keep(unpercent(text))
	}
	return out
}

// standard maps the URL alphabet of base64 to the standard one.
func standard(r rune) rune {
	switch r {
	case '-':
		return '+'
	case '_':
		return '/'
	}
	return r
}

func unpercent(p []byte) []byte {
	var out []byte
	for i := 0; i < len(p); i++ {
		if p[i] == '%' && i+2 < len(p) && digit(p[i+1]) < 16 && digit(p[i+2]) < 16 {
			out = append(out, byte(digit(p[i+1])<<4|digit(p[i+2])))
			i += 2
			continue
		}
		out = append(out, p[i])
	}
	return out
}

// unpack inflates gzip (RFC 1952) or zlib (RFC 1950) up to most bytes. What is damaged is read as far as it goes.
func (b *blob) unpack(p []byte, most int) []byte {
	src := bytes.NewReader(p[b.start:])
	var z io.Reader
	var err error
	if p[b.start] == 0x1f {
		var g *gzip.Reader
		if g, err = gzip.NewReader(src); err == nil {
			g.Multistream(false)
		}
		z = g
	} else {
		z, err = zlib.NewReader(src)
	}
	if err != nil {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(z, int64(most)))
	if err == nil && len(text) < most {
		b.end = len(p) - src.Len()
	}
	return text
}
