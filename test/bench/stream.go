package bench

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"sealed.dev/sealed/internal/redact"
)

// WriteSize is the size of a write to a Redaction, in bytes: that of a full
// pipe read.
const WriteSize = 32 << 10

// A Redaction is a text without values, cut into writes, and three ways to
// send it on.
type Redaction struct {
	text   []byte
	values [][]byte
	writer *redact.Writer
	copy   []byte
	at     int
}

// NewRedaction makes n values of 20 to 64 characters and arms a redactor with
// all their forms, or with those of the exact view only. The text is that of a
// build log.
func NewRedaction(n int, exactOnly bool) (*Redaction, error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	// More than the caches hold, as a stream is.
	r := &Redaction{text: bytes.Repeat(buildLog(rnd, 4<<20), 16), copy: make([]byte, WriteSize)}
	set := redact.NewSet()
	for i := range n {
		v := randomValue(rnd, 20+rnd.IntN(45))
		r.values = append(r.values, v)
		if err := set.Add(fmt.Sprintf("KEY_%d", i), v, redact.Options{ExactOnly: exactOnly}); err != nil {
			return nil, err
		}
	}
	r.writer = redact.NewWriter(io.Discard, set, "bench")
	return r, r.Redact() // builds the index
}

// next returns the next WriteSize bytes.
func (r *Redaction) next() []byte {
	if r.at+WriteSize > len(r.text) {
		r.at = 0
	}
	r.at += WriteSize
	return r.text[r.at-WriteSize : r.at]
}

// Redact sends one write through the redactor.
func (r *Redaction) Redact() error {
	_, err := r.writer.Write(r.next())
	return err
}

// Copy copies one write: the least that any filter does.
func (r *Redaction) Copy() { copy(r.copy, r.next()) }

// Replace is the obvious filter: bytes.ReplaceAll for each value, in its raw
// form only, and blind to a value that is cut by a write.
func (r *Redaction) Replace() {
	p := r.next()
	for _, v := range r.values {
		p = bytes.ReplaceAll(p, v, []byte("***"))
	}
	copy(r.copy, p)
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

func randomValue(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[rnd.IntN(len(letters))]
	}
	return b
}

// buildLog has words, paths, hashes, base64 and colors.
func buildLog(rnd *rand.Rand, n int) []byte {
	words := strings.Fields("compiling package internal test ok warning error note file line func return main build cache module INFO DEBUG started finished in")
	word := func() string { return words[rnd.IntN(len(words))] }
	var b bytes.Buffer
	for b.Len() < n {
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
	return b.Bytes()
}
