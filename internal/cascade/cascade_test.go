package cascade

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
)

// parse reads a profile as the engine stores it.
func parse(t *testing.T, level, name, rest string) sealed.Profile {
	t.Helper()
	p, err := sealed.ParseProfile([]byte(`{"name":"` + name + `","level":"` + level + `",` + rest + `}`))
	if err != nil {
		t.Fatal(err)
	}
	p.Version = 1
	return p
}

const (
	everyone = `"requesters":{"groups":["dev"]},"allowed_workflows":["*"]`
	token    = `"source":"kv","ref":{"path":"ci/github"},"risk":"low","agents":["claude-code","codex"],"ttl":"15m","max_ttl":"1h",
		"bindings":[{"host":"api.github.com","methods":["GET","POST"],"paths":["/repos/**"]}]`
)

func TestResolve(t *testing.T) {
	base := parse(t, "system", "team/release", everyone+`,"owner":"platform","keys":{"TOKEN":{`+token+`}}`)
	own := `"source":"kv","ref":{"path":"me/github"},"risk":"low","agents":["claude-code","gemini"],"delivery":"env","ttl":"30m","max_ttl":"2h"`
	for _, c := range []struct {
		name   string
		levels []sealed.Profile
		want   func(t *testing.T, k Key)
	}{
		{"one level", []sealed.Profile{base}, func(t *testing.T, k Key) {
			if k.Ended != "" || k.Origin.Level != "system" || k.Owner != "platform" || len(k.NarrowedBy) != 0 {
				t.Errorf("got %+v", k)
			}
		}},
		{"a later definition replaces the value and keeps the walls; proxy without a binding is nothing", []sealed.Profile{base, parse(t, "user", "u/team/release", everyone+`,"keys":{"TOKEN":{`+own+`}}`)},
			func(t *testing.T, k Key) {
				if k.Ended != EndedDisjoint || k.Spec.Ref.Path != "me/github" || k.Origin.Level != "user" || k.Spec.Delivery != sealed.DeliveryProxy ||
					k.Spec.TTL.Std() != 15*time.Minute || k.Spec.MaxTTL.Std() != time.Hour {
					t.Errorf("got %+v", k)
				}
				if diff := cmp.Diff([]string{"claude-code"}, k.Spec.Agents); diff != "" {
					t.Error(diff)
				}
				if len(k.Spec.Bindings) != 0 {
					t.Errorf("bindings of the other value: %+v", k.Spec.Bindings)
				}
			}},
		{"the same value keeps its bindings", []sealed.Profile{base, parse(t, "user", "u/team/release", everyone+`,"keys":{"TOKEN":{`+
			strings.Replace(token, `"/repos/**"`, `"/repos/acme/**","/user"`, 1)+`}}`)},
			func(t *testing.T, k Key) {
				if b := k.Spec.Bindings; k.Ended != "" || len(b) != 1 || !slices.Equal(b[0].Paths, []string{"/repos/acme/**"}) {
					t.Errorf("ended %q, bindings %+v", k.Ended, b)
				}
			}},
		{"narrowing", []sealed.Profile{base, parse(t, "workflow", "team/release",
			`"requesters":{"groups":["release-eng"]},"allowed_workflows":["release"],"keys":{"TOKEN":{"agents":["codex"],"tags":["production"],"risk":"critical","ttl":"1m",
			"bindings":[{"host":"api.github.com","methods":["GET"],"paths":["/repos/acme/api"]}]}}`)},
			func(t *testing.T, k Key) {
				if k.Ended != "" || k.Spec.Risk != "critical" || k.Spec.TTL.Std() != time.Minute || k.Spec.MaxTTL.Std() != time.Hour {
					t.Errorf("got %+v", k)
				}
				want := []string{"codex", "production", "release", "GET /repos/acme/api"}
				got := slices.Concat(k.Spec.Agents, k.Spec.Tags, k.AllowedWorkflows)
				for _, b := range k.Spec.Bindings {
					got = append(got, strings.Join(b.Methods, ",")+" "+strings.Join(b.Paths, ","))
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				if k.Admits([]string{"dev"}, nil) || k.Admits([]string{"release-eng"}, nil) || !k.Admits([]string{"dev", "release-eng"}, nil) {
					t.Error("requesters do not add up")
				}
			}},
		{"a tombstone is final", []sealed.Profile{base, parse(t, "workflow", "team/release", everyone+`,"keys":{"TOKEN":{"tombstone":true}}`),
			parse(t, "user", "u/team/release", everyone+`,"keys":{"TOKEN":{`+token+`}}`)},
			func(t *testing.T, k Key) {
				if k.Ended != EndedTombstone || k.By.Level != "workflow" {
					t.Errorf("got %+v", k)
				}
			}},
		{"a tombstone before any definition", []sealed.Profile{parse(t, "system", "default", `"requesters":{},"keys":{"TOKEN":{"tombstone":true}}`), base},
			func(t *testing.T, k Key) {
				if k.Ended != EndedTombstone {
					t.Errorf("got %+v", k)
				}
			}},
		{"an orphan", []sealed.Profile{parse(t, "workflow", "team/release", everyone+`,"keys":{"TOKEN":{"agents":["codex"]}}`)},
			func(t *testing.T, k Key) {
				if k.Ended != EndedOrphan || k.By.Level != "workflow" {
					t.Errorf("got %+v", k)
				}
			}},
		{"a cap before the definition", []sealed.Profile{parse(t, "system", "default",
			`"requesters":{},"keys":{"TOKEN":{"agents":["codex"],"delivery":"proxy","bindings":[{"host":"api.github.com","methods":["GET"],"paths":["/**"]}]}}`), base},
			func(t *testing.T, k Key) {
				if k.Ended != "" || len(k.Spec.Agents) != 1 || len(k.NarrowedBy) != 1 {
					t.Errorf("got %+v", k)
				}
				b := k.Spec.Bindings
				if len(b) != 1 || !slices.Equal(b[0].Methods, []string{"GET"}) || !slices.Equal(b[0].Paths, []string{"/repos/**"}) {
					t.Errorf("bindings %+v", b)
				}
			}},
		{"nobody in common", []sealed.Profile{base, parse(t, "workflow", "team/release", everyone+`,"keys":{"TOKEN":{"agents":["gemini"]}}`)},
			func(t *testing.T, k Key) {
				if k.Ended != EndedDisjoint {
					t.Errorf("got %+v", k)
				}
			}},
		{"earlier workflows bind later definitions", []sealed.Profile{parse(t, "system", "default", `"requesters":{"groups":["staff"]},"allowed_workflows":["release"],"keys":{}`), base},
			func(t *testing.T, k Key) {
				if diff := cmp.Diff([]string{"release"}, k.AllowedWorkflows); diff != "" || k.Admits([]string{"dev"}, nil) || !k.Admits([]string{"dev", "staff"}, nil) {
					t.Error(diff, k.Admitted)
				}
			}},
		{"a definition without requesters is for nobody", []sealed.Profile{parse(t, "system", "default", `"requesters":{"groups":["dev"]},"keys":{}`),
			parse(t, "workflow", "team/release", `"requesters":{},"allowed_workflows":["*"],"keys":{"TOKEN":{`+token+`}}`)},
			func(t *testing.T, k Key) {
				if k.Admits([]string{"dev"}, nil) {
					t.Error("admits a requester of another level only")
				}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, ok := Resolve(c.levels).Key("TOKEN")
			if !ok {
				t.Fatal("no such key")
			}
			c.want(t, k)
		})
	}
}

func TestKnobs(t *testing.T) {
	e := Resolve([]sealed.Profile{
		parse(t, "system", "default", `"requesters":{},"env":{"LOG_LEVEL":"info","GITHUB_USER":"bot"},"keys":{"GONE":{"tombstone":true}}`),
		parse(t, "workflow", "team/release", everyone+`,"env":{"LOG_LEVEL":"debug","GONE":"x"},"keys":{"GITHUB_USER":{`+token+`}}`),
	})
	got := map[string]string{}
	for name, k := range e.Knobs {
		got[name] = k.Value + " of " + k.Origin.Level
	}
	if diff := cmp.Diff(map[string]string{"LOG_LEVEL": "debug of workflow"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"GITHUB_USER", "GONE"}, e.Shadowed); diff != "" {
		t.Error(diff)
	}
}

// Another level can only take away: whoever may use a key under three levels
// may use it, with the same value and no wider binding, under the first two,
// unless the third defines it; and then whoever was shut out before still is.
func TestLaterLevelsOnlyNarrow(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	usable := 0
	for i := range 20000 {
		levels := []sealed.Profile{randomProfile(rnd, "system", 0), randomProfile(rnd, "workflow", 1), randomProfile(rnd, "user", 2)}
		before, after := Resolve(levels[:2]), Resolve(levels)
		for range 8 {
			who := randomUse(rnd)
			k, now := who.may(after)
			if !now {
				continue
			}
			usable++
			was, existed := before.Key("TOKEN")
			_, could := who.may(before)
			mine := k.Origin.Level == sealed.LevelUser
			switch {
			case mine && !existed:
			case mine && was.defined():
				if was.Ended != "" || !could {
					t.Fatalf("%d: the third level opened a key to %+v:\n%+v", i, who, levels)
				}
			case mine: // capped, not defined before
			case !could || k.Spec.Ref != was.Spec.Ref || k.Spec.Source != was.Spec.Source:
				t.Fatalf("%d: the third level gave %+v another value:\n%+v", i, who, levels)
			}
			// Where the agent held the value before, a binding bound nothing.
			if was.Spec.Ref == k.Spec.Ref && was.Spec.Source == k.Spec.Source && !was.Spec.Delivery.GivesValue() {
				for _, b := range k.Spec.Bindings {
					if !slices.ContainsFunc(was.Spec.Bindings, func(o sealed.Binding) bool { return o.Covers(b) }) {
						t.Fatalf("%d: the third level widened a binding:\n%+v", i, levels)
					}
				}
			}
			if was.defined() && (!k.Spec.Delivery.Stronger(was.Spec.Delivery) || k.Spec.TTL > was.Spec.TTL || sealed.HigherRisk(was.Spec.Risk, k.Spec.Risk) != k.Spec.Risk) {
				t.Fatalf("%d: weaker terms:\n%+v\n%+v", i, was, k)
			}
		}
	}
	if usable < 1000 {
		t.Errorf("only %d uses were possible: the test shows little", usable)
	}
}

// A use is what decides about a key besides policy.
type use struct {
	agent, workflow, tag, isolation string
	groups                          []string
}

func randomUse(r *rand.Rand) use {
	return use{agent: pick(r, "a", "b"), workflow: pick(r, "w", "x"), tag: pick(r, "p", "q"), isolation: pick(r, "own_uid", "same_uid"), groups: pickSome(r, "g", "h", "i")}
}

// may states the documented rules for one use, independent of how Resolve
// combines lists.
func (u use) may(e Effective) (Key, bool) {
	k, ok := e.Key("TOKEN")
	if !ok || k.Ended != "" || !slices.Contains(k.Spec.Agents, u.agent) || !k.Admits(u.groups, nil) {
		return k, false
	}
	takes := func(list []string, name string) bool {
		return slices.Contains(list, name) || slices.Contains(list, "*")
	}
	if !takes(k.AllowedWorkflows, u.workflow) || (len(k.Spec.Workflows) > 0 && !takes(k.Spec.Workflows, u.workflow)) {
		return k, false
	}
	if len(k.Spec.Isolations) > 0 && !slices.Contains(k.Spec.Isolations, u.isolation) {
		return k, false
	}
	return k, len(k.Spec.Tags) == 0 || slices.Contains(k.Spec.Tags, u.tag)
}

func pick(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }

func pickSome(r *rand.Rand, of ...string) []string {
	var out []string
	for _, s := range of {
		if r.IntN(3) > 0 {
			out = append(out, s)
		}
	}
	return out
}

func randomProfile(r *rand.Rand, level string, i int) sealed.Profile {
	p := sealed.Profile{
		Name: sealed.ProfileName(fmt.Sprint("p", i)), Level: level, Version: 1,
		Requesters: sealed.Requesters{Groups: pickSome(r, "g", "h", "i")}, AllowedWorkflows: pickSome(r, "w", "x", "*"),
		Keys: map[sealed.KeyName]sealed.KeySpec{},
	}
	spec := sealed.KeySpec{
		Agents: pickSome(r, "a", "b"), Workflows: pickSome(r, "w", "x", "*"), Risk: pick(r, "low", "high", "critical"),
		Delivery: sealed.Delivery(pick(r, "proxy", "env")), TTL: sealed.Duration(time.Duration(1+r.IntN(9)) * time.Minute), MaxTTL: sealed.Duration(time.Hour),
	}
	if r.IntN(3) == 0 {
		spec.Tags = pickSome(r, "p", "q")
	}
	if r.IntN(3) == 0 {
		spec.Isolations = pickSome(r, "own_uid", "same_uid")
	}
	if r.IntN(3) == 0 {
		spec.Requesters = sealed.Requesters{Groups: pickSome(r, "g", "h")}
	}
	for _, path := range pickSome(r, "/**", "/a/**", "/a/b", "/c") {
		spec.Bindings = append(spec.Bindings, sealed.Binding{Host: "h", Methods: []string{"GET"}, Paths: []string{path}, Header: "Authorization", Format: "{}"})
	}
	switch r.IntN(8) {
	case 0:
		return p
	case 1:
		spec = sealed.KeySpec{Tombstone: true}
	case 2, 3:
	default:
		spec.Source, spec.Ref = "kv", sealed.KeyRef{Path: pick(r, "mine", "shared")}
	}
	p.Keys["TOKEN"] = spec
	return p
}

func BenchmarkResolve(b *testing.B) {
	r := rand.New(rand.NewPCG(3, 4))
	var levels []sealed.Profile
	for i, level := range []string{"system", "workflow", "user"} {
		p := randomProfile(r, level, i)
		p.Keys = map[sealed.KeyName]sealed.KeySpec{}
		for n := range 50 {
			q := randomProfile(r, level, i)
			if spec, ok := q.Keys["TOKEN"]; ok {
				p.Keys[sealed.KeyName(fmt.Sprintf("KEY_%d", n))] = spec
			}
		}
		levels = append(levels, p)
	}
	b.ReportAllocs()
	for b.Loop() {
		Resolve(levels)
	}
}
