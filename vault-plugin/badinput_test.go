package vaultplugin

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// Every path and operation is given bad input, also those that come later: the
// rows are the engine's own paths. An answer to it is a 4xx that names the field,
// and storage is what it was, but for the log. A signed call is refused without a
// reason instead (F23).

// A place is one operation with a path that names nothing special.
type place struct {
	path   *framework.Path
	op     logical.Operation
	filled string
}

var pathGroup = regexp.MustCompile(`\(\?P<([a-z_]+)>(?:[^()]|\([^()]*\))*\)`)

// fillPath makes a path out of a pattern.
func fillPath(pattern string, run string, name func(group string) string) string {
	s := pathGroup.ReplaceAllStringFunc(pattern, func(m string) string { return name(pathGroup.FindStringSubmatch(m)[1]) })
	return strings.NewReplacer("/?", "", "^", "", "$", "", "{run}", run).Replace(s)
}

func goodName(group string) string {
	switch group {
	case "run":
		return "{run}"
	case "id":
		return "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	case "level":
		return "workflow"
	case "kind":
		return "profile"
	case "key":
		return "LOW"
	case "seq":
		return "1"
	case "act":
		return "stop"
	case "vote":
		return "approve"
	case "digest":
		return strings.Repeat("ab", 32)
	}
	return "nothing"
}

func (w *world) places(run string) []place {
	var out []place
	for _, p := range w.b.Paths {
		for op := range p.Operations {
			out = append(out, place{p, op, fillPath(p.Pattern, run, goodName)})
		}
	}
	slices.SortFunc(out, func(a, b place) int {
		return strings.Compare(a.path.Pattern+string(a.op), b.path.Pattern+string(b.op))
	})
	return out
}

// allButLog is everything in storage but the log.
func (w *world) allButLog() map[string]string {
	w.t.Helper()
	keys, err := logical.CollectKeys(w.t.Context(), w.s)
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, k := range keys {
		if strings.HasPrefix(k, storeLog) {
			continue
		}
		e, err := w.s.Get(w.t.Context(), k)
		if err != nil || e == nil {
			w.t.Fatalf("reading %s: %v", k, err)
		}
		out[k] = string(e.Value)
	}
	return out
}

func TestBadInput(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	deep := strings.Repeat(`[`, 50_000) + strings.Repeat(`]`, 50_000)
	tests := []struct {
		name string
		// value is what a field gets; false: the field is not to be tried so.
		value func(f *framework.FieldSchema) (any, bool)
	}{
		{"another type", func(f *framework.FieldSchema) (any, bool) {
			switch f.Type {
			case framework.TypeString:
				return []any{map[string]any{"a": canary}}, true
			case framework.TypeKVPairs, framework.TypeMap, framework.TypeStringSlice, framework.TypeCommaStringSlice:
				return []any{map[string]any{"a": map[string]any{"b": canary}}}, true
			}
			return map[string]any{"a": canary}, true
		}},
		{"1 MiB", func(f *framework.FieldSchema) (any, bool) {
			return strings.Repeat("A", 1<<20), f.Type == framework.TypeString
		}},
		{"1 MiB of JSON", func(f *framework.FieldSchema) (any, bool) {
			return `{"name":"` + strings.Repeat("a", 1<<20) + `"}`, f.Type == framework.TypeString
		}},
		{"deep JSON", func(f *framework.FieldSchema) (any, bool) { return deep, f.Type == framework.TypeString }},
		{"deep JSON in an object", func(f *framework.FieldSchema) (any, bool) {
			return `{"keys":` + deep + `}`, f.Type == framework.TypeString
		}},
		{"controls and NUL", func(f *framework.FieldSchema) (any, bool) {
			return "a\x00b\x1b[2J\u202e", f.Type == framework.TypeString
		}},
	}
	for _, p := range w.places(string(g.run)) {
		t.Run(strings.Trim(p.path.Pattern, "^$")+" "+string(p.op), func(t *testing.T) {
			w.t = t
			before := w.allButLog()
			w.refusedInput(p, "an unknown field", map[string]any{"nonsense": "x"}, "nonsense")
			for _, tt := range tests {
				for name, f := range p.path.Fields {
					v, ok := tt.value(f)
					if !ok || strings.Contains(p.path.Pattern, "?P<"+name+">") || harmlessText(name) && tt.name == "controls and NUL" {
						continue
					}
					w.refusedInput(p, tt.name, map[string]any{name: v}, name)
				}
			}
			if diff := cmp.Diff(before, w.allButLog()); diff != "" {
				t.Errorf("bad input was written: %.2000s", diff)
			}
		})
	}
	w.t = t
}

// harmlessText is what people say: it is cleaned, not refused. A value may be any
// bytes.
func harmlessText(name string) bool { return slices.Contains([]string{"reason", "value"}, name) }

