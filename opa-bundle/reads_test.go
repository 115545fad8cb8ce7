package opabundle

import (
	"context"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"

	"sealed.dev/sealed/internal/sealed"
)

// The table of fields is sealed.Input, field by field.
func TestFieldPathsMatchInput(t *testing.T) {
	var paths []string
	var walk func(at string, typ reflect.Type)
	walk = func(at string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if at == "" && f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[time.Time]() {
				walk(name+".", f.Type)
				continue
			}
			paths = append(paths, at+name)
		}
	}
	walk("", reflect.TypeFor[sealed.Input]())
	if diff := cmp.Diff(paths, fieldPath[:]); diff != "" {
		t.Errorf("fields (-sealed.Input +table):\n%s", diff)
	}
}

func fields(fs ...field) (set fieldSet) {
	for _, f := range fs {
		set |= 1 << f
	}
	return set
}

func TestInputReads(t *testing.T) {
	profile := fields(fProfileName, fProfileLevel, fProfileVersion, fProfileOwner, fProfileTags, fProfileAllowedWorkflows)
	tests := map[string]struct {
		rule string
		want fieldSet
	}{
		"nothing":          {`x := 1`, noFields},
		"unknown field":    {`x if input.nothing`, noFields},
		"one field":        {`x if input.key.risk == "low"`, fields(fKeyRisk)},
		"below a field":    {`x if input.key.bindings[_].host == "a"`, fields(fKeyBindings)},
		"an object":        {`x := input.profile`, profile},
		"variable":         {`x if { some k; input.profile[k] == 1 }`, profile},
		"some in":          {`x if { some k, v in input.profile; k == v }`, profile},
		"nested reference": {`x if input.profile[input.run.mode]`, profile | fields(fRunMode)},
		"field as a key":   {`x if data.sealed.y[input.run.mode]`, fields(fRunMode)},
		"alias":            {`x if { k := input.key; k.risk == "low" }`, fieldsAt(names("key"))},
		"whole":            {`x := input`, allFields},
		"whole as a value": {`x if { i := input; i.key.risk == "low" }`, allFields},
		"whole in a list":  {`x := [input]`, allFields},
		"whole, dynamic":   {`x if { some k; input[k] == 1 }`, allFields},
		"argument":         {"x if f(input)\nf(i) if i.key.risk == \"low\"", allFields},
		"builtin":          {`x := json.marshal(input)`, allFields},
		"comprehension":    {`x := {n | some t in input.run.tags; n := t.name}`, fields(fRunTags)},
		"not":              {`x if not input.run.interactive`, fields(fRunInteractive)},
		"every":            {`x if every t in input.run.tags { t.name != input.reason }`, fields(fRunTags, fReason)},
		"else":             {`x := 1 if input.phase == "a" else := input.time`, fields(fPhase, fTime)},
		"head":             {`x[input.tenant] := 1`, fields(fTenant)},
		"default and with": {"x if y == 2 with input as {\"key\": {\"risk\": 1}}\ndefault y := 1\ny := 2 if input.key.risk", allFields},
		"with on a field":  {"x if y == 2 with input.key.risk as input.agent.name\ny := 2 if input.key.risk", fields(fKeyRisk, fAgentName)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			tree := policies(allowRule)
			tree["sealed/more.rego"] = &fstest.MapFile{Data: []byte("package sealed.authz\n\n" + tc.rule + "\n")}
			raw, err := Build(context.Background(), tree, testManifest())
			if err != nil {
				t.Fatal(err)
			}
			got := open(t, raw, patient).queries[sealed.QuestionAuthz].reads
			for f, path := range fieldPath {
				if got.has(field(f)) != tc.want.has(field(f)) {
					t.Errorf("%s: read %v, want %v", path, got.has(field(f)), tc.want.has(field(f)))
				}
			}
		})
	}
}

