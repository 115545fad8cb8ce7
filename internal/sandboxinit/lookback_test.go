package sandboxinit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
)

// twice is a form that only the second look decodes.
func twice() string {
	b := base64.StdEncoding.EncodeToString([]byte("key " + valueCanary + " end"))
	return base64.StdEncoding.EncodeToString([]byte(b))
}

// looked is a runner of whose two streams one has let something out.
func looked(t *testing.T, text string) (*runner, *bytes.Buffer) {
	t.Helper()
	set := canarySet(t)
	var out bytes.Buffer
	ses := &session{answer: sealed.ClaimAnswer{Keys: []sealed.ClaimKey{{Name: "API_KEY"}}}}
	r := &runner{session: ses, set: set, stdout: newStream("stdout", &out, set), stderr: newStream("stderr", &bytes.Buffer{}, set), keys: &keyring{session: ses}, events: newEventLog(nil)}
	for _, s := range []*stream{r.stdout, r.stderr} {
		if s == r.stdout {
			write(t, s.w, text, 4000)
		} else if err := s.w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return r, &out
}

func TestLookBack(t *testing.T) {
	for name, before := range map[string]int{"at once": 0, "over the edge of a window": lookWindow - 60, "in the overlap": lookWindow - lookOverlap/2, "in the third": 2*lookWindow + 5} {
		t.Run(name, func(t *testing.T) {
			text := strings.Repeat("a line of text\n", before/15+1) + "<" + twice() + ">\n" + valueCanary + "\n"
			r, out := looked(t, text)
			if !strings.Contains(out.String(), twice()) { // the control: the first look alone lets it pass
				t.Fatal("the first look has found it")
			}
			rec := &recorder{subjects: map[string]string{}}
			masks := r.lookBack(rec, time.Minute, func(stream string) look { return lookWith(r.set, stream) })
			if len(masks) != 1 || len(masks[0].Spans) != 1 || masks[0].Withhold || len(r.warnings) > 0 {
				t.Fatalf("masks %+v, warnings %q", masks, r.warnings)
			}
			var stored bytes.Buffer
			if err := masks[0].Apply(&stored, bytes.NewReader(out.Bytes())); err != nil {
				t.Fatal(err)
			}
			if want := strings.NewReplacer(twice(), "[sealed:API_KEY]", valueCanary, "[sealed:API_KEY]").Replace(text); stored.String() != want {
				t.Errorf("stored …%q", stored.String()[max(0, stored.Len()-150):])
			}
			sum := sha256.Sum256(stored.Bytes())
			if rec.subjects["stdout"] != hex.EncodeToString(sum[:]) || masks[0].Released != r.stdout.digest() || rec.subjects["stderr"] != r.stderr.digest() {
				t.Errorf("subjects %v", rec.subjects)
			}
			if len(rec.misses) != 1 || rec.misses[0].Key != "API_KEY" || rec.misses[0].N != 1 || rec.misses[0].Stream != "stdout" {
				t.Errorf("misses %+v", rec.misses)
			}
			for e, n := range r.events.pending {
				if e.Type != "redact.miss" || e.Key != "API_KEY" || e.Detail != "nested" || n != 1 || e.Stream != "stdout" {
					t.Errorf("event %+v, %d times", e, n)
				}
			}
			if len(r.events.pending) != 1 {
				t.Errorf("%d events", len(r.events.pending))
			}
		})
	}
}

// What the configuration says is looked for by its shape, each at its place, and is no miss of the redactor. Off, it stays: the control.
func TestLookBackDetects(t *testing.T) {
	const card, token = "4111 1111 1111 1111", "ghp_a1B2a1B2a1B2a1B2a1B2a1B2a1B2a1B2a1B2"
	filler := strings.Repeat("a line of text\n", (lookWindow-lookOverlap/2)/15)
	text := "card " + card + ".\n" + filler + "token " + token + " and a card " + card + "\n"
	for _, tt := range []struct {
		detect []string
		want   string
		events map[string]int
	}{
		{nil, text, map[string]int{}},
		{[]string{"personal-data"}, strings.ReplaceAll(text, card, "[sealed:payment-card]"), map[string]int{"payment-card detected": 2}},
		{sealed.DetectKinds, strings.NewReplacer(card, "[sealed:payment-card]", token, "[sealed:github-token]").Replace(text), map[string]int{"payment-card detected": 2, "github-token detected": 1}},
		{[]string{"names"}, "", map[string]int{}}, // of a newer engine: nothing is stored
	} {
		r, out := looked(t, text)
		r.session.answer.Detect = tt.detect
		stored := out.String()
		for _, m := range r.lookBack(&recorder{subjects: map[string]string{}}, time.Minute, func(stream string) look { return lookWith(r.set, stream) }) {
			var b bytes.Buffer
			if m.Stream != "stdout" {
				continue
			}
			if !m.Withhold {
				if err := m.Apply(&b, bytes.NewReader(out.Bytes())); err != nil {
					t.Fatal(err)
				}
			}
			stored = b.String()
		}
		if stored != tt.want {
			t.Errorf("%v: stored …%q", tt.detect, stored[max(0, len(stored)-150):])
		}
		got := map[string]int{}
		for e, n := range r.events.pending {
			if e.Type != "redact.detected" || e.Key != "" {
				t.Errorf("%v: event %+v", tt.detect, e)
			}
			got[e.Detail] += n
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.events) {
			t.Errorf("%v: events %v, want %v", tt.detect, got, tt.events)
		}
	}
}

// The two looks agree on what the redactor knows.
func TestLookBackAgrees(t *testing.T) {
	forms := []string{valueCanary, base64.StdEncoding.EncodeToString([]byte(valueCanary)), hex.EncodeToString([]byte(valueCanary)), strings.Join(strings.Split(valueCanary, ""), "\n")}
	r, out := looked(t, "start "+strings.Join(forms, " and ")+" end\n")
	rec := &recorder{subjects: map[string]string{}}
	if masks := r.lookBack(rec, time.Minute, func(stream string) look { return lookWith(r.set, stream) }); len(masks) > 0 || len(rec.misses) > 0 || len(r.warnings) > 0 {
		t.Errorf("%+v of %q, %q", masks, out.String(), r.warnings)
	}
}

// What was not seen is said, and what can't be masked is withheld.
func TestLookBackBounds(t *testing.T) {
	never := func(string) look {
		return func([]byte) ([]byte, redact.Report, error) { return nil, redact.Report{}, os.ErrInvalid }
	}
	deep := func(r *runner) func(string) look {
		return func(stream string) look { return lookWith(r.set, stream) }
	}
	for name, c := range map[string]struct {
		text     string
		look     func(*runner) func(string) look
		withheld bool
		warning  string
	}{
		"more than is kept, clean":    {strings.Repeat("x y\n", keepLimit/4+1), func(*runner) func(string) look { return passAll }, false, "not all of it"},
		"more than is kept, a miss":   {twice() + strings.Repeat("x y\n", keepLimit/4), firstOnly, true, "not all of it"},
		"a look that fails":           {"x", func(*runner) func(string) look { return never }, true, "withheld"},
		"more to decode than allowed": {strings.Repeat(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("QUJD"), 10000)), 2), deep, false, "not all of it"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := looked(t, c.text)
			rec := &recorder{subjects: map[string]string{}}
			masks := r.lookBack(rec, time.Minute, c.look(r))
			if got := len(masks) == 1 && masks[0].Withhold && masks[0].Spans == nil; got != c.withheld || len(masks) > 1 {
				t.Errorf("masks %+v", masks)
			}
			if len(r.warnings) != 1 || !strings.Contains(r.warnings[0], c.warning) {
				t.Errorf("warnings %q", r.warnings)
			}
			if rec.subjects["stdout"] != r.stdout.digest() {
				t.Errorf("subjects %v", rec.subjects)
			}
		})
	}
	t.Run("late", func(t *testing.T) {
		r, _ := looked(t, "text")
		if m, whole, err := r.stdout.kept.again(lookWith(r.set, "stdout"), time.Now()); len(m) > 0 || whole || err != nil {
			t.Errorf("%v, %v, %v", m, whole, err)
		}
	})
}

