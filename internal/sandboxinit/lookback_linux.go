package sandboxinit

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
)

// The second look: before the record is signed, what the redactor let out is
// searched again, by code that shares nothing with it and decodes more. What it
// finds was shown already, but is not stored: the host masks it in the
// transcript, and the miss is an entry of the log and a member of the record.
//
// Bounds, so that an agent that prints much costs neither memory nor time. What
// lies beyond them was redacted once, and the record has a warning that says so.
const (
	keepLimit   = 16 << 20 // bytes of a stream
	lookTime    = 2 * time.Second
	lookWindow  = 64 << 10  // bytes that are looked at together: an encoded text that is longer is not decoded
	lookOverlap = 16 << 10  // of two windows: no form of a value is longer than about 6 KiB
	lookBudget  = 256 << 10 // bytes that are decoded of the text between two masks
)

// A spool keeps what left a stream. It is in memory that has no path and that
// no process can open but init, which is undumpable: the agent could take its
// traces away otherwise. It is none of init's address space. A spool is used
// under the lock of its stream's writer, and read when that is closed.
type spool struct {
	file *os.File // nil: nothing is kept
	size int64
	cut  bool // there was more
	// detect is looked for, too, by choice of the mount's configuration.
	detect []redact.Detector
}

func newSpool() *spool {
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
	if err != nil {
		return &spool{cut: true}
	}
	return &spool{file: os.NewFile(uintptr(fd), "output")}
}

// Write never fails: the stream goes on, the record has the warning.
func (k *spool) Write(p []byte) (int, error) {
	n := int(min(int64(len(p)), keepLimit-k.size))
	if k.cut || k.file == nil {
		n = 0
	}
	if n > 0 {
		m, err := k.file.WriteAt(p[:n], k.size)
		k.size += int64(m)
		k.cut = err != nil
	}
	k.cut = k.cut || n < len(p)
	return len(p), nil
}

// A miss is a place of a stream where the second look found values, and which.
type miss struct {
	start, end int64
	found      []redact.Count // N is not used
}

// A look redacts a text as a whole. Tests replace it.
type look func(p []byte) ([]byte, redact.Report, error)

func lookWith(set *redact.Set, stream string) look {
	deep := redact.Deep{Budget: lookBudget}
	return func(p []byte) ([]byte, redact.Report, error) { return deep.Redact(p, set, stream) }
}

var maskText = regexp.MustCompile(`\[sealed:[A-Za-z0-9_.-]{1,64}\]`)

// again looks at all that was kept, until the deadline. It returns what it found, in
// order and without overlap, and whether it has seen everything.
func (k *spool) again(look look, deadline time.Time) (misses []miss, whole bool, err error) {
	whole = !k.cut
	buf := make([]byte, lookWindow)
	for at := int64(0); at < k.size; at += lookWindow - lookOverlap {
		if !time.Now().Before(deadline) {
			return misses, false, nil
		}
		n, err := k.file.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return misses, false, fmt.Errorf("reading kept output: %w", err)
		}
		found, complete, err := window(buf[:n], at, look, k.detect)
		if err != nil {
			return misses, false, err
		}
		whole = whole && complete
		for _, m := range found {
			misses = merge(misses, m)
		}
		if at+int64(n) >= k.size {
			break
		}
	}
	return misses, whole, nil
}

// window looks at the texts between masks, so that no mask completes a value.
func window(p []byte, at int64, look look, detect []redact.Detector) (found []miss, complete bool, err error) {
	complete = true
	edges := append(maskText.FindAllIndex(p, -1), []int{len(p), len(p)})
	start := 0
	for _, mask := range edges {
		part := p[start:mask[0]]
		now, report, err := look(part)
		if err != nil {
			return nil, false, fmt.Errorf("looking at output again: %w", err)
		}
		complete = complete && !report.Exhausted
		if len(report.Counts) > 0 {
			lo, hi := changed(part, now)
			found = append(found, miss{at + int64(start+lo), at + int64(start+hi), report.Counts})
		}
		for _, d := range detect {
			for _, h := range d.Find(part) {
				found = append(found, miss{at + int64(start+h[0]), at + int64(start+h[1]), []redact.Count{{Key: d.Name(), Form: redact.FormDetected}}})
			}
		}
		start = mask[1]
	}
	slices.SortStableFunc(found, func(a, b miss) int { return cmp.Compare(a.start, b.start) })
	return found, complete, nil
}

