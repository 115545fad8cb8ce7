package sealed

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePreviewRequest(t *testing.T) {
	got, err := ParsePreviewRequest([]byte(`{"profile":"team/release","agent":"codex","workflow":"release","tags":["production"]}`))
	want := PreviewRequest{
		Profile: "team/release", Agent: "codex", Workflow: "release", Tags: []Name{"production"},
		Mode: ModeJIT, Isolation: IsolationOwnUID, Network: NetworkNone,
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	er := got.Enqueue()
	doc, err := json.Marshal(er)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseEnqueueRequest(doc); err != nil {
		t.Errorf("not a request that the engine takes: %v", err)
	}
	for field, doc := range map[string]string{
		"profile":           `{"agent":"codex"}`,
		"agent":             `{"profile":"p","agent":"Codex"}`,
		"workflow":          `{"profile":"p","agent":"a","workflow":"a/b"}`,
		"tags":              `{"profile":"p","agent":"a","tags":[""]}`,
		"mode":              `{"profile":"p","agent":"a","mode":"x"}`,
		"delivery":          `{"profile":"p","agent":"a","delivery":"x"}`,
		"sandbox.network":   `{"profile":"p","agent":"a","network":"x"}`,
		"sandbox.isolation": `{"profile":"p","agent":"a","isolation":"x"}`,
		"interactive":       `{"profile":"p","agent":"a","interactive":"x"}`,
		"requester":         `{"profile":"p","agent":"a","requester":"x"}`,
		"Profile":           `{"Profile":"p","agent":"a"}`,
	} {
		_, err := ParsePreviewRequest([]byte(doc))
		if fe := (*FieldError)(nil); !errors.As(err, &fe) || fe.Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := ParsePreviewRequest([]byte(strings.Repeat(" ", 16<<10+1))); !errors.Is(err, ErrInvalid) {
		t.Errorf("oversize: %v", err)
	}
}

func FuzzParsePreviewRequest(f *testing.F) {
	f.Add(`{"profile":"p","agent":"a"}`)
	f.Add(`{"profile":"team/release","agent":"codex","tags":["a"],"delivery":"env","network":"full","interactive":true}`)
	f.Add(`{"profile":"p","profile":"q"}`)
	f.Fuzz(func(t *testing.T, doc string) {
		p, err := ParsePreviewRequest([]byte(doc))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v does not wrap ErrInvalid", err)
			}
			return
		}
		if er := p.Enqueue(); er.validate() != nil || er.Profile == "" {
			t.Errorf("accepted %q", doc)
		}
	})
}

func TestSourceLevels(t *testing.T) {
	for _, c := range []struct {
		levels []string
		may    []string
	}{
		{nil, []string{LevelSystem, LevelWorkflow}},
		{[]string{LevelSystem}, []string{LevelSystem}},
		{[]string{LevelUser, LevelWorkflow}, []string{LevelWorkflow, LevelUser}},
	} {
		cfg := SourceConfig{Name: SourceBuiltin, Type: SourceBuiltin, Levels: c.levels}
		if err := cfg.Validate(); err != nil {
			t.Error(err)
		}
		var may []string
		for _, l := range []string{LevelSystem, LevelWorkflow, LevelUser, "", "root"} {
			if cfg.AllowsLevel(l) {
				may = append(may, l)
			}
		}
		if diff := cmp.Diff(c.may, may); diff != "" {
			t.Errorf("%v: %s", c.levels, diff)
		}
	}
	err := SourceConfig{Name: SourceBuiltin, Type: SourceBuiltin, Levels: []string{"team"}}.Validate()
	if fe := (*FieldError)(nil); !errors.As(err, &fe) || fe.Field != "levels" {
		t.Errorf("got %v", err)
	}
}
