package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/redact"
)

func newRedactBenchCmd(a *app) *cobra.Command {
	var size int
	cmd := &cobra.Command{
		Use: "bench", Short: "Show what the redactor catches, and how fast it is here", Args: cobra.NoArgs,
		Long: `Bench makes random values, prints them in the ways in which values leak, and says
for each whether the redactor caught it. Then it measures the speed on a log
without values, beside a copy of the same bytes. Everything is made up; nothing
is read and nothing is sent.

  sealedctl redact bench
  sealedctl redact bench -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if size < 1 || size > 4096 {
				return usagef("--mib wants 1 to 4096")
			}
			r, err := redactBench(size << 20)
			if err != nil {
				return err
			}
			err = a.print(r, r.table)
			if err == nil && r.Leaks > 0 {
				return fmt.Errorf("%d of %d ways to leak were not caught", r.Leaks, len(r.Shapes))
			}
			return err
		},
	}
	cmd.Flags().IntVar(&size, "mib", 64, "size of the log to measure with, in MiB")
	return cmd
}

type redactReport struct {
	Leaks  int          `json:"leaks"`
	Shapes []leakShape  `json:"shapes"`
	Speeds []leakTiming `json:"speeds"`
}

type leakShape struct {
	Shape  string `json:"shape"`
	Caught bool   `json:"caught"`
}

type leakTiming struct {
	What   string  `json:"what"`
	MBps   float64 `json:"mb_per_s"`
	Memcpy float64 `json:"ratio_to_memcpy"`
}

func (r *redactReport) table(w io.Writer) {
	row(w, "WAY TO LEAK", "CAUGHT")
	for _, s := range r.Shapes {
		row(w, s.Shape, map[bool]string{true: "yes", false: "NO"}[s.Caught])
	}
	row(w)
	row(w, "SPEED", "MB/S", "RATIO TO MEMCPY")
	for _, s := range r.Speeds {
		row(w, s.What, strconv.FormatFloat(s.MBps, 'f', 0, 64), strconv.FormatFloat(s.Memcpy, 'f', 3, 64))
	}
}

func redactBench(size int) (*redactReport, error) {
	r := &redactReport{}
	if err := r.leaks(); err != nil {
		return nil, err
	}
	return r, r.speeds(size)
}

// randomSecret returns n letters, digits and some punctuation.
func randomSecret(n int, alphabet string) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i, c := range b {
		b[i] = alphabet[int(c)%len(alphabet)]
	}
	return string(b)
}

const (
	secretLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	secretSymbols = secretLetters + `"/%&<>'$+=`
)

// leaks sends a value in every shape through a Writer, byte by byte where the shape says so, and looks for what is left of it.
func (r *redactReport) leaks() error {
	v, symbols := "tok_"+randomSecret(36, secretLetters), "p"+randomSecret(30, secretSymbols)+"q"
	period := strings.Repeat(randomSecret(2, secretLetters), 2) + randomSecret(24, secretLetters)
	lines := randomSecret(48, secretLetters) + "\n" + randomSecret(48, secretLetters) + "\n" + randomSecret(20, secretLetters)
	set := redact.NewSet()
	for key, value := range map[string]string{"TOKEN": v, "PASSWORD": symbols, "PERIOD": period, "LINES": lines} {
		if err := set.Add(key, []byte(value), redact.Options{}); err != nil {
			return err
		}
	}
	quoted, _ := json.Marshal(symbols)
	reversed := []byte(v)
	for i := range len(v) / 2 {
		reversed[i], reversed[len(v)-1-i] = reversed[len(v)-1-i], reversed[i]
	}
	spread := func(s, sep string, n int) string {
		var b strings.Builder
		for i := 0; i < len(s); i += n {
			b.WriteString(s[i:min(len(s), i+n)] + sep)
		}
		return b.String()
	}
	b64 := base64.StdEncoding.EncodeToString
	for _, s := range []struct {
		shape string
		write int // bytes in a write; 0 means all
		wires []string
	}{
		{"as it is", 0, []string{v, symbols, lines}},
		{"cut by two writes", 20, []string{v, symbols}},
		{"byte by byte", 1, []string{v, symbols}},
		{"overlapping itself, cut", 3, []string{period[:4] + period}},
		{"base64, three alignments", 0, []string{b64([]byte(v)), b64([]byte("x" + v)), b64([]byte("xy" + v))}},
		{"base64url", 0, []string{base64.RawURLEncoding.EncodeToString([]byte(symbols + "??>"))}},
		{"hex", 0, []string{hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))}},
		{"URL", 0, []string{url.QueryEscape(symbols), url.PathEscape(symbols)}},
		{"JSON", 0, []string{string(quoted)}},
		{"Go %q", 0, []string{strconv.Quote(symbols)}},
		{"line breaks as spaces or CRLF", 0, []string{strings.ReplaceAll(lines, "\n", " "), strings.ReplaceAll(lines, "\n", "\r\n")}},
		{"colors inside", 0, []string{spread(v, "\x1b[31m", 1), spread(v, "\x1b[0m", 9)}},
		{"line breaks inside", 0, []string{spread(v, "\n", 1), spread(v, "\n", 20)}},
		{"base64 wrapped at 76", 0, []string{spread(b64([]byte(strings.Repeat("-", 50)+v)), "\n", 76)}},
		{"reversed", 0, []string{string(reversed)}},
		{"zero-width characters inside", 0, []string{spread(v, "\u200b", 1), spread(v, "\u2060", 7)}},
	} {
		caught := true
		for _, wire := range s.wires {
			ok, err := catches(set, wire, s.write)
			if err != nil {
				return err
			}
			caught = caught && ok
		}
		if !caught {
			r.Leaks++
		}
		r.Shapes = append(r.Shapes, leakShape{s.shape, caught})
	}
	return nil
}

