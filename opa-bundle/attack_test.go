package opabundle

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// Archives that no honest tool writes. Where the attack needs no signature the
// archive is unsigned, because it must be refused before signatures are read.

type entry struct {
	name, body, link string
	kind             byte
}

func rawTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: e.kind, Name: e.name, Linkname: e.link, Mode: 0o644, Size: int64(len(e.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	if _, err := zw.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestArchiveAttacks(t *testing.T) {
	reg := func(names ...string) []byte {
		var es []entry
		for _, n := range names {
			es = append(es, entry{name: n, body: "{}"})
		}
		return gz(t, rawTar(t, es...))
	}
	many := make([]string, 513)
	for i := range many {
		many[i] = strings.Repeat("a", i%100+1) + "/" + strings.Repeat("b", i/100+1) + ".rego"
	}
	good := reg("a.rego")
	tests := map[string]struct {
		raw  []byte
		want string
	}{
		"empty":                 {nil, "EOF"},
		"not gzip":              {[]byte("package sealed.authz"), "gzip"},
		"not tar":               {gz(t, []byte(strings.Repeat("x", 2048))), "tar"},
		"truncated":             {good[:len(good)/2], "EOF"},
		"parent":                {reg("../a.rego"), "forbidden name"},
		"parent inside":         {reg("sealed/../../a.rego"), "not a canonical path"},
		"only parent":           {reg(".."), "forbidden name"},
		"absolute, two slashes": {reg("//etc/a.rego"), "forbidden name"},
		"backslash":             {reg(`..\a.rego`), "forbidden name"},
		"dot":                   {reg("./a.rego"), "not a canonical path"},
		"not ASCII":             {reg("sеaled/a.rego"), "forbidden name"},
		"duplicate":             {reg("a.rego", "a.rego"), "duplicate"},
		"duplicate by slash":    {reg("a.rego", "/a.rego"), "duplicate"},
		"duplicate by case":     {reg("sealed/a.rego", "Sealed/A.rego"), "duplicate"},
		"signatures by case":    {reg(".Signatures.json"), "not part of the format"},
		"second manifest":       {reg(".manifest", "sealed/x.manifest"), "not part of the format"},
		"protobuf manifest":     {reg(".manifest.pb"), "not part of the format"},
		"signatures below":      {reg("sealed/.signatures.json"), "not part of the format"},
		"wasm":                  {reg("policy.wasm"), "not part of the format"},
		"yaml":                  {reg("sealed/data.yaml"), "not part of the format"},
		"delta":                 {reg("patch.json"), "delta"},
		"symlink":               {gz(t, rawTar(t, entry{name: "a.rego", kind: tar.TypeSymlink, link: "/etc/passwd"})), "not a regular file"},
		"hard link":             {gz(t, rawTar(t, entry{name: "a.rego", kind: tar.TypeLink, link: "b.rego"})), "not a regular file"},
		"device":                {gz(t, rawTar(t, entry{name: "a.rego", kind: tar.TypeChar})), "not a regular file"},
		"fifo":                  {gz(t, rawTar(t, entry{name: "a.rego", kind: tar.TypeFifo})), "not a regular file"},
		"too many files":        {reg(many...), "more than 512 files"},
		"bomb in a file":        {gz(t, rawTar(t, entry{name: "a.rego", body: strings.Repeat("#", 9<<20)})), "more than 8388608 bytes"},
		"bomb in the padding":   {gz(t, make([]byte, 64<<20)), "after the end"},
		"too large":             {bytes.Repeat([]byte{0x1f}, 1<<20+1), "limit 1048576"},
		"second gzip member":    {append(bytes.Clone(good), good...), "after the end"},
		"second tar":            {gz(t, append(rawTar(t, entry{name: "a.rego"}), rawTar(t, entry{name: "b.rego"})...)), "after the end"},
		"trailing byte":         {append(bytes.Clone(good), 0), "after the end"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Open(context.Background(), tc.raw, newKey(t).options())
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ErrMalformed about %q", err, tc.want)
			}
		})
	}
	t.Run("control: a well-formed archive gets as far as the signature", func(t *testing.T) {
		if _, err := Open(context.Background(), reg("/.manifest", "/data.json", "sealed/a.rego"), newKey(t).options()); !errors.Is(err, ErrUnsigned) {
			t.Errorf("got %v, want ErrUnsigned", err)
		}
	})
}

