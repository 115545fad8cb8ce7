package redact

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// chunks cuts v into n pieces.
func chunks(v string, n int) []string {
	var out []string
	for len(v) > 0 {
		k := max(1, min(len(v), len(v)/n))
		out, v, n = append(out, v[:k]), v[k:], max(1, n-1)
	}
	return out
}

func jsonText(s string) string { return string(quote([]byte(s))) }

// streams of the protocols that are known: each sends pieces as deltas of one block, and then says that it is over.
var protocols = []struct {
	name  string
	delta func(piece string) string
	end   string
	texts func(line string) string // the delta text of an output line
}{
	{"anthropic sse", func(p string) string {
		return "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"text_delta\",\"text\":" + jsonText(p) + "}}\n\n"
	}, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}\n\n", at("delta", "text")},
	{"anthropic tool", func(p string) string {
		return "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":" + jsonText(p) + "}}\n\n"
	}, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", at("delta", "partial_json")},
	{"claude code", func(p string) string {
		return `{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":` + jsonText(p) + `}},"session_id":"s"}` + "\n"
	}, `{"type":"stream_event","event":{"type":"content_block_stop","index":0}}` + "\n", at("event", "delta", "thinking")},
	{"chat completions", func(p string) string {
		return `data: {"choices":[{"index":0,"delta":{"content":` + jsonText(p) + `},"finish_reason":null}]}` + "\n\n"
	}, "data: [DONE]\n\n", at("choices", "0", "delta", "content")},
	{"chat completions, tool", func(p string) string {
		return `data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":` + jsonText(p) + `}}]}}]}` + "\n\n"
	}, `data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}` + "\n\n", at("choices", "0", "delta", "tool_calls", "0", "function", "arguments")},
	{"responses", func(p string) string {
		return "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"m\",\"output_index\":0,\"content_index\":0,\"delta\":" + jsonText(p) + "}\n\n"
	}, "event: response.output_text.done\ndata: {\"type\":\"response.output_text.done\",\"item_id\":\"m\",\"output_index\":0,\"content_index\":0,\"text\":\"\"}\n\n", at("delta")},
	{"gemini", func(p string) string {
		return `data: {"candidates":[{"content":{"parts":[{"text":` + jsonText(p) + `}],"role":"model"}}]}` + "\r\n\r\n"
	}, `data: {"candidates":[{"content":{"parts":[{"text":""}]},"finishReason":"STOP"}]}` + "\r\n\r\n", at("candidates", "0", "content", "parts", "0", "text")},
	{"codex", func(p string) string {
		return `{"id":"1","msg":{"type":"agent_message_delta","delta":` + jsonText(p) + `}}` + "\n"
	}, `{"id":"1","msg":{"type":"agent_message","message":"."}}` + "\n", at("msg", "delta")},
	{"gemini cli", func(p string) string {
		return `{"type":"message","role":"assistant","content":` + jsonText(p) + `,"delta":true}` + "\n"
	}, `{"type":"result"}` + "\n", at("content")},
}

// at returns a function that finds the text at a path in a line.
func at(path ...string) func(string) string {
	return func(line string) string {
		var v any
		if json.Unmarshal([]byte(strings.TrimSpace(strings.TrimPrefix(line, "data:"))), &v) != nil {
			return ""
		}
		for _, name := range path {
			switch w := v.(type) {
			case map[string]any:
				v = w[name]
			case []any:
				if len(w) == 0 {
					return ""
				}
				v = w[0]
			}
		}
		s, _ := v.(string)
		return s
	}
}

func passJSON(t testing.TB, set *Set, in string, next func(int) int) (string, *JSON) {
	t.Helper()
	var b bytes.Buffer
	j := NewJSON(&b, set, "events")
	for rest := in; rest != ""; {
		n := next(len(rest))
		if m, err := io.WriteString(j, rest[:n]); err != nil || m != n {
			t.Fatalf("Write = %d, %v", m, err)
		}
		rest = rest[n:]
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), j
}