// What only other questions read is not given to this one.
func TestInputReadsOfOtherPackages(t *testing.T) {
	for name, tc := range map[string]struct {
		rule string
		want fieldSet
	}{
		"unreached":               {`x := 1`, fields(fPhase)},
		"reached":                 {`x if data.sealed.more.y`, fields(fPhase, fTenant)},
		"reached through another": {`x if data.sealed.other.z`, fields(fPhase, fRunID, fTenant)},
		"dynamic":                 {`x if { some p; data.sealed[p].y }`, fields(fPhase, fRunID, fTenant)},
		"below a package":         {`x if data.sealed.more.y.deep[input.phase]`, fields(fPhase, fTenant)},
		"an operand":              {`x if {"a": 1}[data.sealed.more.y]`, fields(fPhase, fTenant)},
		"replaced":                {`x if count([1]) == 1 with count as data.sealed.more.f`, fields(fPhase, fTenant)},
	} {
		t.Run(name, func(t *testing.T) {
			tree := policies(allowRule)
			tree["sealed/authz/more.rego"] = &fstest.MapFile{Data: []byte("package sealed.authz\n\nphase := input.phase\n\n" + tc.rule + "\n")}
			tree["sealed/more/more.rego"] = &fstest.MapFile{Data: []byte("package sealed.more\n\ny := input.tenant\n\nf(_) := 1\n")}
			tree["sealed/other/other.rego"] = &fstest.MapFile{Data: []byte("package sealed.other\n\nz if data.sealed.more.y == input.run.id\n")}
			raw, err := Build(context.Background(), tree, testManifest())
			if err != nil {
				t.Fatal(err)
			}
			if got := open(t, raw, patient).queries[sealed.QuestionAuthz].reads; got != tc.want {
				t.Errorf("read %b, want %b", got, tc.want)
			}
		})
	}
}

func names(names ...string) (terms []*ast.Term) {
	for _, n := range names {
		terms = append(terms, ast.StringTerm(n))
	}
	return terms
}

// With only the fields that the policies read, the default policy decides as
// with all of them. Control: without one of them it does not.
func TestReadsAreEnough(t *testing.T) {
	b := open(t, buildDefault(t), patient)
	q := b.queries[sealed.QuestionAuthz]
	if q.reads == allFields || q.reads.has(fKeyBindings) || q.reads.has(fRequesterClaims) {
		t.Errorf("the default policies read %b", q.reads)
	}
	decide := func(in *sealed.Input, reads fieldSet) sealed.Decision {
		v, err := authzValue(in, reads, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return b.answer(context.Background(), q, v, now)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	missed := 0
	for range 500 {
		in := randomInput(rnd)
		all := decide(in, allFields)
		if diff := cmp.Diff(all, decide(in, q.reads)); diff != "" {
			t.Fatalf("%+v (-all +read):\n%s", in, diff)
		}
		if !cmp.Equal(all, decide(in, q.reads&^(1<<fKeyRisk))) {
			missed++
		}
	}
	if missed == 0 {
		t.Error("control: a field that is read makes no difference")
	}
}

// A field that is left out is checked all the same.
func TestUnreadFieldsAreChecked(t *testing.T) {
	for name, spoil := range map[string]func(in *sealed.Input, s string){
		"reason":  func(in *sealed.Input, s string) { in.Reason = s },
		"person":  func(in *sealed.Input, s string) { in.Requester.Person = s },
		"groups":  func(in *sealed.Input, s string) { in.Requester.Groups = []string{s} },
		"claim":   func(in *sealed.Input, s string) { in.Requester.Claims = map[string]string{"a": s} },
		"claims":  func(in *sealed.Input, s string) { in.Requester.Claims = map[string]string{s: "a"} },
		"tag":     func(in *sealed.Input, s string) { in.Run.Tags = []sealed.InputTag{{Name: s}} },
		"host":    func(in *sealed.Input, s string) { in.Key.Bindings = []sealed.Binding{{Host: s}} },
		"header":  func(in *sealed.Input, s string) { in.Key.Bindings = []sealed.Binding{{Header: s}} },
		"format":  func(in *sealed.Input, s string) { in.Key.Bindings = []sealed.Binding{{Format: s}} },
		"methods": func(in *sealed.Input, s string) { in.Key.Bindings = []sealed.Binding{{Methods: []string{s}}} },
		"paths":   func(in *sealed.Input, s string) { in.Key.Bindings = []sealed.Binding{{Paths: []string{s}}} },
		"time":    func(in *sealed.Input, _ string) { in.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		for _, bad := range []string{"a\xff", strings.Repeat("x", 1<<20)} {
			in := fullInput()
			spoil(in, bad)
			for _, reads := range []fieldSet{noFields, allFields} {
				if _, err := authzValue(in, reads, 1<<20); err == nil {
					t.Errorf("%s: accepted with fields %b", name, reads)
				}
			}
		}
	}
	if _, err := authzValue(fullInput(), noFields, 1<<20); err != nil {
		t.Errorf("control: %v", err)
	}
}