// catches reports whether a mask comes out and no 12 bytes of the wire do that are not public.
func catches(set *redact.Set, wire string, write int) (bool, error) {
	var out bytes.Buffer
	w := redact.NewWriter(&out, set, "bench")
	for rest := "log: " + wire + "\nend\n"; rest != ""; {
		n := len(rest)
		if write > 0 {
			n = min(n, write)
		}
		if _, err := io.WriteString(w, rest[:n]); err != nil {
			return false, err
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		return false, err
	}
	for i := 0; i+12 <= len(wire); i++ {
		if p := wire[i : i+12]; strings.Contains(out.String(), p) && !strings.HasPrefix(p, "LS0tLS0t") && !strings.HasPrefix(p, "0tLS0tLS") && !strings.HasPrefix(p, "tLS0tLS0") && !strings.HasPrefix(p, "S0tLS0tL") {
			return false, nil
		}
	}
	return strings.Contains(out.String(), "[sealed:"), nil
}

// speeds measures writes of 32 KiB.
func (r *redactReport) speeds(size int) error {
	const write = 32 << 10
	var text bytes.Buffer
	for i := 0; text.Len() < size; i++ {
		_, _ = fmt.Fprintf(&text, "2026-01-02T03:04:05.%06dZ INFO worker[%d] compiled package %s in %d ms, cache %x\n", i%1000000, i%97, randomSecret(12, "abcdefghijklm/"), i%1000, i*2654435761)
	}
	copied := make([]byte, write)
	measure := func(step func(p []byte) error) (float64, error) {
		best := time.Duration(1 << 62)
		for range 3 { // the best of three, as other programs run too
			start := time.Now()
			for p := text.Bytes(); len(p) > 0; {
				n := min(len(p), write)
				if err := step(p[:n]); err != nil {
					return 0, err
				}
				p = p[n:]
			}
			best = min(best, time.Since(start))
		}
		return float64(text.Len()) / 1e6 / best.Seconds(), nil
	}
	memcpy, err := measure(func(p []byte) error { copy(copied, p); return nil })
	if err != nil {
		return err
	}
	r.Speeds = append(r.Speeds, leakTiming{"memcpy", memcpy, 1})
	for _, n := range []int{10, 100, 1000} {
		set := redact.NewSet()
		for i := range n {
			if err := set.Add("KEY_"+strconv.Itoa(i), []byte(randomSecret(20+i%45, secretLetters)), redact.Options{}); err != nil {
				return err
			}
		}
		w := redact.NewWriter(io.Discard, set, "bench")
		if _, err := w.Write(nil); err != nil {
			return err
		}
		speed, err := measure(func(p []byte) error { _, err := w.Write(p); return err })
		if err != nil {
			return err
		}
		r.Speeds = append(r.Speeds, leakTiming{fmt.Sprintf("redact, %d values, all forms", n), speed, speed / memcpy})
		set.Wipe()
	}
	return nil
}
