package redact

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// event is a JSON document and where its scalars are.
type event struct {
	raw    []byte
	fields []field
	at     map[string]int // path → index in fields
}

// field is a scalar, or the name of a member. Paths are the names and indexes from the top, joined by dots.
type field struct {
	path       string
	start, end int  // in raw, with the quotes
	text       bool // a string
	name       bool // the name of the member at path
}

// delta is a field that continues the text of a block.
type delta struct {
	path, id string
	loose    bool // no event says that the block ends
	last     bool // this one does
}

// parseEvent reads a JSON object or array, and reports whether raw is one.
func parseEvent(raw []byte) (*event, bool) {
	trimmed := bytes.TrimLeft(raw, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '{' && trimmed[0] != '[' || !json.Valid(raw) {
		return nil, false
	}
	e := &event{raw: raw, at: make(map[string]int)}
	e.value(0, "")
	return e, true
}

// value walks over the value at raw[i:], which is known to be valid, and returns its end. The depth is limited by that of json.Valid.
func (e *event) value(i int, path string) int {
	i = e.space(i)
	switch e.raw[i] {
	case '{':
		for i = e.space(i + 1); e.raw[i] != '}'; {
			end := e.stringEnd(i)
			name := string(unquote(e.raw[i:end]))
			e.fields = append(e.fields, field{path: join(path, name), start: i, end: end, text: true, name: true})
			i = e.space(e.value(e.space(end)+1, join(path, name)))
			if e.raw[i] == ',' {
				i = e.space(i + 1)
			}
		}
		return i + 1
	case '[':
		n := 0
		for i = e.space(i + 1); e.raw[i] != ']'; n++ {
			i = e.space(e.value(i, join(path, strconv.Itoa(n))))
			if e.raw[i] == ',' {
				i = e.space(i + 1)
			}
		}
		return i + 1
	}
	end := i
	if e.raw[i] == '"' {
		end = e.stringEnd(i)
	} else {
		for end < len(e.raw) && !strings.ContainsRune(",]} \t\r\n", rune(e.raw[end])) {
			end++
		}
	}
	e.at[path] = len(e.fields)
	e.fields = append(e.fields, field{path: path, start: i, end: end, text: e.raw[i] == '"'})
	return end
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (e *event) space(i int) int {
	for i < len(e.raw) && strings.IndexByte(" \t\r\n", e.raw[i]) >= 0 {
		i++
	}
	return i
}

// stringEnd returns the end of the string whose first quote is raw[i].
func (e *event) stringEnd(i int) int {
	for i++; e.raw[i] != '"'; i++ {
		if e.raw[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// unquote decodes a JSON string. Half surrogates and bytes that are not UTF-8 become U+FFFD.
func unquote(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return raw[1 : len(raw)-1]
	}
	return []byte(s)
}

func quote(text []byte) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(string(text)) // a string always encodes
	return bytes.TrimRight(b.Bytes(), "\n")
}

// scalar returns the text of the scalar at path, and "" if there is none or it is null.
func (e *event) scalar(path string) string {
	i, ok := e.at[path]
	if !ok {
		return ""
	}
	raw := e.raw[e.fields[i].start:e.fields[i].end]
	if e.fields[i].text {
		return string(unquote(raw))
	}
	if string(raw) == "null" {
		return ""
	}
	return string(raw)
}

func (e *event) isText(path string) bool {
	i, ok := e.at[path]
	return ok && e.fields[i].text
}

// deltas returns the deltas of the event, and the beginnings of the ids of blocks that it ends.
func (e *event) deltas() (found []delta, ends []string) {
	for _, f := range e.fields {
		if f.name {
			continue
		}
		if within, ok := strings.CutSuffix(f.path, "type"); ok && f.text && (within == "" || strings.HasSuffix(within, ".")) {
			d, end := e.typed(within, e.scalar(f.path))
			found, ends = append(found, d...), append(ends, end...)
		}
		p := strings.Split(f.path, ".")
		switch {
		case len(p) >= 4 && p[0] == "choices" && p[2] == "delta" && f.text && !isLabel(p[len(p)-1]): // chat completions
			found = append(found, delta{path: f.path, id: f.path})
		case len(p) == 3 && p[0] == "choices" && p[2] == "finish_reason" && e.scalar(f.path) != "":
			ends = append(ends, p[0]+"."+p[1]+".")
		case len(p) >= 6 && p[len(p)-6] == "candidates" && p[len(p)-4] == "content" && p[len(p)-1] == "text" && f.text: // Gemini
			found = append(found, delta{path: f.path, id: strings.Join(p[:len(p)-4], ".") + ".", loose: true})
		case len(p) >= 3 && p[len(p)-3] == "candidates" && p[len(p)-1] == "finishReason" && e.scalar(f.path) != "":
			ends = append(ends, strings.Join(p[:len(p)-1], ".")+".")
		}
	}
	for i := range found {
		found[i].last = slices.ContainsFunc(ends, func(e string) bool { return strings.HasPrefix(found[i].id, e) })
	}
	return found, ends
}

// isLabel reports whether a member of a delta is no part of its text.
func isLabel(name string) bool {
	return name == "role" || name == "id" || name == "type" || name == "name"
}

// typed returns the deltas and ends of an event that says its type, whose members are within a path.
func (e *event) typed(within, kind string) (found []delta, ends []string) {
	switch {
	case kind == "content_block_delta": // Anthropic, Claude Code
		id := within + "block " + e.scalar(within+"index") + " "
		for _, name := range []string{"text", "thinking", "partial_json", "signature"} {
			if path := within + "delta." + name; e.isText(path) {
				found = append(found, delta{path: path, id: id + name})
			}
		}
	case kind == "content_block_stop":
		ends = append(ends, within+"block "+e.scalar(within+"index")+" ")
	case kind == "message_stop":
		ends = append(ends, within+"block ")
	case strings.HasSuffix(kind, ".delta") && e.isText(within+"delta"): // OpenAI responses
		found = append(found, delta{path: within + "delta", id: e.itemID(within, strings.TrimSuffix(kind, ".delta"))})
	case strings.HasSuffix(kind, ".done"):
		ends = append(ends, e.itemID(within, strings.TrimSuffix(kind, ".done")))
	case kind == "response.completed", kind == "response.failed", kind == "response.incomplete":
		ends = append(ends, within+"item ")
	case strings.HasSuffix(kind, "_delta") && e.isText(within+"delta"): // Codex
		found = append(found, delta{path: within + "delta", id: within + kind, loose: true})
	case kind == "message" && e.scalar(within+"delta") == "true" && e.isText(within+"content"): // Gemini CLI
		found = append(found, delta{path: within + "content", id: within + "message " + e.scalar(within+"role"), loose: true})
	}
	return found, ends
}

func (e *event) itemID(within, kind string) string {
	id := within + "item " + kind
	for _, name := range []string{"item_id", "output_index", "content_index", "summary_index"} {
		id += " " + e.scalar(within+name)
	}
	return id + " "
}
