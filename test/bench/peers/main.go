// Command peers measures the redactor beside other ways to find many values in a stream, on the same machine, in the same run and in turns.
//
// It is a module of its own, so that the libraries it compares with are no dependencies of Sealed. The figures of a row are the best of many slices of
// processor time: other programs make some slices slow and none fast. Nothing passes or fails.
//
//	go run . [-mib 32] [-rounds 5] [-values 10,100,1000]
//	go run -tags vectorscan .    with Vectorscan too, where it and its headers are installed (Debian's libvectorscan-dev)
//
// The peers are favored: they look for the raw values and the encodings of the exact view that performance papers use (base64 in three alignments, both
// alphabets, hex in both cases), report or replace matches inside one write only, and lose what is cut by two. Only Vectorscan
// sees a stream.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	bobu "github.com/BobuSumisu/aho-corasick"
	cloudflare "github.com/cloudflare/ahocorasick"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/redact"
)

const (
	write = 32 << 10
	slice = 16 // writes that are measured at once
)

func main() {
	mib := flag.Int("mib", 32, "size of each text in MiB")
	rounds := flag.Int("rounds", 5, "times that each peer sees 4 MiB of each text")
	values := flag.String("values", "10,100,1000", "numbers of values")
	flag.Parse()
	if err := run(*mib<<20, *rounds, strings.Split(*values, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

// A peer handles one write.
type peer struct {
	name string
	step func(p []byte) error
}

func run(size, rounds int, counts []string) error {
	runtime.LockOSThread()
	rnd := rand.New(rand.NewPCG(1, 2))
	clean := cleanLog(rnd, size)
	t := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "values\ttext\tpeer\tMB/s\tof memcpy\tof its clean")
	for _, c := range counts {
		n, err := strconv.Atoi(c)
		if err != nil || n < 1 {
			return fmt.Errorf("reading -values: %q is no number", c)
		}
		secrets := makeValues(rnd, n)
		peers, err := makePeers(secrets)
		if err != nil {
			return err
		}
		own := map[string]float64{}
		for _, text := range []struct {
			name string
			text []byte
		}{{"clean", clean}, {"hits", withHits(rnd, clean, secrets)}, {"near misses", nearMisses(rnd, size/4, secrets)}} {
			best := measure(peers, text.text, rounds)
			for _, p := range peers {
				if text.name == "clean" {
					own[p.name] = best[p.name]
				}
				fmt.Fprintf(t, "%d\t%s\t%s\t%.0f\t%.4f\t%.2f\n", n, text.name, p.name, best[p.name], best[p.name]/best["memcpy"], best[p.name]/own[p.name])
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// measure lets every peer see parts of text in turns, and returns the best speed of each in MB/s.
func measure(peers []peer, text []byte, rounds int) map[string]float64 {
	best := map[string]float64{}
	for round := range rounds {
		for _, p := range peers {
			begin, deadline := round*(4<<20)%len(text), time.Now().Add(time.Second)
			for at := begin; at+slice*write <= len(text) && at < begin+4<<20 && time.Now().Before(deadline); at += slice * write {
				start := cpuTime()
				for i := range slice {
					if err := p.step(text[at+i*write : at+(i+1)*write]); err != nil {
						best[p.name] = 0
					}
				}
				best[p.name] = max(best[p.name], slice*write/1e6/(cpuTime()-start).Seconds())
			}
		}
	}
	return best
}

// cpuTime is the processor time of this thread.
func cpuTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

func makePeers(values [][]byte) ([]peer, error) {
	copied := make([]byte, write)
	peers := []peer{{"memcpy", func(p []byte) error { copy(copied, p); return nil }}}
	for name, o := range map[string]redact.Options{"sealed, exact view": {ExactOnly: true}, "sealed, both views": {}} {
		set := redact.NewSet()
		for i, v := range values {
			if err := set.Add("KEY_"+strconv.Itoa(i), v, o); err != nil {
				return nil, err
			}
		}
		w := redact.NewWriter(io.Discard, set, name)
		if _, err := w.Write(nil); err != nil {
			return nil, err
		}
		peers = append(peers, peer{name, func(p []byte) error { _, err := w.Write(p); return err }})
	}
	forms := encodings(values)
	var pairs, texts []string
	for _, f := range forms {
		pairs, texts = append(pairs, string(f), "***"), append(texts, string(f))
	}
	replacer := strings.NewReplacer(pairs...)
	trie := bobu.NewTrieBuilder().AddStrings(texts).Build()
	peers = append(peers,
		peer{"strings.Replacer", func(p []byte) error { _, err := replacer.WriteString(io.Discard, string(p)); return err }},
		peer{"BobuSumisu/aho-corasick (finds only)", func(p []byte) error { _ = trie.Match(p); return nil }},
	)
	if v, err := vectorscan(texts); err != nil {
		return nil, err
	} else if v != nil {
		peers = append(peers, *v)
	}
	if len(values) <= 100 { // 1.6 GB at 1,000 values
		matcher := cloudflare.NewStringMatcher(texts)
		peers = append(peers, peer{"cloudflare/ahocorasick (tells which, not where)", func(p []byte) error { _ = matcher.Match(p); return nil }})
	}
	peers = append(peers, peer{"bytes.ReplaceAll for each", func(p []byte) error {
		for _, f := range forms {
			p = bytes.ReplaceAll(p, f, []byte("***"))
		}
		return nil
	}})
	return peers, nil
}

// encodings returns values as they are, in hex in both cases, and in base64.
func encodings(values [][]byte) [][]byte {
	seen := map[string]bool{}
	var out [][]byte
	add := func(p []byte) {
		if !seen[string(p)] {
			seen[string(p)], out = true, append(out, p)
		}
	}
	for _, v := range values {
		add(v)
		h := hex.AppendEncode(nil, v)
		add(h)
		add(bytes.ToUpper(h))
		for shift := range 3 {
			for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				t := enc.AppendEncode(nil, append(make([]byte, shift), v...))
				add(t[(shift*8+5)/6 : (shift+len(v))*8/6])
			}
		}
	}
	return out
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// makeValues makes n values of 20 to 64 characters.
func makeValues(rnd *rand.Rand, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, 20+rnd.IntN(45))
		for k := range out[i] {
			out[i][k] = letters[rnd.IntN(len(letters))]
		}
	}
	return out
}

// cleanLog is the log of a build and of an agent: words, paths, hashes, base64, colors.
func cleanLog(rnd *rand.Rand, size int) []byte {
	words := strings.Fields("compiling package internal test ok warning error note file line func return main build cache module INFO DEBUG started finished in")
	word := func() string { return words[rnd.IntN(len(words))] }
	var b bytes.Buffer
	for b.Len() < size {
		switch rnd.IntN(12) {
		case 0:
			fmt.Fprintf(&b, "%016x%016x ", rnd.Uint64(), rnd.Uint64())
		case 1:
			fmt.Fprintf(&b, "\x1b[3%dm%s\x1b[0m ", rnd.IntN(8), word())
		case 2:
			fmt.Fprintf(&b, "h1:%s= ", base64.RawStdEncoding.EncodeToString(fmt.Appendf(nil, "%d%d", rnd.Uint64(), rnd.Uint64())))
		case 3:
			fmt.Fprintf(&b, "/usr/lib/go/src/%s/%s.go:%d:%d\n", word(), word(), rnd.IntN(999), rnd.IntN(99))
		default:
			b.WriteString(word())
			b.WriteByte(" \n"[rnd.IntN(8)/7])
		}
	}
	return b.Bytes()[:size]
}

// withHits has a value each 4 KiB.
func withHits(rnd *rand.Rand, clean []byte, values [][]byte) []byte {
	out := bytes.Clone(clean)
	for i := 2000; i+4096 < len(out); i += 4096 {
		copy(out[i:], values[rnd.IntN(len(values))])
	}
	return out
}

// nearMisses is half or more of a value and then something else, again and again.
func nearMisses(rnd *rand.Rand, size int, values [][]byte) []byte {
	var b bytes.Buffer
	for b.Len() < size {
		v := values[rnd.IntN(len(values))]
		b.Write(v[:len(v)/2+rnd.IntN(len(v)/2)])
		b.WriteString("!\n")
		b.WriteString("a line of text between, as there would be\n"[:rnd.IntN(40)])
	}
	return b.Bytes()[:size]
}
