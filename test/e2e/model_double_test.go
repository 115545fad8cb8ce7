package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// modelDouble is a DOUBLE of Anthropic's Messages API: it speaks the
// streaming wire format and makes its client call the Bash tool with each of
// the given commands in turn, then say goodbye. It keeps what it was sent, so
// that a test can see which key arrived and what the agent told the model.
type modelDouble struct {
	commands []string
	gate     chan struct{} // the last answer waits until it is closed

	mu       sync.Mutex
	keys     []string // credentials of the requests, in order
	requests []string // bodies
}

func (m *modelDouble) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 32<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	key := r.Header.Get("X-Api-Key")
	if key == "" {
		key = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	m.mu.Lock()
	m.keys = append(m.keys, key)
	m.requests = append(m.requests, string(body))
	m.mu.Unlock()
	if r.Method != http.MethodPost || r.URL.Path != "/v1/messages" {
		http.NotFound(w, r)
		return
	}
	var in struct {
		Stream   bool              `json:"stream"`
		Model    string            `json:"model"`
		Tools    []json.RawMessage `json:"tools"`
		Messages []struct {
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	done := 0
	for _, msg := range in.Messages {
		done += strings.Count(string(msg.Content), `"tool_result"`)
	}
	if len(in.Tools) == 0 {
		done = len(m.commands) // a side question of the client, such as a title
	}
	m.stream(w, in.Model, done)
}

// stream answers with a tool call, or with a final text.
func (m *modelDouble) stream(w http.ResponseWriter, model string, done int) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(event string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, b)
		w.(http.Flusher).Flush()
	}
	type obj = map[string]any
	send("message_start", obj{"type": "message_start", "message": obj{"id": fmt.Sprintf("msg_%d", done), "type": "message", "role": "assistant", "model": model, "content": []any{}, "stop_reason": nil, "stop_sequence": nil, "usage": obj{"input_tokens": 1, "output_tokens": 1}}})
	stop := "end_turn"
	if done < len(m.commands) {
		stop = "tool_use"
		args, err := json.Marshal(obj{"command": m.commands[done], "description": "step"})
		if err != nil {
			panic(err)
		}
		send("content_block_start", obj{"type": "content_block_start", "index": 0, "content_block": obj{"type": "tool_use", "id": fmt.Sprintf("toolu_%d", done), "name": "Bash", "input": obj{}}})
		send("content_block_delta", obj{"type": "content_block_delta", "index": 0, "delta": obj{"type": "input_json_delta", "partial_json": string(args)}})
	} else {
		<-m.gate
		send("content_block_start", obj{"type": "content_block_start", "index": 0, "content_block": obj{"type": "text", "text": ""}})
		send("content_block_delta", obj{"type": "content_block_delta", "index": 0, "delta": obj{"type": "text_delta", "text": "All done."}})
	}
	send("content_block_stop", obj{"type": "content_block_stop", "index": 0})
	send("message_delta", obj{"type": "message_delta", "delta": obj{"stop_reason": stop, "stop_sequence": nil}, "usage": obj{"output_tokens": 5}})
	send("message_stop", obj{"type": "message_stop"})
}