// changed returns the place of part outside of which now is the same: part has
// no masks, so it is what the first to the last mask of now stand for.
func changed(part, now []byte) (lo, hi int) {
	masks := maskText.FindAllIndex(now, -1)
	if len(masks) == 0 {
		return 0, len(part)
	}
	return masks[0][0], len(part) - (len(now) - masks[len(masks)-1][1])
}

// covers reports whether o says all that m does.
func (o miss) covers(m miss) bool {
	return o.start <= m.start && m.end <= o.end && !slices.ContainsFunc(m.found, func(c redact.Count) bool {
		return !slices.ContainsFunc(o.found, func(k redact.Count) bool { return k.Key == c.Key && k.Form == c.Form })
	})
}

// merge adds a miss. The overlap of two windows shows the same one twice.
func merge(misses []miss, m miss) []miss {
	for i := len(misses) - 1; i >= 0 && misses[i].end > m.start; i-- {
		if misses[i].covers(m) {
			return misses
		}
	}
	for len(misses) > 0 {
		last := misses[len(misses)-1]
		if last.end <= m.start {
			break
		}
		m.start, m.end = min(m.start, last.start), max(m.end, last.end)
		for _, c := range last.found {
			if !slices.ContainsFunc(m.found, func(o redact.Count) bool { return o.Key == c.Key && o.Form == c.Form }) {
				m.found = append(m.found, c)
			}
		}
		misses = misses[:len(misses)-1]
	}
	return append(misses, m)
}

// masks makes of misses what the host must do, and the digest of what it then
// has. What is more than can be said, or not all at hand, is withheld.
func (s *stream) masks(misses []miss) (sealed.TranscriptMasks, string) {
	m := sealed.TranscriptMasks{Stream: s.name, Released: s.digest()}
	for _, x := range misses {
		detected := !slices.ContainsFunc(x.found, func(c redact.Count) bool { return c.Form != redact.FormDetected })
		m.Spans = append(m.Spans, sealed.MaskSpan{Start: x.start, End: x.end, Key: x.found[0].Key, Detected: detected})
	}
	sum := sha256.New()
	if s.kept.cut || m.Apply(sum, io.NewSectionReader(s.kept.file, 0, s.kept.size)) != nil {
		m.Withhold, m.Spans = true, nil
		return m, m.Released
	}
	return m, hex.EncodeToString(sum.Sum(nil))
}

// lookBack looks at both streams again, and fills in subjects and misses of the
// record. What it returns is for the host. A look that fails withholds.
func (r *runner) lookBack(rec *recorder, limit time.Duration, lookFor func(stream string) look) []sealed.TranscriptMasks {
	var out []sealed.TranscriptMasks
	deadline := time.Now().Add(limit)
	detect, unknown := redact.Detectors(r.session.answer.Detect...)
	for _, s := range []*stream{r.stdout, r.stderr} {
		rec.subjects[s.name] = s.digest()
		s.kept.detect = detect
		misses, whole, err := s.kept.again(lookFor(s.name), deadline)
		err = errors.Join(unknown, err)
		switch {
		case err != nil:
			r.warnings = append(r.warnings, s.name+" is withheld: it could not be looked at again: "+sealed.CleanReason(err.Error()))
			out = append(out, sealed.TranscriptMasks{Stream: s.name, Released: s.digest(), Withhold: true})
			continue
		case !whole:
			r.warnings = append(r.warnings, s.name+": not all of it was looked at again")
		}
		if len(misses) == 0 {
			continue
		}
		masks, digest := s.masks(misses)
		rec.subjects[s.name] = digest
		out = append(out, masks)
		rec.misses = append(rec.misses, tallied(misses, s.name)...)
	}
	for _, c := range rec.misses {
		e := r.hit(c)
		if e.Type = "redact.miss"; c.Form == redact.FormDetected {
			e.Type = "redact.detected"
		}
		r.events.add(e)
	}
	return out
}

// tallied counts the places of each key and form.
func tallied(misses []miss, stream string) []redact.Count {
	var t tally
	for _, m := range misses {
		for _, c := range m.found {
			t.add([]redact.Count{{Key: c.Key, Form: c.Form, Stream: stream, N: 1}})
		}
	}
	return t.all()
}