// TestJSONDeltas: a value that deltas cut is masked in the text that the client joins (A15), in every protocol, and all events stay valid.
func TestJSONDeltas(t *testing.T) {
	for _, p := range protocols {
		for _, v := range []string{alnumValue, symbolValue, pemValue} {
			for _, n := range []int{1, 2, 7, 1000} {
				text := "Here: \"" + v + "\" and more."
				in := p.delta("first ")
				for _, c := range chunks(text, n) {
					in += p.delta(c)
				}
				in += p.delta(v[:len(v)/2]) + p.end
				for _, c := range cuts {
					out, j := passJSON(t, setOf(t, "K", v), in, c.next)
					var got strings.Builder
					for line := range strings.Lines(out) {
						got.WriteString(p.texts(line))
						if body, ok := strings.CutPrefix(line, "data: "); (ok || line[0] == '{') && !strings.HasPrefix(body, "[DONE]") && !json.Valid([]byte(body)) {
							t.Fatalf("%s: not JSON: %q", p.name, line)
						}
					}
					if want := "first Here: \"" + kMask + "\" and more." + kMask; got.String() != want && v != pemValue {
						t.Errorf("%s, %d pieces, %s: got %q, want %q", p.name, n, c.name, got.String(), want)
					}
					if p := shows(got.String(), v, 16); p != "" && !strings.Contains(p, "PRIVATE") {
						t.Errorf("shows %q", p)
					}
					if !strings.HasSuffix(out, p.end) && !strings.Contains(p.end, "finishReason") {
						t.Errorf("%s: the end moved: %q", p.name, out[max(0, len(out)-200):])
					}
					if j.Fallbacks() != 0 || len(j.Counts()) == 0 {
						t.Errorf("%s: %d fallbacks, counts %v", p.name, j.Fallbacks(), j.Counts())
					}
				}
			}
		}
	}
	t.Run("control off", func(t *testing.T) {
		for _, p := range protocols {
			in := p.delta(alnumValue) + p.end
			if out, _ := passJSON(t, NewSet(), in, cuts[0].next); out != in {
				t.Errorf("%s: an empty set changes %q to %q", p.name, in, out)
			}
			if out := Bytes([]byte(p.delta(alnumValue[:7])+p.delta(alnumValue[7:])), setOf(t, "K", alnumValue)); p.name == "claude code" && strings.Contains(string(out), kMask) {
				t.Errorf("%s: bytes alone find it, so the test proves nothing", p.name)
			}
		}
	})
}

func TestJSONLines(t *testing.T) {
	set := setOf(t, "K", alnumValue, "S", symbolValue)
	for _, tt := range []struct {
		name, in, want string
		fell           int
	}{
		{"as it was", "{ \"a\" : [1.50, 1e5, null, true, \"\\u0041\\/\"] }\n\n[]\n", "{ \"a\" : [1.50, 1e5, null, true, \"\\u0041\\/\"] }\n\n[]\n", 0},
		{"string", `{"a":"x ` + alnumValue + `"}`, `{"a":"x [sealed:K]"}`, 0},
		{"name of a field", `{"` + alnumValue + `":1}`, `{"[sealed:K]":1}`, 0},
		{"escaped", `{"a":` + strings.ReplaceAll(jsonText(symbolValue), "p", `\u0070`) + `}`, `{"a":"[sealed:S]"}`, 0},
		{"number", `{"a":12345678901234567890}`, `{"a":12345678901234567890}`, 0},
		{"across fields", `{"a":"` + alnumValue[:20] + `","b":"` + alnumValue[20:] + `"}` + "\n", `{"a":"[sealed:K]","b":"` + alnumValue[20:] + "\"}\n", 0},
		{"text", "plain " + alnumValue + "\n{\"a\":1}\n", "plain [sealed:K]\n{\"a\":1}\n", 1},
		{"broken", `{"a":"` + alnumValue + "\n", `{"a":"[sealed:K]` + "\n", 1},
		{"comment", ": " + alnumValue + "\n\n", ": [sealed:K]\n\n", 1},
		{"text cut by an event", alnumValue[:9] + "\n{}\n" + alnumValue[9:], "[sealed:K]\n{}\n" + alnumValue[9:], 2},
		{"two data lines", "data: {\"a\":\ndata: \"" + alnumValue + "\"}\n\n", "data: {\"a\":\n\"[sealed:K]\"}\n\n", 0},
	} {
		for _, c := range cuts {
			got, j := passJSON(t, set, tt.in, c.next)
			if tt.name == "across fields" && strings.Contains(got, kMask) {
				continue // the mask may take the names between as well
			}
			if got != tt.want || j.Fallbacks() != tt.fell {
				t.Errorf("%s, %s: got %q, %d fallbacks; want %q, %d", tt.name, c.name, got, j.Fallbacks(), tt.want, tt.fell)
			}
		}
	}
}

// FuzzJSON: events in, events out, and the output does not depend on the cuts.
func FuzzJSON(f *testing.F) {
	for i, p := range protocols {
		f.Add([]byte(p.delta(alnumValue[:9])+p.delta(alnumValue[9:])+p.end), uint64(i))
	}
	f.Add([]byte("{\"a\":\"\\ud800\"}\ndata: x\n\n: c\n\n[DONE]\n"), uint64(1))
	set := fuzzSet(f)
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		want, _ := passJSON(t, set, string(in), cuts[0].next)
		got, _ := passJSON(t, set, string(in), func(left int) int { return 1 + r.IntN(min(left, 9)) })
		if got != want {
			t.Fatalf("%q\n got %q\nwant %q", in, got, want)
		}
		if valid(in) && !valid([]byte(want)) {
			t.Fatalf("valid events %q became %q", in, want)
		}
	})
}

// valid reports whether every line is an event.
func valid(in []byte) bool {
	for line := range bytes.Lines(in) {
		if line = bytes.TrimSpace(line); len(line) > 0 && !json.Valid(line) {
			return false
		}
	}
	return true
}

func BenchmarkJSON(b *testing.B) {
	set := randomSet(b, rand.New(rand.NewPCG(1, 2)), 100)
	line := []byte(protocols[0].delta("some words of a text, as models send them"))
	j := NewJSON(io.Discard, set, "bench")
	timed(b, len(line), func() {
		if _, err := j.Write(line); err != nil {
			b.Fatal(err)
		}
	})
}