func passAll(string) look {
	return func(p []byte) ([]byte, redact.Report, error) { return p, redact.Report{}, nil }
}

// firstOnly finds what is at the beginning.
func firstOnly(*runner) func(string) look {
	return func(string) look {
		return func(p []byte) ([]byte, redact.Report, error) {
			if rest, ok := bytes.CutPrefix(p, []byte(twice())); ok {
				return append([]byte("[sealed:API_KEY]"), rest...), redact.Report{Counts: []redact.Count{{Key: "API_KEY", Form: "nested", N: 1}}}, nil
			}
			return p, redact.Report{}, nil
		}
	}
}

func TestMerge(t *testing.T) {
	found := func(form string) []redact.Count { return []redact.Count{{Key: "K", Form: form}} }
	var got []miss
	for _, m := range []miss{{0, 4, found("a")}, {6, 9, found("a")}, {5, 8, found("a")}, {8, 12, found("b")}, {12, 13, found("a")}} {
		got = merge(got, m)
	}
	if s := fmt.Sprint(got); s != fmt.Sprint([]miss{{0, 4, found("a")}, {5, 12, []redact.Count{{Key: "K", Form: "b"}, {Key: "K", Form: "a"}}}, {12, 13, found("a")}}) {
		t.Error(s)
	}
}