// A GNU sparse entry yields zeros that the stream never held.
func TestSparseBomb(t *testing.T) {
	// A PAX 1.0 sparse file: the map says "no data", the real size is 1 GiB.
	var buf bytes.Buffer
	pax := func(k, v string) string {
		rec := " " + k + "=" + v + "\n"
		return strconv.Itoa(len(rec)+2) + rec
	}
	ext := pax("GNU.sparse.major", "1") + pax("GNU.sparse.minor", "0") + pax("GNU.sparse.name", "a.rego") + pax("GNU.sparse.realsize", "1073741824")
	sparse := "1\n1073741824\n0\n"
	sparse += strings.Repeat("\x00", 512-len(sparse))
	for _, e := range []entry{{name: "PaxHeaders.0/a.rego", body: ext, kind: 'x'}, {name: "a.rego", body: sparse}} {
		h := make([]byte, 512)
		copy(h, e.name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], oct(int64(len(e.body)), 11)+"\x00")
		copy(h[136:], oct(0, 11)+"\x00")
		copy(h[148:], "        ")
		h[156] = e.kind
		if e.kind == 0 {
			h[156] = '0'
		}
		copy(h[257:], "ustar\x0000")
		sum := int64(0)
		for _, c := range h {
			sum += int64(c)
		}
		copy(h[148:], oct(sum, 6)+"\x00 ")
		buf.Write(h)
		buf.WriteString(e.body)
		buf.Write(make([]byte, (512-len(e.body)%512)%512))
	}
	buf.Write(make([]byte, 1024))
	h, err := tar.NewReader(bytes.NewReader(buf.Bytes())).Next()
	if err != nil || h.Size != 1<<30 {
		t.Fatalf("the fixture is not a sparse file: %+v, %v", h, err)
	}
	_, err = Open(context.Background(), gz(t, buf.Bytes()), newKey(t).options())
	if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "more than 8388608 bytes") {
		t.Errorf("got %v, want ErrMalformed about the size", err)
	}
}

// 1 GiB of zeros in 1 MiB: reading stops at the limit.
func TestGzipBomb(t *testing.T) {
	var head, body bytes.Buffer
	zw, err := flate.NewWriter(&body, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 2 { // from the second on, each MiB is compressed the same
		head.Write(body.Bytes())
		body.Reset()
		if _, err := zw.Write(zeros); err != nil {
			t.Fatal(err)
		}
		if err := zw.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	raw := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, head.Bytes()...)
	raw = append(raw, bytes.Repeat(body.Bytes(), 1023)...)
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := io.Copy(io.Discard, zr); n != 1<<30 {
		t.Fatalf("the fixture holds %d bytes", n)
	}
	opts := newKey(t).options()
	opts.Limits.Compressed = 2 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = Open(context.Background(), raw, opts)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "after the end") && !strings.Contains(err.Error(), "uncompressed") {
		t.Errorf("got %v, want ErrMalformed about the size", err)
	}
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 64 {
		t.Errorf("allocated %d MiB", n)
	}
}

func oct(n int64, width int) string { return fmt.Sprintf("%0*o", width, n) }

// FuzzArchive: the archive reader never panics, stays within its limits and
// returns canonical, distinct names; what it accepts, the writer writes back.
func FuzzArchive(f *testing.F) {
	f.Add(gz(f, rawTar(f, entry{name: "sealed/a.rego", body: "package sealed.a"})))
	f.Add(gz(f, rawTar(f, entry{name: "/.manifest", body: "{}"}, entry{name: "data.json", body: "{}"})))
	f.Add(gz(f, rawTar(f, entry{name: "../x.rego"})))
	f.Add(gz(f, rawTar(f, entry{name: "x.rego", kind: tar.TypeSymlink, link: "y"})))
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, raw []byte) {
		limits := Limits{Compressed: 1 << 16, Uncompressed: 1 << 18, Files: 16}.withDefaults()
		files, err := readArchive(raw, limits)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v is not ErrMalformed", err)
			}
			return
		}
		total := 0
		seen := map[string]bool{}
		for _, f := range files {
			total += len(f.data)
			if name, err := cleanName(f.name); err != nil || name != f.name || seen[strings.ToLower(name)] {
				t.Fatalf("accepted name %q", f.name)
			}
			seen[strings.ToLower(f.name)] = true
		}
		if len(files) > limits.Files || total > int(limits.Uncompressed) {
			t.Fatalf("%d files, %d bytes: over the limits", len(files), total)
		}
		again, err := readArchive(archive(t, files...), Limits{}.withDefaults())
		if err != nil || len(again) != len(files) {
			t.Fatalf("written back: %d files, %v; want %d", len(again), err, len(files))
		}
	})
}

// FuzzSignature: no bytes but a signer's verify.
func FuzzSignature(f *testing.F) {
	k := newKey(f)
	signed := k.sign(f, buildDefault(f))
	files, err := readArchive(signed, Limits{}.withDefaults())
	if err != nil {
		f.Fatal(err)
	}
	rest, good, _ := without(files, signaturesName)
	f.Add(good)
	f.Add([]byte(`{"signatures":["a.b.c"]}`))
	f.Add([]byte(`{"signatures":[],"plugin":"x"}`))
	f.Add([]byte(`{}`))
	token, err := parseSignatures(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all := append([]file{{signaturesName, data}}, rest...)
		got, _, err := verifySignature(all, k.options().Keys)
		if err != nil {
			if !errors.Is(err, ErrSignature) && !errors.Is(err, ErrUnsigned) {
				t.Fatalf("%v is neither ErrSignature nor ErrUnsigned", err)
			}
			return
		}
		_, canonical, _ := without(got, signaturesName)
		if again, err := parseSignatures(canonical); err != nil || again != token {
			t.Fatalf("accepted another token: %q, %v", again, err)
		}
	})
}
