// Package canary is the oracle of the security tests: it plants high-entropy
// values and looks for them, in every form the redactor knows and in those it
// does not, in every place where they must not be.
//
// A scan that finds nothing proves nothing unless the same scan finds the
// value where it is: every test that uses the oracle also runs it over a sink
// that holds the value (the negative control).
package canary

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf16"
)

// A Canary is one planted value.
type Canary struct {
	Name  string
	Value string
	forms []form
}

type form struct {
	name  string
	bytes []byte
}

// New plants a canary: 40 random characters of a token alphabet, of which the last
// is a letter or a digit. Redaction that has joined a split value masks it without
// the separators at its ends, of which it can't tell whose they are; so a test that
// splits a canary that ends in "-" would find that left over.
func New(name string) (*Canary, error) {
	for {
		b := make([]byte, 30)
		if _, err := rand.Read(b); err != nil {
			return nil, fmt.Errorf("making canary: %w", err)
		}
		value := "cnry_" + base64.RawURLEncoding.EncodeToString(b)
		if !strings.ContainsAny(value[len(value)-1:], "-_") {
			return FromValue(name, value), nil
		}
	}
}

// FromValue makes a canary of a known value.
func FromValue(name, value string) *Canary {
	c := &Canary{Name: name, Value: value}
	c.forms = forms(value)
	return c
}

// forms encodes independently of internal/redact, on purpose: an encoding
// that both got wrong in the same way would hide a leak.
func forms(v string) []form {
	b := []byte(v)
	out := []form{{"raw", b}, {"hex", []byte(hex.EncodeToString(b))}, {"HEX", []byte(strings.ToUpper(hex.EncodeToString(b)))},
		{"url", []byte(url.QueryEscape(v))}, {"base32", []byte(strings.TrimRight(base32.StdEncoding.EncodeToString(b), "="))},
		{"quoted", []byte(strings.Trim(strconv.Quote(v), `"`))}, {"reversed", reverse(b)}, {"utf16le", utf16le(v)}, {"rot13", rot13(b)}}
	for shift := range 3 {
		out = append(out,
			form{"base64+" + strconv.Itoa(shift), base64Core(base64.StdEncoding, b, shift)},
			form{"base64url+" + strconv.Itoa(shift), base64Core(base64.URLEncoding, b, shift)})
	}
	// A half is a leak too, once it is long enough to matter.
	if half := len(b) / 2; half >= 16 {
		out = append(out, form{"first half", b[:half]}, form{"second half", b[half:]})
	}
	return out
}

// base64Core is the part of an encoding that does not depend on neighbours.
func base64Core(enc *base64.Encoding, b []byte, shift int) []byte {
	padded := append(make([]byte, shift), b...)
	s := enc.EncodeToString(padded)
	lead := []int{0, 2, 3}[shift]
	s = strings.TrimRight(s, "=")
	tail := []int{0, 1, 1}[len(padded)%3]
	return []byte(s[lead : len(s)-tail])
}

func reverse(b []byte) []byte {
	out := bytes.Clone(b)
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

func utf16le(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = append(out, byte(u), byte(u>>8))
	}
	return out
}

func rot13(b []byte) []byte {
	out := bytes.Clone(b)
	for i, c := range out {
		switch {
		case c >= 'a' && c <= 'z':
			out[i] = 'a' + (c-'a'+13)%26
		case c >= 'A' && c <= 'Z':
			out[i] = 'A' + (c-'A'+13)%26
		}
	}
	return out
}

// A Hit says where a canary was found, never its value.
type Hit struct {
	Canary, Form, Sink string
}

func (h Hit) String() string { return h.Canary + " as " + h.Form + " in " + h.Sink }

// Scan looks for the canaries in data, as it is, with white space removed, and
// inflated where it is a zlib or gzip stream.
func Scan(sink string, data []byte, canaries ...*Canary) []Hit {
	var hits []Hit
	views := [][]byte{data, strip(data)}
	views = append(views, inflate(data)...)
	for _, c := range canaries {
		for _, f := range c.forms {
			for _, v := range views {
				if bytes.Contains(v, f.bytes) {
					hits = append(hits, Hit{c.Name, f.name, sink})
					break
				}
			}
		}
	}
	return hits
}

func strip(b []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r == ' ' || r == '\n' || r == '\r' || r == '\t' {
			return -1
		}
		return r
	}, b)
}

func inflate(b []byte) [][]byte {
	var out [][]byte
	if r, err := zlib.NewReader(bytes.NewReader(b)); err == nil {
		if p, err := io.ReadAll(io.LimitReader(r, 64<<20)); err == nil {
			out = append(out, p)
		}
	}
	if r, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
		if p, err := io.ReadAll(io.LimitReader(r, 64<<20)); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// ScanTree scans names and contents of every regular file below root, and the
// targets of links.
func ScanTree(root string, canaries ...*Canary) ([]Hit, error) {
	var hits []Hit
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hits = append(hits, Scan("name of "+path, []byte(d.Name()), canaries...)...)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			if t, err := os.Readlink(path); err == nil {
				hits = append(hits, Scan("link "+path, []byte(t), canaries...)...)
			}
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("scanning %s: %w", path, err)
			}
			hits = append(hits, Scan(path, b, canaries...)...)
		}
		return nil
	})
	return hits, err
}

// ScanProcess scans the memory of a process, its command line and its
// environment. It needs the right to read them; a process that has gone is an
// error, so that a test can't pass by scanning nothing.
func ScanProcess(pid int, canaries ...*Canary) ([]Hit, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	var hits []Hit
	for _, name := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			return nil, fmt.Errorf("scanning process %d: %w", pid, err)
		}
		hits = append(hits, Scan(dir+"/"+name, b, canaries...)...)
	}
	maps, err := os.ReadFile(dir + "/maps")
	if err != nil {
		return nil, fmt.Errorf("scanning process %d: %w", pid, err)
	}
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return nil, fmt.Errorf("scanning process %d: %w", pid, err)
	}
	defer func() { _ = mem.Close() }()
	for line := range strings.Lines(string(maps)) {
		hits = append(hits, scanMapping(mem, line, dir, canaries)...)
	}
	return hits, nil
}

// scanMapping scans one readable, writable mapping of at most 1 GiB.
func scanMapping(mem *os.File, line, dir string, canaries []*Canary) []Hit {
	f := strings.Fields(line)
	if len(f) < 2 || !strings.HasPrefix(f[1], "rw") {
		return nil
	}
	lo, hi, _ := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(lo, 16, 63)
	end, err2 := strconv.ParseUint(hi, 16, 63)
	if err1 != nil || err2 != nil || end-start > 1<<30 {
		return nil
	}
	b := make([]byte, end-start)
	n, err := mem.ReadAt(b, int64(start))
	if err != nil && n == 0 {
		return nil // a guard page or a mapping that has gone
	}
	var hits []Hit
	for _, c := range canaries {
		if bytes.Contains(b[:n], []byte(c.Value)) {
			hits = append(hits, Hit{c.Name, "raw", dir + "/mem"})
		}
	}
	return hits
}