// refusedInput sends one thing and wants a 4xx that names the field. The limits of
// calls per minute are set back, as they would refuse before anybody looks.
func (w *world) refusedInput(p place, what string, data map[string]any, field string) {
	w.t.Helper()
	w.b.mem.mu.Lock()
	w.b.mem.windows = nil
	w.b.mem.mu.Unlock()
	entity := "op"
	signed := p.path.Fields["request"] != nil || p.path.Fields["claim"] != nil
	if signed {
		entity = "agent-1"
	}
	if strings.HasPrefix(p.filled, "approvals/") {
		entity = "ann"
	}
	_, err := w.do(entity, "acc-"+idem(1), p.op, p.filled, data)
	status := code(err)
	if status == -1 && errors.Is(err, logical.ErrInvalidRequest) {
		status = 400
	}
	switch {
	case status < 400 || status > 499:
		w.t.Errorf("%s in %s: status %d, %.200v", what, field, status, err)
	case strings.Contains(err.Error(), canary):
		w.t.Errorf("%s in %s: the error quotes the value (F17)", what, field)
	case len(err.Error()) > 1024:
		w.t.Errorf("%s in %s: an error of %d bytes", what, field, len(err.Error()))
	case signed && status == 403 && field != "nonsense":
	case what == "an unknown field" || what == "another type":
		if !strings.Contains(err.Error(), "field "+field+":") {
			w.t.Errorf("%s in %s: the error does not name it: %.200v", what, field, err)
		}
	case !strings.HasPrefix(err.Error(), "field "):
		w.t.Errorf("%s in %s: the error does not name the field: %.200v", what, field, err)
	}
}

// TestBadNames: a name in a path is what it says or nothing: nothing is folded,
// decoded or cleaned into another name.
func TestBadNames(t *testing.T) {
	w := newWorld(t)
	g := w.claimed(idem(1))
	bad := []string{"..", "../x", "a/../b", "%2f", "a%2fb", "a\x00b", "A b", "Ünïcode", "ｆｕｌｌ", "a//b", ".", "-", "a\u200bb", "a\\b", "a?b", "a#b", "*", "+", strings.Repeat("a", 300)}
	bodies := map[string]map[string]any{
		"secrets":  {"value": "x"},
		"agents":   {"agent": `{"name":"x","version":0,"any_binary":true}`},
		"sources":  {"source": `{"name":"x","type":"builtin"}`},
		"profiles": {"profile": w.json(w.profile())},
	}
	before := w.allButLog()
	tried := 0
	for _, p := range w.places(string(g.run)) {
		groups := pathGroup.FindAllStringSubmatch(p.path.Pattern, -1)
		for i := range groups {
			for _, name := range bad {
				n := -1
				path := fillPath(p.path.Pattern, string(g.run), func(group string) string {
					if n++; n == i {
						return name
					}
					return goodName(group)
				})
				noun, _, _ := strings.Cut(path, "/")
				var data map[string]any
				if p.op == logical.UpdateOperation {
					data = bodies[noun]
				}
				resp, err := w.do("op", "", p.op, path, data)
				tried++
				if status := code(err); err == nil && resp != nil && p.op != logical.ListOperation && noun != "log" {
					t.Errorf("%s %q: answered %v", p.op, path, resp.Data)
				} else if err != nil && (status >= 500 || status == -1 && !errors.Is(err, logical.ErrUnsupportedPath) && !errors.Is(err, logical.ErrUnsupportedOperation) && !errors.Is(err, logical.ErrInvalidRequest)) {
					t.Errorf("%s %q: %v", p.op, path, err)
				}
			}
		}
	}
	if tried < 300 {
		t.Fatalf("only %d names were tried", tried)
	}
	if diff := cmp.Diff(before, w.allButLog()); diff != "" {
		t.Errorf("a bad name was written: %.2000s", diff)
	}
}

// FuzzRequest gives any path any field: whatever comes, there is an answer, no
// internal error, and nothing of a value in an error.
func FuzzRequest(f *testing.F) {
	w := newWorld(f)
	g := w.claimed(idem(1))
	places := w.places(string(g.run))
	for i, p := range places {
		for name := range p.path.Fields {
			f.Add(i, name, "x", "")
			f.Add(i, name, `{"a":[1,{"b":null}]}`, "/x")
		}
	}
	f.Add(0, "\x00", "\xff\xfe", "/../..")
	f.Fuzz(func(t *testing.T, i int, field, value, suffix string) {
		w.t = t
		p := places[uint(i)%uint(len(places))]
		if p.filled == "watch" || strings.HasPrefix(p.filled, "revocations") || strings.HasSuffix(p.filled, "/stop") {
			return // they wait, or end what the others need
		}
		_, err := w.do("op", "", p.op, p.filled+suffix, map[string]any{field: value})
		if status := code(err); status >= 500 && status != 503 {
			t.Errorf("%s %s %q: %v", p.op, p.filled+suffix, field, err)
		}
		if err != nil && len(value) > 32 && strings.Contains(fmt.Sprint(err), value) {
			t.Errorf("%s %s: the error quotes %q", p.op, p.filled, field)
		}
	})
}
