package redact

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// released sends text byte by byte and returns how much has come out after each byte, before the end.
func released(t testing.TB, w *Writer, out *bytes.Buffer, text string) []int {
	t.Helper()
	var n []int
	for i := range len(text) {
		if _, err := w.Write([]byte{text[i]}); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		n = append(n, out.Len())
	}
	return n
}

// probes are texts of one length that hold no value: without, and with beginnings of its forms, at the end too.
func probes(value string) map[string]string {
	const length = 600
	fill := func(s string) string { return s + strings.Repeat(".", length-len(s)) }
	end := func(s string) string { return strings.Repeat("lorem ipsum ", length)[:length-len(s)] + s }
	out := map[string]string{"none": fill(""), "prose": end("")}
	for i, p := range formsOf([]byte(value)) {
		for _, n := range []int{len(p.text) / 2, len(p.text) - 2} {
			name := p.form + "/" + string(rune('a'+i%26)) + "/" + string(rune('0'+n%10))
			out[name], out[name+"/end"] = fill("= "+string(p.text[:n])+"\x01~"), end("= "+string(p.text[:n]))
		}
	}
	out["spaced"] = fill(spaced(value[:len(value)-1], " ", 1))
	out["escape"], out["escape/end"] = fill("\x1b[31m\\u00"), end("\x1b]0;title\\u00")
	return out
}

// What a steady Writer has let out after each byte depends on the number of bytes alone (R22), and that is not so for an ordinary one.
func TestSteadyReleaseTellsNothing(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	differ := func(make func(*bytes.Buffer) *Writer) (names []string) {
		var want []int
		all := probes(alnumValue)
		for _, name := range append([]string{"none"}, slices.Sorted(mapsKeys(all))...) {
			var out bytes.Buffer
			w := make(&out)
			got := released(t, w, &out, all[name])
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = got
			}
			if !slices.Equal(got, want) {
				names = append(names, name)
			}
			if w.s.steady && out.String() != all[name] {
				t.Errorf("%s was changed: %q", name, out.String())
			}
		}
		return names
	}
	if names := differ(func(b *bytes.Buffer) *Writer { return NewSteadyWriter(b, set, "test") }); names != nil {
		t.Errorf("a steady Writer tells apart %q", names)
	}
	t.Run("control off", func(t *testing.T) {
		if names := differ(func(b *bytes.Buffer) *Writer { return NewWriter(b, set, "test") }); len(names) < 10 {
			t.Errorf("an ordinary Writer tells apart only %q", names)
		}
	})
}

func mapsKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// The number of bytes held back is the one that is documented.
func TestSteadyHoldsBackOneLessThanTheLongestForm(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	n, err := set.compiled()
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for _, p := range formsOf([]byte(alnumValue)) {
		longest = max(longest, p.spread())
	}
	if got := int(n.lag()); got != longest-1 || got > 6*len(alnumValue) {
		t.Errorf("holds back %d, the longest form has %d", got, longest)
	}
	var out bytes.Buffer
	w := NewSteadyWriter(&out, set, "test")
	if _, err := w.Write(make([]byte, 5000)); err != nil || out.Len() != 5000-longest+1 {
		t.Errorf("%d of 5000 bytes are out: %v", out.Len(), err)
	}
	if err := w.EndRecord(); err != nil || out.Len() != 5000 {
		t.Errorf("after the record %d of 5000 bytes are out: %v", out.Len(), err)
	}
	t.Run("empty set", func(t *testing.T) {
		var out bytes.Buffer
		if _, err := NewSteadyWriter(&out, NewSet(), "test").Write([]byte("x")); err != nil || out.String() != "x" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
	t.Run("a value comes later", func(t *testing.T) {
		set, out := NewSet(), bytes.Buffer{}
		w := NewSteadyWriter(&out, set, "test")
		if err := set.Add("K", []byte(alnumValue), Options{}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("a " + alnumValue + " b")); err != nil || out.Len() != 0 {
			t.Errorf("%q, %v", out.String(), err)
		}
		if err := w.Close(); err != nil || out.String() != "a [sealed:K] b" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
}

// Every attack that an ordinary Writer catches is caught, byte by byte, if it is not spread wider than what is held back.
func TestSteadyCatchesTheSame(t *testing.T) {
	tried := 0
	for _, a := range attacks() {
		set := setOf(t, "K", a.value)
		n, err := set.compiled()
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(a.wire)) > n.lag() {
			continue
		}
		tried++
		in := "pre " + a.wire + " post "
		want, _ := pass(t, set, in, func(left int) int { return left })
		var out bytes.Buffer
		w := NewSteadyWriter(&out, set, "test")
		released(t, w, &out, in)
		if err := w.Close(); err != nil || out.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, out.String(), err, want)
		}
	}
	if tried < 30 {
		t.Errorf("only %d attacks were tried", tried)
	}
}

// A beginning of a value at the end is not masked: whether it is would tell a right guess from a wrong one. An ordinary Writer masks it.
func TestSteadyEndTellsNothing(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	guess := "error: no model " + alnumValue[:20]
	for name, tt := range map[string]struct {
		make func(*bytes.Buffer) *Writer
		want string
	}{
		"steady":      {func(b *bytes.Buffer) *Writer { return NewSteadyWriter(b, set, "test") }, guess + `"}`},
		"control off": {func(b *bytes.Buffer) *Writer { return NewWriter(b, set, "test") }, `error: no model ghp[sealed:K]"}`},
	} {
		var out bytes.Buffer
		w := tt.make(&out)
		released(t, w, &out, guess+`"}`)
		if err := w.Close(); err != nil || out.String() != tt.want {
			t.Errorf("%s: %q, %v", name, out.String(), err)
		}
	}
}

// A value over the end of a record does not come out whole.
func TestSteadyRecord(t *testing.T) {
	set := setOf(t, "K", alnumValue)
	var out bytes.Buffer
	w := NewSteadyWriter(&out, set, "test")
	for _, record := range []string{"data: " + alnumValue + "\n\n", alnumValue[:12], alnumValue[12:] + "\n\n"} {
		if _, err := w.Write([]byte(record)); err != nil {
			t.Fatal(err)
		}
		if err := w.EndRecord(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := out.String(), "data: [sealed:K]\n\n"+alnumValue[:12]+"[sealed:K]\n\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.EndRecord(); err != ErrClosed {
		t.Errorf("EndRecord after Close: %v", err)
	}
}

// Of a value over many records, each written in pieces, what has not gone when it is complete is masked.
func TestSteadyRecords(t *testing.T) {
	for _, value := range []string{alnumValue, symbolValue} {
		var out bytes.Buffer
		w := NewSteadyWriter(&out, setOf(t, "K", value), "test")
		for i, cut := range []int{3, 5, 9, 14, len(value)} {
			from := []int{0, 3, 5, 9, 14}[i]
			for _, c := range []byte(value[from:cut]) {
				if _, err := w.Write([]byte{c}); err != nil {
					t.Fatal(err)
				}
			}
			if i < 4 {
				if err := w.EndRecord(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil || out.String() != value[:14]+"[sealed:K]" {
			t.Errorf("%q: %v", out.String(), err)
		}
	}
}

// Text without a whole value comes out unchanged, each byte exactly when as many more have been written as are held back.
func FuzzSteady(f *testing.F) {
	set := fuzzSet(f)
	n, err := set.compiled()
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range formsOf([]byte(alnumValue)) {
		f.Add(p.text[:len(p.text)-2])
	}
	f.Add([]byte("\b\b\x1b[\x1b]\\\\u%25%&amp;#x;0x\xef\xbc"))
	f.Fuzz(func(t *testing.T, text []byte) {
		text = text[:min(len(text), 4096)]
		if !bytes.Equal(Bytes(append(bytes.Clone(text), " end"...), set), append(bytes.Clone(text), " end"...)) {
			return // it holds a value
		}
		var out bytes.Buffer
		w := NewSteadyWriter(&out, set, "fuzz")
		for i, got := range released(t, w, &out, string(text)) {
			if want := max(i+1-int(n.lag()), 0); got != want {
				t.Fatalf("%d bytes are out after %d, want %d", got, i+1, want)
			}
		}
		if err := w.Close(); err != nil || !bytes.Equal(out.Bytes(), text) {
			t.Fatalf("%q, %v", out.Bytes(), err)
		}
	})
}