// A footprint is how much memory a child had resident at most, in KiB.
type footprint struct{ Before, Events, Look int }

// childFootprint does the costly things with ten values under init's limit.
func childFootprint([]string) any {
	debug.SetMemoryLimit(memoryLimit)
	set := redact.NewSet()
	rnd := rand.New(rand.NewSource(1))
	for i := range 10 {
		if err := set.Add(fmt.Sprintf("KEY_%d", i), fmt.Appendf(nil, "%016x%016x", rnd.Uint64(), rnd.Uint64()), redact.Options{}); err != nil {
			fail("%v", err)
		}
	}
	var f footprint
	f.Before = peak()
	s := newStream("stdout", &devNull{}, set)
	s.expectEvents(set, []string{"claude", "--output-format=stream-json"})
	noise := make([]byte, maxEventLine*3/4-100)
	for range 8 {
		_, _ = rnd.Read(noise)
		if _, err := fmt.Fprintf(s.w, `{"a":%q}`+"\n", base64.StdEncoding.EncodeToString(noise)); err != nil {
			fail("%v", err)
		}
	}
	for range keepLimit >> 16 {
		_, _ = s.w.Write(bytes.Repeat([]byte("x"), 64<<10))
	}
	if err := s.w.Close(); err != nil {
		fail("%v", err)
	}
	f.Events = peak()
	if _, _, err := s.kept.again(lookWith(set, "stdout"), time.Now().Add(lookTime)); err != nil {
		fail("%v", err)
	}
	f.Look = peak()
	return f
}

type devNull struct{}

func (*devNull) Write(p []byte) (int, error) { return len(p), nil }

// peak is VmHWM of proc(5).
func peak() (kib int) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fail("%v", err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		fail("%v", err)
	}
	return kib
}

// Events of the greatest length, and the second look at all that is kept, stay
// within the memory that init may use.
func TestFootprint(t *testing.T) {
	var f footprint
	runChild(t, &f, nil, "footprint")
	t.Logf("%d MiB before, %d MiB after events of %d bytes, %d MiB after the second look", f.Before>>10, f.Events>>10, maxEventLine, f.Look>>10)
	if f.Look > 40<<10 && !raceEnabled() { // whose memory counts, too
		t.Errorf("%d KiB resident, want at most 40 MiB", f.Look)
	}
}

// raceEnabled reports whether this binary was built with -race.
func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, s := range info.Settings {
			if s.Key == "-race" {
				return s.Value == "true"
			}
		}
	}
	return false
}
