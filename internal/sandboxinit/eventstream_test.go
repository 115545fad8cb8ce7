package sandboxinit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/redact"
)

func canarySet(t *testing.T) *redact.Set {
	t.Helper()
	set := redact.NewSet()
	if err := set.Add("API_KEY", []byte(valueCanary), redact.Options{}); err != nil {
		t.Fatal(err)
	}
	return set
}

// deltas cut text into events of the shape of Claude Code.
func deltas(text string, size int) (out string) {
	for ; text != ""; text = text[min(size, len(text)):] {
		piece, _ := json.Marshal(text[:min(size, len(text))])
		out += fmt.Sprintf(`{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%s}},"session_id":"s"}`+"\n", piece)
	}
	return out + `{"type":"stream_event","event":{"type":"content_block_stop","index":0}}` + "\n"
}

// joined is the text that whoever follows the events sees.
func joined(t *testing.T, out string) (text string) {
	t.Helper()
	for line := range strings.Lines(out) {
		var e struct {
			Event struct {
				Delta struct{ Text string }
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("not JSON: %q", line)
		}
		text += e.Event.Delta.Text
	}
	return text
}

// write passes text through w in writes of a size, each with its flush, as the
// pump does.
func write(t *testing.T, w redactor, text string, size int) {
	t.Helper()
	for ; text != ""; text = text[min(size, len(text)):] {
		if _, err := w.Write([]byte(text[:min(size, len(text))])); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// A value that is cut over deltas is whole in no event. A plain writer lets it
// pass; that is the control.
func TestEventsJoined(t *testing.T) {
	set := canarySet(t)
	in := deltas("the key is "+valueCanary+", said the agent", 5)
	for _, size := range []int{1, 7, 100, 1 << 20} {
		for _, known := range []bool{true, false} {
			var out bytes.Buffer
			e := newEventStream(&out, set, "stdout", known)
			write(t, e, in, size)
			if got := joined(t, out.String()); got != "the key is [sealed:API_KEY], said the agent" {
				t.Errorf("writes of %d: %q", size, got)
			}
			if c := e.Counts(); len(c) != 1 || c[0].Key != "API_KEY" || c[0].N != 1 || c[0].Stream != "stdout" {
				t.Errorf("counts %+v", c)
			}
		}
	}
	t.Run("control: a plain writer", func(t *testing.T) {
		var out bytes.Buffer
		write(t, redact.NewWriter(&out, set, "stdout"), in, 100)
		if !strings.Contains(joined(t, out.String()), valueCanary) {
			t.Errorf("the attack shows nothing: %q", out.String())
		}
	})
}

// What is not events is redacted as bytes, and only events wait for their line.
func TestEventsOrBytes(t *testing.T) {
	long := `{"a":"` + strings.Repeat("x", maxEventLine) + valueCanary + `"}` + "\n"
	const mask = "[sealed:API_KEY]"
	for name, c := range map[string]struct{ in, want string }{
		"nothing":           {"", ""},
		"text":              {"a " + valueCanary + "\n", "a " + mask + "\n"},
		"text over lines":   {strings.Join(strings.Split(valueCanary, ""), "\n") + "x", mask + "x"},
		"a brace":           {"{ " + valueCanary + "\n}\n", "{ " + mask + "\n}\n"},
		"an open brace":     {"{ " + valueCanary, "{ " + mask},
		"blank first":       {"\n{" + valueCanary + "}", "\n{" + mask + "}"},
		"one object":        {`{"a":"` + valueCanary + `"}`, `{"a":"` + mask + `"}`},
		"text among events": {"{}\nb " + valueCanary + "\n{}\n", "{}\nb " + mask + "\n{}\n"},
		"a long line":       {"{}\n" + long + "{}\n", "{}\n" + strings.Replace(long, valueCanary, mask, 1) + "{}\n"},
		"a long first line": {long + valueCanary, strings.Replace(long, valueCanary, mask, 1) + mask},
		"endless SSE":       {"{}\n" + strings.Repeat("data: x\n", maxEventLine/4), "{}\n" + strings.Repeat("data: x\n", maxEventLine/4)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1000, 1 << 24} {
				var out bytes.Buffer
				write(t, newEventStream(&out, canarySet(t), "stdout", false), c.in, size)
				if got := out.String(); got != c.want {
					t.Errorf("writes of %d: %d bytes %.100q, want %d bytes %.100q", size, len(got), got, len(c.want), c.want)
				}
			}
		})
	}
	t.Run("live", func(t *testing.T) {
		var out bytes.Buffer
		e := newEventStream(&out, canarySet(t), "stdout", false)
		for _, s := range []string{"$ ", "? "} {
			if _, err := e.Write([]byte(s)); err != nil {
				t.Fatal(err)
			}
			if err := e.Flush(); err != nil || !strings.HasSuffix(out.String(), s) {
				t.Errorf("held: %q, %v", out.String(), err)
			}
		}
	})
}

func TestSaysEvents(t *testing.T) {
	for line, want := range map[string]bool{
		"claude -p x --output-format stream-json --verbose": true,
		"gemini --output-format=stream-json":                true,
		"/usr/bin/codex exec --json x":                      true,
		"gh pr list --json title":                           false,
		"claude -p stream-json":                             false,
	} {
		if got := saysEvents(strings.Fields(line)); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
}
