package redact

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

const kMask = "[sealed:K]"

func TestRedact(t *testing.T) {
	v := alnumValue
	for _, tt := range []struct {
		name     string
		values   []string // pairs of key and value
		in, want string
	}{
		{"empty stream", []string{"K", v}, "", ""},
		{"nothing to hide", []string{"K", v}, "plain\x00text\xff\n", "plain\x00text\xff\n"},
		{"alone", []string{"K", v}, v, kMask},
		{"twice, adjacent", []string{"K", v}, v + v, kMask + kMask},
		{"prefix, then all of it", []string{"K", v}, v[:10] + v, v[:10] + kMask},
		{"self-overlapping", []string{"K", "aabQW3cVb9"}, "x aaabQW3cVb9", "x a" + kMask},
		{"A25 substring", []string{"A", "0123abcdWXYZ9876", "K", "abcdWXYZ"}, "0123abcdWXYZ9876 abcdWXYZ", "[sealed:A] " + kMask},
		{"A25 overlapping, the longer names it", []string{"K", "abcdefghIJKLMNO", "B", "IJKLMNOpq7"}, "abcdefghIJKLMNOpq7.", kMask + "."},
		{"A25 chain of overlaps", []string{"A", "aaaa1111bbbb2222", "K", "bbbb2222cccc3333d", "C", "cccc3333ddddX"}, "-aaaa1111bbbb2222cccc3333ddddX-", "-" + kMask + "-"},
		{"A25 adjacent", []string{"A", "abcdefgh12", "K", "ijklmnop34"}, "abcdefgh12ijklmnop34", "[sealed:A]" + kMask},
		{"A25 same value", []string{"K", v, "B", v}, v, kMask},
		{"A25 two values of a key", []string{"K", v, "K", "zzzz9999yyyy"}, v + " zzzz9999yyyy", kMask + " " + kMask},
		{"A25 newline", []string{"K", "first-half\nsecond9"}, "first-half\nsecond9", kMask},
		{"A25 NUL", []string{"K", "with\x00nul\x00byte"}, ">with\x00nul\x00byte<", ">" + kMask + "<"},
		{"A25 invalid UTF-8", []string{"K", "\xff\xfe\xc0\x80\x81\x82\x83\x84\x85"}, ">\xff\xfe\xc0\x80\x81\x82\x83\x84\x85<", ">" + kMask + "<"},
		{"A25 emoji", []string{"K", "pass\U0001F511word\U0001F512"}, ">pass\U0001F511word\U0001F512<", ">" + kMask + "<"},
		{"A25 regexp", []string{"K", `.*+?()|[]{}^$\`}, `>.*+?()|[]{}^$\<`, ">" + kMask + "<"},
		{"mask completes no value", []string{"K", v, "B", "]abcdefgh9"}, v + "abcdefgh9", kMask + "[sealed:B]"},
		{"value completes no mask", []string{"K", v, "B", "abcdefgh9[sea"}, "abcdefgh9" + v, "[sealed:B]" + kMask},
		{"A22 cut at the end", []string{"K", v}, "x" + v[:len(v)-1], "x" + kMask},
		{"A22 eight bytes", []string{"K", v}, v[:8], kMask},
		{"A22 seven bytes", []string{"K", v}, v[:7], v[:7]},
		{"A22 half of a short one", []string{"K", "abcdefgh"}, "abcd", kMask},
		{"A22 less than half of a short one", []string{"K", "abcdefgh"}, "abc", "abc"},
		{"A22 folded", []string{"K", v}, spaced(v[:20], "\n", 1), kMask},
		{"what is broken is not masked", []string{"K", v}, v[:12] + "0", v[:12] + "0"},
		{"separators around stay", []string{"K", v}, "a\n\n" + spaced(v, "\n", 1) + "\n\nb", "a\n\n" + kMask + "\n\nb"},
		{"value with an escape in it, raw", []string{"K", `abc%41def\n12&lt;34`}, `abc%41def\n12&lt;34`, kMask},
		{"value with an escape in it, spaced", []string{"K", `abc%41def\n12&lt;34`}, spaced(`abc%41def\n12&lt;34`, " ", 1), kMask},
		{"value with an escape in it, escaped", []string{"K", `abc%41def12&lt;34`}, `abc%2541def12&amp;lt;34`, kMask},
		{"gap too wide", []string{"K", v}, v[:9] + strings.Repeat(" ", maxGap+1) + v[9:], v[:9] + strings.Repeat(" ", maxGap+1) + v[9:]},
		{"gap of the greatest width", []string{"K", v}, v[:9] + strings.Repeat(" ", maxGap-2) + v[9:], kMask},
		{"backspaces at the start", []string{"K", v}, "\b\b\b" + v, "\b\b\b" + kMask},
		{"unfinished control string", []string{"K", v}, "\x1b]0;" + spaced(v, " ", 1), "\x1b]0;" + kMask},
		{"unfinished escape at the end", []string{"K", v}, "a\\u00", "a\\u00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set := setOf(t, tt.values...)
			for _, c := range cuts {
				if got, _ := pass(t, set, tt.in, c.next); got != tt.want {
					t.Errorf("%s: got %q, want %q", c.name, got, tt.want)
				}
			}
			r := NewReader(iotest.OneByteReader(strings.NewReader(tt.in)), set, "test")
			if got, err := io.ReadAll(r); string(got) != tt.want || err != nil {
				t.Errorf("Reader: got %q, %v, want %q", got, err, tt.want)
			}
			if got := Bytes([]byte(tt.in), set); string(got) != tt.want {
				t.Errorf("Bytes: got %q, want %q", got, tt.want)
			}
			if again := Bytes([]byte(tt.want), set); string(again) != tt.want {
				t.Errorf("not idempotent: %q becomes %q", tt.want, again)
			}
		})
	}
}

func TestAdd(t *testing.T) {
	strict, loose := Options{}, Options{AllowWeak: true}
	for _, tt := range []struct {
		name, key, value string
		o                Options
		want             error
	}{
		{"A29 empty", "K", "", strict, ErrEmpty},
		{"empty, weak allowed", "K", "", loose, ErrEmpty},
		{"A29 short", "K", "hunter2", strict, ErrWeak},
		{"short, weak allowed", "K", "hunter2", loose, nil},
		{"A29 one letter", "K", strings.Repeat("x", 40), strict, ErrWeak},
		{"A29 few letters", "K", "aabbaabbaabb", strict, ErrWeak},
		{"A29 word", "K", "password", strict, ErrWeak},
		{"eight different bytes", "K", "a8Kd0x!q", strict, nil},
		{"random", "K", alnumValue, strict, nil},
		{"longest", "K", randomValue(rand.New(rand.NewPCG(1, 1)), MaxValue), strict, nil},
		{"too long", "K", strings.Repeat("ab3de7gh", MaxValue/8) + "x", loose, ErrTooLong},
		{"holds a mask", "K", "abc[sealed:X]defghi", strict, ErrMask},
		{"is in its mask", "TOKEN_FOR_CI", "TOKEN_FOR_CI", strict, ErrMask},
		{"is in an older mask", "K", "OLDER_KEY9", strict, ErrMask},
		{"nearly completed by a mask", "K", "er_KEY9]abc", strict, nil},
		{"nearly completed by an older mask", "K", "OLDER_KEY9]abc", strict, ErrMask},
		{"key with a line break", "K\n", alnumValue, strict, ErrKey},
		{"no key", "", alnumValue, strict, ErrKey},
		{"long key", strings.Repeat("K", 65), alnumValue, strict, ErrKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set := setOf(t, "OLDER_KEY9", "0a9b8c7d6e5f4g3h")
			err := set.Add(tt.key, []byte(tt.value), tt.o)
			if !errors.Is(err, tt.want) {
				t.Fatalf("Add = %v, want %v", err, tt.want)
			}
			if err != nil && tt.value != "" && strings.Contains(err.Error(), tt.value) && tt.value != tt.key {
				t.Errorf("the error shows the value: %v", err)
			}
			if got := string(Bytes([]byte(">"+tt.value+"<"), set)); err == nil && got != ">"+maskOf(tt.key)+"<" {
				t.Errorf("registered, but shown: %.80q", got)
			}
		})
	}
}

// A set takes no more than its indexes can name, and says so.
func TestFull(t *testing.T) {
	set := NewSet()
	r := rand.New(rand.NewPCG(2, 2))
	for i := range maxTotal/MaxValue + 1 {
		err := set.Add("K", []byte(randomValue(r, MaxValue)), Options{})
		if full := i == maxTotal/MaxValue; errors.Is(err, ErrFull) != full || !full && err != nil {
			t.Fatalf("value %d: %v", i, err)
		}
	}
}

func TestAddCopies(t *testing.T) {
	v := []byte(alnumValue)
	set := NewSet()
	if err := set.Add("K", v, Options{}); err != nil {
		t.Fatal(err)
	}
	clear(v)
	if got := string(Bytes([]byte(alnumValue), set)); got != kMask {
		t.Errorf("got %q", got)
	}
}

func TestAddMidStream(t *testing.T) {
	set := setOf(t, "A", "prefix"+alnumValue)
	var b bytes.Buffer
	w := NewWriter(&b, set, "test")
	write := func(s string) {
		t.Helper()
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
	}
	write("prefix" + alnumValue[:20]) // held, because A may follow
	if b.Len() != 0 {
		t.Fatalf("released %q", b.String())
	}
	if err := set.Add("K", []byte(alnumValue[4:16]), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := set.Add("B", []byte("xy"+alnumValue[10:]), Options{}); err != nil {
		t.Fatal(err)
	}
	write("!")
	write(" xy" + alnumValue[10:15])
	write(alnumValue[15:])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if want := "prefix" + alnumValue[:4] + kMask + alnumValue[16:20] + "! [sealed:B]"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestWipe(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	held := set.vals[0].value
	var b bytes.Buffer
	w, r := NewWriter(&b, set, "test"), NewReader(strings.NewReader(alnumValue), set, "test")
	set.Wipe()
	if len(bytes.Trim(held, "\x00")) != 0 {
		t.Error("the value is still there")
	}
	if _, err := io.WriteString(w, alnumValue); !errors.Is(err, ErrWiped) {
		t.Errorf("Write = %v", err)
	}
	if got, err := io.ReadAll(r); !errors.Is(err, ErrWiped) || len(got) > 0 {
		t.Errorf("Read = %q, %v", got, err)
	}
	if err := set.Add("K", []byte(alnumValue), Options{}); !errors.Is(err, ErrWiped) {
		t.Errorf("Add = %v", err)
	}
	if _, err := Scan(strings.NewReader("x"), set); !errors.Is(err, ErrWiped) {
		t.Errorf("Scan = %v", err)
	}
	if got := Bytes([]byte("x"), nil); got != nil || b.Len() != 0 {
		t.Errorf("passed %q, %q", got, b.String())
	}
}

type failing struct {
	n   int // bytes to take first
	err error
}

func (f *failing) Write(p []byte) (int, error) {
	if len(p) <= f.n {
		f.n -= len(p)
		return len(p), nil
	}
	return f.n, f.err
}

func TestFailingDestination(t *testing.T) {
	full := errors.New("disk full")
	for _, want := range []error{full, io.ErrShortWrite} {
		dst := &failing{n: 4, err: full}
		if want != full {
			dst.err = nil
		}
		w := NewWriter(dst, setOf(t, "K", alnumValue), "test")
		if n, err := io.WriteString(w, "!!!!"); n != 4 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		for range 2 {
			if n, err := io.WriteString(w, "????"); n != 0 || !errors.Is(err, want) {
				t.Errorf("Write = %d, %v, want %v", n, err, want)
			}
		}
		dst.n = 1000
		if err := w.Flush(); !errors.Is(err, want) {
			t.Errorf("Flush = %v", err)
		}
		if err := w.Close(); !errors.Is(err, want) {
			t.Errorf("Close = %v", err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
		if _, err := w.Write(nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Write after Close = %v", err)
		}
		if err := w.Flush(); !errors.Is(err, ErrClosed) {
			t.Errorf("Flush after Close = %v", err)
		}
	}
}

func TestReaderPassesErrors(t *testing.T) {
	broken := errors.New("broken")
	src := io.MultiReader(strings.NewReader("x"+alnumValue[:20]), iotest.ErrReader(broken))
	got, err := io.ReadAll(NewReader(src, setOf(t, "K", alnumValue), "test"))
	if string(got) != "x"+kMask || !errors.Is(err, broken) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestFlush(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b, setOf(t, "K", alnumValue), "test")
	for _, step := range []struct{ write, want string }{
		{"name: ", "name: "},
		{alnumValue[:9], "name: "}, // A23: alive, however often flushed
		{"", "name: "},
		{alnumValue[9:], "name: " + kMask},
		{alnumValue[:6] + "v!", "name: " + kMask + alnumValue[:6] + "v!"},       // dead
		{"177%", "name: " + kMask + alnumValue[:6] + "v!177%"},                  // may begin an escape
		{alnumValue, "name: " + kMask + alnumValue[:6] + "v!177%" + kMask},      //
		{"#v\\", "name: " + kMask + alnumValue[:6] + "v!177%" + kMask + "#v\\"}, // goes on as an escape:
		{"x67" + alnumValue[1:], "name: " + kMask + alnumValue[:6] + "v!177%" + kMask + "#v\\" + kMask},
	} {
		if _, err := io.WriteString(w, step.write); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if b.String() != step.want {
			t.Errorf("after %q: got %q, want %q", step.write, b.String(), step.want)
		}
	}
}

func TestCounts(t *testing.T) {
	set := setOf(t, "K", alnumValue, "B", "zzzz9999yyyy")
	in := alnumValue + " " + alnumValue + " " + spaced(alnumValue, "-", 1) + " zzzz9999yyyy " + fmt.Sprintf("%x", alnumValue) + " " + alnumValue[:20]
	want := []Count{{"B", "raw", "test", 1}, {"K", "folded-raw", "test", 1}, {"K", "hex", "test", 1}, {"K", "partial", "test", 1}, {"K", "raw", "test", 2}}
	for _, c := range cuts {
		_, got := pass(t, set, in, c.next)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
	}
}

func TestScan(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	var z bytes.Buffer
	zw := zlib.NewWriter(&z)
	fmt.Fprintf(zw, "blob 99\x00%s\n%s", strings.Repeat("filler ", 30000), alnumValue)
	zw.Close()
	inflated := []Count{{"K", formRaw, "inflated", 1}}
	for _, tt := range []struct {
		name, in string
		want     []Count
	}{
		{"clean", "nothing here", nil},
		{"raw", "x " + alnumValue, []Count{{"K", formRaw, "content", 1}}},
		{"git object", z.String(), inflated},
		{"git object and a tail", z.String() + alnumValue, []Count{{"K", formRaw, "content", 1}, inflated[0]}},
		{"damaged object", z.String()[:z.Len()-2], inflated},
		{"like zlib, but not", "x\x9c" + alnumValue, []Count{{"K", formRaw, "content", 1}}},
		{"empty", "", nil},
		{"one byte", "x", nil},
	} {
		got, err := Scan(strings.NewReader(tt.in), set)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", tt.name, err, diff)
		}
	}
	broken := errors.New("broken")
	if _, err := Scan(iotest.ErrReader(broken), set); !errors.Is(err, broken) {
		t.Errorf("Scan = %v", err)
	}
}

// TestBuffers puts a value across every boundary of the pieces in which a stream is read (A24).
func TestBuffers(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	for _, wire := range []string{alnumValue, spaced(alnumValue, "\n", 1), spaced(fmt.Sprintf("%x", alnumValue), ":", 2)} {
		for _, edge := range []int{batch, piece / 2, piece, 2 * piece} {
			for shift := 0; shift <= len(wire); shift += 3 {
				pre := strings.Repeat("-+-A", edge/4)[:edge-shift]
				if got := string(Bytes([]byte(pre+wire+"\n"), set)); got != pre+kMask+"\n" {
					t.Fatalf("edge %d, shift %d: got …%q", edge, shift, got[max(0, len(got)-80):])
				}
			}
		}
	}
}

// endless reads unit again and again, n bytes in all.
type endless struct {
	unit  string
	n, at int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.n == 0 {
		return 0, io.EOF
	}
	p = p[:min(len(p), e.n)]
	for i := range p {
		p[i] = e.unit[e.at]
		e.at = (e.at + 1) % len(e.unit)
	}
	e.n -= len(p)
	return len(p), nil
}

// TestMemory sends 1 GiB without a line break (A24), and streams made to be held back, and looks at the heap.
func TestMemory(t *testing.T) {
	const bound = 8 << 20
	scale := 1
	if testing.Short() {
		scale = 16
	}
	period := "ab7"
	periodic := strings.Repeat(period, 20)
	set := setOf(t, "K", alnumValue, "P", periodic, "Q", periodic[:30]+"!", "PEM", pemValue)
	for _, tt := range []struct {
		name, unit string
		n          int
	}{
		{"no line break", "words in 1 line, 0123456789abcdef ", 1 << 30},
		{"periodic, all matches", period, 64 << 20},
		{"periodic, near misses", periodic[:58], 64 << 20},
		{"a prefix, then nothing but space", " ", 64 << 20},
		{"backspaces", "ghp_9fK\b\b", 32 << 20},
		{"unfinished escapes", `\`, 64 << 20},
		{"unfinished percent", "%25", 32 << 20},
		{"unfinished control strings", "\x1b]", 16 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var first, last bytes.Buffer
			w := NewWriter(io.MultiWriter(&limited{&first, 1 << 10}, &limited{&last, 0}), set, "test")
			if _, err := io.WriteString(w, "gh"); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			if _, err := io.Copy(w, &endless{unit: tt.unit, n: tt.n / scale}); err != nil {
				t.Fatal(err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > bound {
				t.Errorf("holds %d bytes", grown)
			}
			if _, err := io.WriteString(w, alnumValue); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			found := false
			for _, c := range w.Counts() {
				found = found || c.Key == "K"
			}
			if !found {
				t.Error("the value at the end is not masked")
			}
		})
	}
}

// limited keeps the first n bytes and forgets the rest.
type limited struct {
	b *bytes.Buffer
	n int
}

func (l *limited) Write(p []byte) (int, error) {
	k := min(l.n, len(p))
	l.b.Write(p[:k])
	l.n -= k
	return len(p), nil
}

// TestBenign is the gate for false masks (A34): text full of hashes, ids and base64 must pass unchanged, also with values that begin like words.
func TestBenign(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	set := randomSet(t, r, 300)
	for i, v := range []string{pemValue, symbolValue, binaryValue, "correct horse battery staple", "AKIAIOSFODNN7EXAMPLE", "1234567890123456", "!!!!%%%%####password", "a1b2c3d4"} {
		if err := set.Add(fmt.Sprintf("MORE_%d", i), []byte(v), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	for i := range 60000 {
		u := make([]byte, 16)
		for j := range u {
			u[j] = byte(r.Uint32())
		}
		fmt.Fprintf(&b, "%x-%x-%x-%x-%x %x package-%d v1.%d.0 h1:%s= sha512-%s==\n", u[:4], u[4:6], u[6:8], u[8:10], u[10:], sha1.Sum(u), i, i,
			base64At(u, 0, stdAlphabet), base64At(append(u, u...), 0, stdAlphabet))
	}
	b.WriteString("the password is long, a horse has a battery; -----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n123456789012\n")
	b.Write(cleanText(r, 1<<20))
	if got := Bytes(b.Bytes(), set); !bytes.Equal(got, b.Bytes()) {
		i := bytes.Index(got, []byte(maskOpen))
		t.Errorf("masked: …%q", got[max(0, i-100):min(len(got), i+100)])
	}
	b.WriteString(spaced("correct horse battery staple", "\n", 1))
	if got := Bytes(b.Bytes(), set); bytes.Equal(got, b.Bytes()) {
		t.Error("a value in the same text is not masked, so the test proves nothing")
	}
}
